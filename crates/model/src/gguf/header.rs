//! The header of a file, read front to back and checked as it is read:
//!
//! ```text
//! magic "GGUF" · version u32 · tensor count u64 · entry count u64
//! entries:  key string · type u32 · value
//! tensors:  name string · number of dimensions u32 · dimensions u64, innermost first · type u32 · offset u64
//! padding to general.alignment, then the tensors' data; offsets count from here
//! ```
//!
//! Counts are never trusted with memory: before anything is reserved, a count is held against the bytes that are left.

use std::collections::HashMap;
use std::ops::Range;

use super::cursor::ByteCursor;
use super::limits::{ALIGNMENT_MAX, DIMS_MAX, KEY_BYTES_MAX, METADATA_ENTRIES_MAX, TENSOR_NAME_BYTES_MAX, TENSORS_MAX};
use super::metadata::Metadata;
use super::types::{self, unsupported_name};
use super::value::read_value;
use tallow_kernels::WeightFormat;
use tallow_stream::error::{Error, Result};

/// Alignment of tensor data where the file names none.
const ALIGNMENT_DEFAULT: u32 = 32;
/// Bytes of the smallest entry: an empty key, a type, one byte.
const ENTRY_BYTES_MIN: u64 = 8 + 4 + 1;
/// Bytes of the smallest tensor info: a name of one byte, one dimension.
const TENSOR_INFO_BYTES_MIN: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// Everything before the weights, copied out of the file.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

/// Description of one tensor, valid for the file it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, unique in the file.
    pub name: String,
    /// Its shape, outermost dimension first (the file lists them innermost first). One to four, none zero; the last
    /// is a whole number of blocks.
    pub(crate) dims: Vec<usize>,
    /// Type of its elements.
    pub dtype: WeightFormat,
    /// Where its data begins in the file.
    start: usize,
    num_bytes: usize,
}

impl TensorInfo {
    /// Number of elements.
    pub(crate) fn num_elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Bytes of its data.
    pub fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// Bytes of one row, that is of the innermost dimension.
    pub fn row_bytes(&self) -> usize {
        self.dims.last().map_or(0, |n| n / self.dtype.block_len() * self.dtype.block_bytes())
    }

    /// Where its data lies in the file.
    pub(crate) fn data_range(&self) -> Range<usize> {
        self.start..self.start + self.num_bytes
    }
}

impl Header {
    /// Reads and checks the header of the file whose bytes are `data`.
    ///
    /// # Errors
    /// If a rule of the format is broken or a tensor's type is not supported.
    pub(super) fn parse(data: &[u8]) -> Result<Self> {
        let mut cursor = ByteCursor::new(data);
        check_magic_and_version(&mut cursor)?;
        let num_tensors = cursor.u64("the number of tensors")?;
        let num_entries = cursor.u64("the number of metadata entries")?;
        check_count("metadata entries", num_entries, METADATA_ENTRIES_MAX, ENTRY_BYTES_MIN, &cursor)?;
        check_count("tensors", num_tensors, TENSORS_MAX, TENSOR_INFO_BYTES_MIN, &cursor)?;
        let metadata = read_metadata(&mut cursor, num_entries)?;
        check_not_split(&metadata)?;
        let alignment = alignment(&metadata)?;
        let mut raw = Vec::with_capacity(num_tensors as usize);
        let mut by_name = HashMap::with_capacity(num_tensors as usize);
        for index in 0..num_tensors {
            let tensor = read_tensor(&mut cursor, index)?;
            if by_name.insert(tensor.name.clone(), raw.len()).is_some() {
                return Err(Error::bad_model(format!("tensor `{}` is listed twice", tensor.name)));
            }
            raw.push(tensor);
        }
        let tensors = place(raw, cursor.position() as u64, alignment, data.len() as u64)?;
        check_no_overlap(&tensors)?;
        Ok(Self { metadata, tensors, by_name })
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }
}

fn check_magic_and_version(cursor: &mut ByteCursor<'_>) -> Result<()> {
    let magic: [u8; 4] = cursor.array("the magic number")?;
    if &magic != b"GGUF" {
        return Err(Error::bad_model(format!(
            "is not a GGUF file: it begins with `{}`, not with `GGUF`",
            magic.escape_ascii()
        )));
    }
    match cursor.u32("the version")? {
        2 | 3 => Ok(()),
        version if matches!(version.swap_bytes(), 1..=3) => {
            Err(Error::bad_model("is a big-endian GGUF file; only little-endian files are supported"))
        }
        version => Err(Error::bad_model(format!("GGUF version {version} is not supported; versions 2 and 3 are"))),
    }
}

fn check_count(what: &str, count: u64, max: u64, bytes_min: u64, cursor: &ByteCursor<'_>) -> Result<()> {
    if count > max {
        return Err(Error::bad_model(format!("the number of {what} must be at most {max}, is {count}")));
    }
    if count * bytes_min > cursor.remaining() {
        return Err(Error::bad_model(format!(
            "the number of {what} is {count}, but the file has only {} bytes left",
            cursor.remaining()
        )));
    }
    Ok(())
}

fn read_metadata(cursor: &mut ByteCursor<'_>, num_entries: u64) -> Result<Metadata> {
    let mut metadata = Metadata::default();
    let mut last = "none";
    for index in 0..num_entries {
        let key = cursor
            .str(KEY_BYTES_MAX, "the key")
            .map_err(|e| e.context(format!("metadata entry {index} (after key `{last}`)")))?;
        if key.is_empty() {
            return Err(Error::bad_model(format!("metadata entry {index} (after key `{last}`) has an empty key")));
        }
        let value = read_value(cursor).map_err(|e| e.context(format!("key `{key}`")))?;
        if !metadata.insert(key, value) {
            return Err(Error::bad_model(format!("key `{key}` occurs twice")));
        }
        last = key;
    }
    Ok(metadata)
}

fn check_not_split(metadata: &Metadata) -> Result<()> {
    match metadata.opt_u32("split.count")? {
        Some(n) if n > 1 => Err(Error::bad_model(format!(
            "key `split.count` is {n}: the file is one part of {n}, merge them into one file first"
        ))),
        _ => Ok(()),
    }
}

fn alignment(metadata: &Metadata) -> Result<u64> {
    let alignment = metadata.opt_u32("general.alignment")?.unwrap_or(ALIGNMENT_DEFAULT);
    if !alignment.is_power_of_two() || alignment > ALIGNMENT_MAX {
        return Err(Error::bad_model(format!(
            "key `general.alignment` must be a power of two up to {ALIGNMENT_MAX}, is {alignment}"
        )));
    }
    Ok(u64::from(alignment))
}

/// A tensor info as read. Its offset is checked later: where the data begins is known only after the last info.
struct RawTensor {
    name: String,
    dims: Vec<usize>,
    dtype: WeightFormat,
    num_bytes: u64,
    offset: u64,
}

fn read_tensor(cursor: &mut ByteCursor<'_>, index: u64) -> Result<RawTensor> {
    let name =
        cursor.str(TENSOR_NAME_BYTES_MAX, "the name").map_err(|e| e.context(format!("tensor number {index}")))?;
    if name.is_empty() {
        return Err(Error::bad_model(format!("tensor number {index} has an empty name")));
    }
    read_shape_and_place(cursor, name).map_err(|e| e.context(format!("tensor `{name}`")))
}

fn read_shape_and_place(cursor: &mut ByteCursor<'_>, name: &str) -> Result<RawTensor> {
    let num_dims = cursor.u32("the number of dimensions")?;
    if !(1..=DIMS_MAX).contains(&num_dims) {
        return Err(Error::bad_model(format!("must have 1 to {DIMS_MAX} dimensions, has {num_dims}")));
    }
    let mut innermost_first = Vec::with_capacity(num_dims as usize);
    for _ in 0..num_dims {
        innermost_first.push(cursor.u64("a dimension")?);
    }
    let dtype = supported_type(cursor.u32("the type")?)?;
    let offset = cursor.u64("the offset")?;
    let num_bytes = checked_bytes(&innermost_first, dtype)?;
    // Each dimension fits, since their product does.
    let dims = innermost_first.into_iter().rev().map(|d| d as usize).collect();
    Ok(RawTensor { name: name.to_owned(), dims, dtype, num_bytes, offset })
}

fn supported_type(id: u32) -> Result<WeightFormat> {
    types::from_id(id).ok_or_else(|| {
        let what = unsupported_name(id).map_or_else(|| format!("type {id}"), |name| format!("type {name} ({id})"));
        Error::bad_model(format!("{what} is not supported; supported are {}", types::supported()))
    })
}

/// Bytes of a tensor with these dimensions.
fn checked_bytes(innermost_first: &[u64], dtype: WeightFormat) -> Result<u64> {
    if innermost_first.contains(&0) {
        return Err(Error::bad_model(format!("dimensions {innermost_first:?} must not contain 0")));
    }
    let block_len = dtype.block_len() as u64;
    if !innermost_first[0].is_multiple_of(block_len) {
        return Err(Error::bad_model(format!(
            "rows of {} elements must be a multiple of {block_len}, the block length of {}",
            innermost_first[0], dtype
        )));
    }
    innermost_first
        .iter()
        .try_fold(1_u64, |product, &d| product.checked_mul(d))
        .and_then(|elements| (elements / block_len).checked_mul(dtype.block_bytes() as u64))
        .filter(|&bytes| isize::try_from(bytes).is_ok())
        .ok_or_else(|| Error::bad_model(format!("dimensions {innermost_first:?} overflow")))
}

/// Turns offsets into places in the file of `file_bytes` whose infos end at `infos_end`.
fn place(raw: Vec<RawTensor>, infos_end: u64, alignment: u64, file_bytes: u64) -> Result<Vec<TensorInfo>> {
    let data_start = infos_end.next_multiple_of(alignment);
    let place_one = |t: RawTensor| {
        if !t.offset.is_multiple_of(alignment) {
            return Err(Error::bad_model(format!(
                "tensor `{}`: offset {} must be a multiple of the alignment {alignment}",
                t.name, t.offset
            )));
        }
        let start = data_start.checked_add(t.offset);
        let end = start.and_then(|start| start.checked_add(t.num_bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_bytes => Ok(TensorInfo {
                name: t.name,
                dims: t.dims,
                dtype: t.dtype,
                start: start as usize,
                num_bytes: t.num_bytes as usize,
            }),
            _ => Err(Error::bad_model(format!(
                "tensor `{}`: its {} bytes at offset {} end beyond the file of {file_bytes} bytes (data begins at \
                 {data_start}); the file may be cut short",
                t.name, t.num_bytes, t.offset
            ))),
        }
    };
    raw.into_iter().map(place_one).collect()
}

fn check_no_overlap(tensors: &[TensorInfo]) -> Result<()> {
    let mut by_start: Vec<&TensorInfo> = tensors.iter().collect();
    by_start.sort_by_key(|t| t.start);
    for pair in by_start.windows(2) {
        if pair[0].data_range().end > pair[1].start {
            return Err(Error::bad_model(format!("tensors `{}` and `{}` overlap", pair[0].name, pair[1].name)));
        }
    }
    Ok(())
}
