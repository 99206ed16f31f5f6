//! Weight matrices: the formats of a GGUF file, and the packed form that the kernels read.

mod format;
mod packed;
mod planes;
mod unpack;

pub use format::WeightFormat;
pub use packed::Packed;
pub(crate) use packed::{BLOCK_K, Layout, Tiles};
pub(crate) use planes::{Planes, load_8, unpack_codes};
pub use unpack::dequantize_row;
