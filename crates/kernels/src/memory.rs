//! Memory for packed weights and for keys and values, from the system and zero until it is written.
//!
//! A step of one token reads all weights, at the speed of the memory, so they are in large pages: with small ones a model
//! of 84 MB takes twenty thousand look-ups of page tables a step. Matrices are laid one after another in maps much larger
//! than a large page, because most matrices are smaller than one. Keys and values are in small pages: most of that
//! memory is not in use most of the time, and what never was is not resident.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::{MmapMut, MmapRaw};

use crate::{Error, Result};

/// Bytes of a map. Pages that nobody writes are never backed, so a map that is not full costs nothing.
const MAP_BYTES: usize = if cfg!(miri) { 1 << 20 } else { 256 << 20 };
/// Regions begin on a cache line.
const LINE: usize = 64;

/// Hands out regions.
#[derive(Debug)]
pub struct Memory {
    has_large_pages: bool,
    map: Option<Arc<MmapRaw>>,
    used: usize,
}

/// Zeroed bytes on whole cache lines; the map lives as long as its last region.
pub(super) struct Region {
    map: Arc<MmapRaw>,
    start: usize,
    len: usize,
}

/// A region of half floats, as their bits.
#[derive(Debug)]
pub(super) struct Halves(Region);

impl Default for Memory {
    fn default() -> Self {
        Self { has_large_pages: true, map: None, used: 0 }
    }
}

impl Memory {
    /// Memory of which only what was written is resident, to the system's page.
    pub(crate) fn in_small_pages() -> Self {
        Self { has_large_pages: false, ..Self::default() }
    }

    /// `len` zeros.
    pub(super) fn halves(&mut self, len: usize) -> Result<Halves> {
        self.region(2 * len).map(Halves)
    }

    /// A region of `len` bytes, rounded up to whole cache lines.
    pub(super) fn region(&mut self, len: usize) -> Result<Region> {
        let len = len.next_multiple_of(LINE);
        let map = match &self.map {
            Some(map) if len <= map.len() - self.used => map.clone(),
            _ => {
                self.used = 0;
                self.map.insert(new_map(len.max(MAP_BYTES), self.has_large_pages)?).clone()
            }
        };
        let start = self.used;
        self.used += len;
        Ok(Region { map, start, len })
    }
}

fn new_map(len: usize, has_large_pages: bool) -> Result<Arc<MmapRaw>> {
    let failed = |e: std::io::Error| Error::NoMemory { num_bytes: len, cause: e.to_string() };
    let map = MmapMut::map_anon(len).map_err(failed)?;
    // A system without large pages refuses: it is slower there, not wrong.
    #[cfg(all(target_os = "linux", not(miri)))]
    if has_large_pages && let Err(e) = map.advise(memmap2::Advice::HugePage) {
        tracing::debug!("no large pages for weights: {e}");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = has_large_pages;
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

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Region({} bytes)", self.len)
    }
}

impl Deref for Halves {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        bytemuck::cast_slice(self.0.bytes())
    }
}

impl DerefMut for Halves {
    fn deref_mut(&mut self) -> &mut [u16] {
        bytemuck::cast_slice_mut(self.0.bytes_mut())
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
