//! Arithmetic on the CPU. The only room with `unsafe`; it knows slices, not tensors, models or sequences.
#![allow(unsafe_code)]
