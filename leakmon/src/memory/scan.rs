//! Words in memory that are the address of a vtable, where a header would have it.
//!
//! In: the layouts of an image, and the resident pages of a process. Out: what may be a task, read in the same moment in which
//! it was found, so that what is born or ends elsewhere meanwhile changes nothing. It compares nothing, so it also finds remains
//! of freed tasks that still look like one.

use super::{
    header::Reading,
    layout::Layouts,
    places::{self, Place},
    reader::{Memory, MemoryError},
};
use std::ops::Range;

/// Bytes read at once: large enough that system calls do not count, and a small part of a second-level cache, so that what the
/// target has in a cache that both use stays there.
const CHUNK_BYTES: usize = 1 << 17;

/// Reads resident ranges and finds tasks in them.
pub(super) struct Scanner<'a> {
    layouts: &'a Layouts,
    buffer: Vec<u8>,
    /// Of the chunk at hand, by ascending address: at most one a word.
    places: Vec<Place>,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(layouts: &'a Layouts) -> Self {
        Self {
            layouts,
            buffer: vec![0; CHUNK_BYTES],
            places: Vec::new(),
        }
    }

    /// Scans a range; `may_go_on` is asked before each chunk, and `tell` is told what was found. Says how many bytes were
    /// scanned.
    pub(super) fn scan(
        &mut self,
        memory: &mut Memory,
        range: &Range<u64>,
        mut may_go_on: impl FnMut(u64) -> bool,
        mut tell: impl FnMut(Place, &Reading),
    ) -> Result<u64, MemoryError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut from = range.start;
        while from < range.end && may_go_on(from - range.start) {
            let len = usize::try_from(range.end - from).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            let read = memory.read(from, &mut buffer[..len])?;
            self.search(from, &buffer[..read]);
            self.read_found(memory, from, &buffer[..read], &mut tell)?;
            // Where memory has gone meanwhile there is nothing to find.
            from += len as u64;
        }
        self.buffer = buffer;
        Ok(from.min(range.end) - range.start)
    }

    /// Scans ranges of which so much is read, before any of it is looked at, as `buffer` takes: that is nearly of one moment. Its
    /// length is a multiple of every alignment, and not zero.
    pub(super) fn scan_moment(
        &mut self,
        memory: &mut Memory,
        ranges: &[Range<u64>],
        mut buffer: Vec<u8>,
        mut tell: impl FnMut(Place, &Reading),
    ) -> Result<(), MemoryError> {
        let mut spans: Vec<(u64, Range<usize>)> = Vec::new();
        let mut used = 0;
        for range in ranges {
            let mut from = range.start;
            while from < range.end {
                if used == buffer.len() {
                    self.look_at(memory, &buffer, &mut spans, &mut tell)?;
                    used = 0;
                }
                let left = usize::try_from(range.end - from).unwrap_or(usize::MAX);
                let len = left.min(buffer.len() - used);
                let read = memory.read(from, &mut buffer[used..used + len])?;
                spans.push((from, used..used + read));
                used += len;
                from += len as u64;
            }
        }
        self.look_at(memory, &buffer, &mut spans, &mut tell)
    }

    /// Tells what is in spans of bytes that were read at these addresses.
    fn look_at(
        &mut self,
        memory: &mut Memory,
        buffer: &[u8],
        spans: &mut Vec<(u64, Range<usize>)>,
        tell: &mut impl FnMut(Place, &Reading),
    ) -> Result<(), MemoryError> {
        for (address, span) in spans.drain(..) {
            let bytes = &buffer[span];
            for (index, chunk) in bytes.chunks(CHUNK_BYTES).enumerate() {
                self.search(address + (index * CHUNK_BYTES) as u64, chunk);
                self.read_found(memory, address, bytes, tell)?;
            }
        }
        Ok(())
    }

    /// Reads the places at hand: from the bytes where they were found, and the few that reach beyond them from the process.
    fn read_found(
        &mut self,
        memory: &mut Memory,
        address: u64,
        bytes: &[u8],
        tell: &mut impl FnMut(Place, &Reading),
    ) -> Result<(), MemoryError> {
        let mut outside = Vec::new();
        for place in self.places.drain(..) {
            let layout = &self.layouts.types()[place.layout as usize];
            match places::pieces_within(layout, place, address, bytes) {
                Some((head, tail)) => {
                    if let Some(reading) = places::reading(self.layouts, layout, head, tail) {
                        tell(place, &reading);
                    }
                }
                None => outside.push(place),
            }
        }
        let readings = places::read(memory, self.layouts, &outside)?;
        for (place, reading) in outside.into_iter().zip(readings) {
            if let Some(reading) = reading {
                tell(place, &reading);
            }
        }
        Ok(())
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
                self.places.push(Place {
                    header,
                    layout: layout as u32,
                });
            }
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

    fn found(alignment: u64, bytes: &[u8]) -> Vec<(u64, u32)> {
        let layouts = layouts(alignment);
        let mut scanner = Scanner::new(&layouts);
        scanner.search(0x10_0000, bytes);
        let places = scanner.places.iter().map(|place| (place.header, place.layout));
        places.collect()
    }

    #[test]
    fn only_a_vtable_at_a_headers_offset_counts() {
        // Padded headers have it at the third of sixteen words.
        let memory = bytes(
            64,
            &[(2, 0x5000), (3, 0x5000), (18, 0x5080), (34, 0x5008), (50, 0x5000)],
        );
        assert_eq!(found(128, &memory), [(0x10_0000, 0), (0x10_0080, 1), (0x10_0180, 0)]);
        // Others may have it anywhere, and may begin before these bytes.
        let memory = bytes(8, &[(0, 0x5000), (1, 0x5080), (7, 0x5000)]);
        assert_eq!(found(8, &memory), [(0xf_fff0, 0), (0xf_fff8, 1), (0x10_0028, 0)]);
        assert_eq!(found(8, &memory[..3]), []);
    }

    /// A task of the first type where the layouts' tests have one.
    fn task(id: u64) -> [u64; 18] {
        let mut words = [0; 18];
        words[..6].copy_from_slice(&[3 << 6 | 8, 0, 0x5000, 1, 0x7f00_0000_1000, id]);
        words
    }

    #[test]
    fn tasks_are_read_as_they_are_found_wherever_a_chunk_ends() {
        let mut memory = vec![0_u64; (2 * CHUNK_BYTES) / 8];
        let mut put = |at: usize, id| memory[at / 8..at / 8 + 18].copy_from_slice(&task(id));
        put(0, 1);
        put(0x100, 2);
        // The header ends in the next chunk, and so does the trailer of another.
        put(CHUNK_BYTES - 0x18, 4);
        put(CHUNK_BYTES - 0x80 - 0x28, 3);
        put(2 * CHUNK_BYTES - 18 * 8, 5);
        let layouts = layouts(8);
        let start = memory.as_ptr() as u64;
        let mut own = Memory::open(std::process::id(), start).unwrap();
        let range = start..start + 2 * CHUNK_BYTES as u64;
        let mut scanner = Scanner::new(&layouts);
        let (mut found, mut again) = (Vec::new(), Vec::new());
        let scanned = scanner.scan(
            &mut own,
            &range,
            |_| true,
            |place, reading| found.push((place.header - start, reading.id)),
        );
        assert_eq!(scanned.unwrap(), 2 * CHUNK_BYTES as u64);
        found.sort_unstable();
        let at = [0, 0x100, CHUNK_BYTES - 0xa8, CHUNK_BYTES - 0x18, 2 * CHUNK_BYTES - 0x90].map(|at| at as u64);
        assert_eq!(found, at.into_iter().zip([1, 2, 3, 4, 5]).collect::<Vec<_>>());
        let halves = [range.start..range.start + 0x140, range.start + 0x140..range.end];
        let told = scanner.scan_moment(&mut own, &halves, vec![1; 0x150], |place, reading| {
            again.push((place.header - start, reading.id));
        });
        told.unwrap();
        again.sort_unstable();
        assert_eq!(again, found);
    }
}
