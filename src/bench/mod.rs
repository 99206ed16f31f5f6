//! Measuring: what `tallow bench` does once its flags are read. It knows engines, models and servers from outside, as
//! their users do, and nothing of how they are built.

pub mod offline;
pub mod report;
