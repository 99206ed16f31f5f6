//! GGUF files: a memory map behind a validator. Nothing is handed out before the whole header has been checked, so
//! the decoder above may slice tensors without asking again. This room knows bytes, names and shapes; it does not
//! know what an architecture is.
//!
//! ```text
//! file -> Mmap -> Header::parse (cursor -> metadata -> tensor infos -> layout) -> Gguf -> Metadata, TensorView
//! ```
//!
//! Accepted are versions 2 and 3, little-endian, one file per model. Every limit is a constant of [`limits`], and
//! every error names the key or the tensor with the value that broke the rule.

mod cursor;
mod header;
mod metadata;
mod types;
mod value;

#[cfg(test)]
pub(crate) mod builder;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod malformed;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

pub use header::TensorInfo;
pub use metadata::{Array, Metadata, Strings, Value};

use header::Header;
use tallow_kernels::dequantize_row;
use tallow_stream::error::{Error, Result};

/// What a file may ask of us. Real files stay far below; a file that does not is damaged or hostile.
pub mod limits {
    /// Metadata entries in a file. Real models have about 40.
    pub(crate) const METADATA_ENTRIES_MAX: u64 = 65_536;
    /// Tensors in a file. The largest published mixtures have a few thousand.
    pub(crate) const TENSORS_MAX: u64 = 65_536;
    /// Bytes of a key: the format's own limit.
    pub(crate) const KEY_BYTES_MAX: u64 = 65_535;
    /// Bytes of a tensor name. The format says 64; some writers exceed it.
    pub(crate) const TENSOR_NAME_BYTES_MAX: u64 = 255;
    /// Bytes of one string value. Embedded tokenizer files reach some tens of MB.
    pub(crate) const STRING_BYTES_MAX: u64 = 64 << 20;
    /// Elements of one array, nested ones included. The largest vocabularies have about 262,144 tokens.
    pub(crate) const ARRAY_ELEMENTS_MAX: u64 = 1 << 24;
    /// How deep arrays may nest.
    pub(crate) const ARRAY_DEPTH_MAX: usize = 4;
    /// Largest `general.alignment`, in bytes.
    pub(crate) const ALIGNMENT_MAX: u32 = 1 << 20;
    /// Dimensions of a tensor.
    pub(crate) const DIMS_MAX: u32 = 4;
}

/// An open, mapped and validated GGUF file.
#[derive(Debug)]
pub struct Gguf {
    map: Mmap,
    file: File,
    header: Arc<Header>,
}

/// One tensor: its description and its bytes in the map.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// Name, shape and type.
    pub info: &'a TensorInfo,
    /// The raw blocks, exactly [`TensorInfo::num_bytes`] of them.
    pub data: &'a [u8],
}

impl TensorView<'_> {
    /// All its numbers as f32: of norms, biases, rope factors.
    ///
    /// # Errors
    /// If one of them is not finite.
    pub(crate) fn floats(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.info.num_elements()];
        dequantize_row(self.info.dtype, self.data, &mut out);
        if let Some(bad) = out.iter().find(|x| !x.is_finite()) {
            return Err(Error::bad_model(format!("tensor `{}` holds {bad}", self.info.name)));
        }
        Ok(out)
    }
}

impl Gguf {
    /// Maps the file and validates everything in it but the weights themselves.
    ///
    /// # Errors
    /// If the file cannot be read, breaks a rule of the format, or holds a tensor of an unsupported type. The
    /// message begins with the path.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_inner(path).map_err(|e| e.context(path.display()))
    }

    fn open_inner(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("cannot open", e))?;
        let stat = file.metadata().map_err(|e| Error::io("cannot read its size", e))?;
        if !stat.is_file() {
            return Err(Error::bad_model("is not a regular file"));
        }
        if stat.len() == 0 {
            return Err(Error::bad_model("is empty; a GGUF file begins with `GGUF`"));
        }
        let map = map_file(&file).map_err(|e| Error::io("cannot map", e))?;
        let header = Arc::new(Header::parse(&map)?);
        Ok(Self { map, file, header })
    }

    /// The same file in a map of its own, none of whose pages is resident: once all others are gone, what was read
    /// through them no longer counts as this process's memory.
    ///
    /// # Errors
    /// If the system refuses the map, or the file has changed its length.
    pub(crate) fn mapped_afresh(&self) -> Result<Self> {
        let file = self.file.try_clone().map_err(|e| Error::io("cannot open again", e))?;
        let map = map_file(&file).map_err(|e| Error::io("cannot map", e))?;
        if map.len() != self.map.len() {
            return Err(Error::bad_model("the file changed while it was read"));
        }
        Ok(Self { map, file, header: self.header.clone() })
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// All tensors, in the order in which the file lists them.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.header.tensors
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// If the file has none; the message names it.
    pub(crate) fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.opt_tensor(name).ok_or_else(|| Error::bad_model(format!("tensor `{name}` is missing")))
    }

    /// The tensor of that name, if the file has one.
    pub fn opt_tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let info = self.header.tensor(name)?;
        Some(TensorView { info, data: &self.map[info.data_range()] })
    }

    /// Bytes of the mapped file.
    pub fn file_bytes(&self) -> usize {
        self.map.len()
    }
}

/// Maps a file for reading.
#[allow(unsafe_code)]
fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only and nothing in this process writes to a model file: the registry writes to
    // `NAME.partial` and renames, which leaves the inode under an older map untouched. What cannot be guaranteed is
    // that no other process changes the file in place while it is served, which the language counts as undefined. In
    // practice: the header is copied out and never read again, so lengths and offsets cannot change after validation;
    // overwritten weights are still numbers, and give wrong text; a file that is truncated ends this process with
    // SIGBUS. Copying the weights into memory would close the gap at the price of twice the memory and a slow start.
    unsafe { Mmap::map(file) }
}
