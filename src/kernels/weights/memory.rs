//! Memory for packed weights. A step of one token reads all of it, at the speed of the memory, so it is asked for in
//! large pages: with small ones a model of 84 MB takes twenty thousand look-ups of page tables a step. Matrices are laid
//! one after another in maps much larger than a large page, because most matrices are smaller than one.

use std::sync::Arc;

use memmap2::{MmapMut, MmapRaw};

use crate::error::{Error, Result};

/// Bytes of a map. Pages that nobody writes are never backed, so a map that is not full costs nothing.
const MAP_BYTES: usize = 256 << 20;
/// Regions begin on a cache line.
const LINE: usize = 64;

/// Hands out regions.
#[derive(Debug, Default)]
pub struct Memory {
    map: Option<Arc<MmapRaw>>,
    used: usize,
}

/// Zeroed bytes on whole cache lines; the map lives as long as its last region.
pub(super) struct Region {
    map: Arc<MmapRaw>,
    start: usize,
    len: usize,
}

impl Memory {
    /// A region of `len` bytes, rounded up to whole cache lines.
    pub(super) fn region(&mut self, len: usize) -> Result<Region> {
        let len = len.next_multiple_of(LINE);
        let map = match &self.map {
            Some(map) if len <= map.len() - self.used => map.clone(),
            _ => {
                self.used = 0;
                self.map.insert(new_map(len.max(MAP_BYTES))?).clone()
            }
        };
        let start = self.used;
        self.used += len;
        Ok(Region { map, start, len })
    }
}

fn new_map(len: usize) -> Result<Arc<MmapRaw>> {
    let failed = |e| Error::internal(format!("cannot get {len} bytes of memory for weights: {e}"));
    let map = MmapMut::map_anon(len).map_err(failed)?;
    // A system without large pages refuses: it is slower there, not wrong.
    #[cfg(target_os = "linux")]
    if let Err(e) = map.advise(memmap2::Advice::HugePage) {
        tracing::debug!("no large pages for weights: {e}");
    }
    Ok(Arc::new(map.into()))
}

impl Region {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `region` cut this part out of the map for this value alone; it is initialised (zero, or written since)
        // and nobody writes while `self` is borrowed, because writing borrows it mutably.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.start), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes this the only borrow.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(self.start), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_zero_aligned_and_apart() {
        let mut memory = Memory::default();
        let mut regions: Vec<Region> = [1, 64, 100, MAP_BYTES, 5000, MAP_BYTES + 1, 7]
            .map(|len| memory.region(len).unwrap())
            .into_iter()
            .collect();
        for (i, region) in regions.iter_mut().enumerate() {
            let bytes = region.bytes_mut();
            assert_eq!(bytes.as_ptr() as usize % LINE, 0);
            let last = bytes.len() - 1;
            assert!(bytes[0] == 0 && bytes[last] == 0, "region {i}");
            bytes[0] = i as u8 + 1;
            bytes[last] = i as u8 + 1;
        }
        drop(memory);
        for (i, region) in regions.iter().enumerate() {
            let bytes = region.bytes();
            assert_eq!((bytes[0], bytes[bytes.len() - 1]), (i as u8 + 1, i as u8 + 1));
        }
    }
}
