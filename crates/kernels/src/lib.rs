//! Arithmetic on the CPU. The only room with `unsafe`; it knows slices, not tensors, models or sequences.
//!
//! Every function gives the same bits on every CPU, for every number of threads and whatever else is in the batch.
//! `simd/` has the sixteen virtual lanes that make this true, `pool` the threads, `weights/` the packed matrices;
//! `matmul`, `norm` and `attention` are the arithmetic itself.
#![allow(unsafe_code)]
// Lanes, groups and tokens are indices here; iterators over arrays of vectors are not reliably inlined.
#![allow(clippy::needless_range_loop)]

mod activations;
mod attend;
mod attention;
mod attention_shape;
mod error;
mod kv_store;
mod kv_write;
mod math;
mod matmul;
mod memory;
mod norm;
mod pool;
mod simd;
mod tile;
mod tile_f32;
mod weights;

pub use activations::{Activations, StageOutput};
pub use attention::attention;
pub use attention_shape::{AttentionShape, DistinctSlots, KV_BLOCK, KvLayer, QkNorm, Ragged, RopePairs};
pub use error::{Error, Result};
pub use kv_store::{BLOCK_SIZE, BlockId, KvStore};
pub use matmul::{Activation, MatrixInput, MatrixPart, gated, linear};
pub use memory::Memory;
pub use norm::{Norm, add_rms_norm, rms_norm};
pub use pool::Pool;
pub use simd::Isa;
pub use weights::{Packed, WeightFormat, dequantize_row};
