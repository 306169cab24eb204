//! Words in memory that are the address of a vtable, where a header would have it.
//!
//! In: the layouts of an image, and the resident pages of a process. Out: addresses of what may be headers, each with its
//! type. It checks nothing else, so it also finds the remains of tasks that were freed.

use super::{
    layout::Layouts,
    reader::{Memory, MemoryError},
};
use std::ops::Range;

/// Bytes read at once: large enough that system calls do not count, small enough for the processor's caches.
const CHUNK_BYTES: usize = 1 << 20;

/// What may be a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Address of the header.
    pub(super) header: u64,
    /// Index in [`Layouts::types`].
    pub(super) layout: u32,
}

/// Reads resident ranges and finds places in them.
pub(super) struct Scanner<'a> {
    layouts: &'a Layouts,
    buffer: Vec<u8>,
    /// By ascending address within each range that was scanned.
    pub(super) places: Vec<Place>,
    places_max: usize,
    /// Places that found no room.
    pub(super) refused: u64,
}

impl<'a> Scanner<'a> {
    /// Finds at most `places_max` places.
    pub(super) fn new(layouts: &'a Layouts, places_max: usize) -> Self {
        Self {
            layouts,
            buffer: vec![0; CHUNK_BYTES],
            places: Vec::new(),
            places_max,
            refused: 0,
        }
    }

    /// Scans a range; `may_go_on` is asked before each chunk. Says how many bytes were scanned.
    pub(super) fn scan(
        &mut self,
        memory: &mut Memory,
        range: &Range<u64>,
        mut may_go_on: impl FnMut(u64) -> bool,
    ) -> Result<u64, MemoryError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut from = range.start;
        while from < range.end && may_go_on(from - range.start) {
            let len = usize::try_from(range.end - from).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            let read = memory.read(from, &mut buffer[..len])?;
            self.search(from, &buffer[..read]);
            // Where memory has gone meanwhile there is nothing to find.
            from += len as u64;
        }
        self.buffer = buffer;
        Ok(from.min(range.end) - range.start)
    }

    /// Notes the places in bytes that begin at `address`, which is a multiple of every alignment.
    fn search(&mut self, address: u64, bytes: &[u8]) {
        let (lowest, highest) = self.layouts.bounds();
        let width = highest - lowest;
        let (step, offset) = (self.layouts.alignment as usize, self.layouts.vtable_offset);
        // A header may begin before these bytes where it is not padded.
        let first = (offset % self.layouts.alignment) as usize;
        for (index, bytes) in bytes.get(first..).unwrap_or_default().chunks(step).enumerate() {
            let Some(word) = bytes.first_chunk().copied().map(u64::from_le_bytes) else {
                continue;
            };
            // One comparison for nearly every word.
            if word.wrapping_sub(lowest) > width {
                continue;
            }
            let at = address + (first + index * step) as u64;
            if let (Some(layout), Some(header)) = (self.layouts.index_of(word), at.checked_sub(offset)) {
                self.note(Place {
                    header,
                    layout: layout as u32,
                });
            }
        }
    }

    fn note(&mut self, place: Place) {
        if self.places.len() < self.places_max {
            self.places.push(place);
        } else {
            self.refused += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layout::tests::layouts;

    /// Words of memory, with vtables' addresses at some of them.
    fn bytes(words: usize, at: &[(usize, u64)]) -> Vec<u8> {
        let mut all = vec![0x6000_u64; words];
        for (index, word) in at {
            all[*index] = *word;
        }
        all.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn found(alignment: u64, bytes: &[u8], places_max: usize) -> (Vec<(u64, u32)>, u64) {
        let layouts = layouts(alignment);
        let mut scanner = Scanner::new(&layouts, places_max);
        scanner.search(0x10_0000, bytes);
        let places = scanner.places.iter().map(|place| (place.header, place.layout));
        (places.collect(), scanner.refused)
    }

    #[test]
    fn only_a_vtable_at_a_headers_offset_counts() {
        // Padded headers have it at the third of sixteen words.
        let memory = bytes(
            64,
            &[(2, 0x5000), (3, 0x5000), (18, 0x5080), (34, 0x5008), (50, 0x5000)],
        );
        let expected = vec![(0x10_0000, 0), (0x10_0080, 1), (0x10_0180, 0)];
        assert_eq!(found(128, &memory, 9), (expected.clone(), 0));
        assert_eq!(found(128, &memory, 2), (expected[..2].to_vec(), 1));
        // Others may have it anywhere, and may begin before these bytes.
        let memory = bytes(8, &[(0, 0x5000), (1, 0x5080), (7, 0x5000)]);
        let expected = vec![(0xf_fff0, 0), (0xf_fff8, 1), (0x10_0028, 0)];
        assert_eq!(found(8, &memory, 9), (expected, 0));
        assert_eq!(found(8, &memory[..3], 9), (Vec::new(), 0));
    }
}
