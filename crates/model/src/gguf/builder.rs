//! Writes GGUF bytes for tests, right or deliberately wrong: nothing here checks anything.

use super::types;
use tallow_kernels::WeightFormat;

/// A file under construction. Tensor data is laid out in order, each tensor aligned, filled with a byte pattern.
#[derive(Debug, Clone)]
pub(crate) struct Builder {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    /// Key, and the bytes of type and value.
    pub(super) entries: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) tensors: Vec<BuiltTensor>,
    /// Replaces the true count, to lie about it.
    pub(crate) num_entries: Option<u64>,
    /// Replaces the true count, to lie about it.
    pub(crate) num_tensors: Option<u64>,
}

#[derive(Debug, Clone)]
pub(super) struct BuiltTensor {
    name: Vec<u8>,
    innermost_first: Vec<u64>,
    type_id: u32,
    offset: u64,
    data: Vec<u8>,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            alignment: 32,
            entries: Vec::new(),
            tensors: Vec::new(),
            num_entries: None,
            num_tensors: None,
        }
    }

    /// An entry with these bytes after its type id.
    pub(crate) fn raw(mut self, key: impl AsRef<[u8]>, type_id: u32, value: &[u8]) -> Self {
        let mut bytes = type_id.to_le_bytes().to_vec();
        bytes.extend_from_slice(value);
        self.entries.push((key.as_ref().to_vec(), bytes));
        self
    }

    pub(crate) fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[u8::from(value)])
    }

    pub(crate) fn str(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &string(value))
    }

    pub(crate) fn strings(self, key: &str, values: &[&str]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(string).collect();
        self.raw(key, 9, &array(8, values.len() as u64, &elements))
    }

    pub(crate) fn f32s(self, key: &str, values: &[f32]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.raw(key, 9, &array(6, values.len() as u64, &elements))
    }

    pub(crate) fn i32s(self, key: &str, values: &[i32]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.raw(key, 9, &array(5, values.len() as u64, &elements))
    }

    /// A tensor of the right size at the next aligned offset. `dims` are outermost first.
    pub(crate) fn tensor(self, name: &str, dims: &[u64], dtype: WeightFormat) -> Self {
        let elements: u64 = dims.iter().product();
        let num_bytes = elements as usize / dtype.block_len() * dtype.block_bytes();
        let offset = self.tensors.last().map_or(0, |t| {
            let end = t.offset as usize + t.data.len();
            end.next_multiple_of(self.alignment.max(1))
        });
        let data = (0..num_bytes).map(|i| i as u8).collect();
        self.raw_tensor(name.as_bytes(), dims, types::id_of(dtype), offset as u64, data)
    }

    /// A tensor as described, right or wrong. `dims` are outermost first.
    pub(crate) fn raw_tensor(mut self, name: &[u8], dims: &[u64], type_id: u32, offset: u64, data: Vec<u8>) -> Self {
        let innermost_first = dims.iter().rev().copied().collect();
        self.tensors.push(BuiltTensor { name: name.to_vec(), innermost_first, type_id, offset, data });
        self
    }

    /// The header alone, without padding and data.
    pub(crate) fn header(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.num_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.num_entries.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            out.extend(string(key));
            out.extend(value);
        }
        for t in &self.tensors {
            out.extend(string(&t.name));
            out.extend((t.innermost_first.len() as u32).to_le_bytes());
            out.extend(t.innermost_first.iter().flat_map(|d| d.to_le_bytes()));
            out.extend(t.type_id.to_le_bytes());
            out.extend(t.offset.to_le_bytes());
        }
        out
    }

    /// The whole file.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut out = self.header();
        let start = out.len().next_multiple_of(self.alignment.max(1));
        for t in &self.tensors {
            let end = start.saturating_add(t.offset as usize).saturating_add(t.data.len());
            // A deliberately absurd offset is written as said, but not padded up to.
            if t.data.is_empty() || end > 1 << 24 {
                continue;
            }
            out.resize(out.len().max(end), 0);
            out[end - t.data.len()..end].copy_from_slice(&t.data);
        }
        out
    }
}

/// A string as the format writes it.
pub(crate) fn string(s: impl AsRef<[u8]>) -> Vec<u8> {
    let s = s.as_ref();
    [&(s.len() as u64).to_le_bytes(), s].concat()
}

/// An array as the format writes it, with a length that need not be true.
pub(crate) fn array(element_type_id: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&element_type_id.to_le_bytes()[..], &len.to_le_bytes(), elements].concat()
}
