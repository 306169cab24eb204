//! The tables of all images in the chunked arrays that the BPF programs read.
//!
//! In: tables, each under its image's number. Out: where each segment's page index begins, and the chunks that have to
//! be written to the maps. It writes no map; it keeps a copy of what they hold.
//!
//! Order for the caller: write the chunks, rows before pages, then publish mappings that refer to them; withdraw all
//! mappings of an image before its table is removed.

use std::collections::{BTreeMap, BTreeSet};

use leakmon_ebpf::rows::{
    PAGE_CHUNKS_MAX, PAGES_PER_CHUNK, Page, ROW_CHUNKS_MAX, ROW_NUMBERS_MAX, ROWS_PER_CHUNK, ROWS_PER_PAGE_MAX, Row,
};
use zerocopy::{FromZeros, IntoBytes};

use super::{SegmentRows, UnwindTable};

/// Rows are given out in blocks of 4 KiB, in any order, so that freed tables leave no holes too small to use. No page's
/// rows straddle a block; filling up costs two rows in a hundred.
const ROWS_PER_BLOCK: u32 = 512;
const _: () = assert!(ROWS_PER_BLOCK >= ROWS_PER_PAGE_MAX && ROWS_PER_CHUNK.is_multiple_of(ROWS_PER_BLOCK));

/// Why a table was not placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArenaError {
    /// No room for its rows.
    #[error("no room for the unwind rows of image {image}: {free} rows are free; raise the row limit")]
    RowsFull {
        /// Number of the image.
        image: u32,
        /// Rows that were free before.
        free: u32,
    },
    /// No room for its page index in one piece.
    #[error("no room for the unwind index of image {image}: it needs {needed} entries in one piece")]
    PagesFull {
        /// Number of the image.
        image: u32,
        /// Entries that one of its segments needs.
        needed: u32,
    },
    /// The image has a table.
    #[error("image {0} has an unwind table already; remove it first")]
    Present(u32),
}

/// A segment of an image whose table is in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedSegment {
    /// File offset of its first byte.
    pub file_offset: u64,
    /// Bytes of the segment.
    pub size: u64,
    /// Index of its first page entry.
    pub page: u32,
}

/// A chunk that has changed since it was last written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkWrite<'a> {
    /// A value of the row map: index and bytes.
    Rows(u32, &'a [u8]),
    /// A value of the page map: index and bytes.
    Pages(u32, &'a [u8]),
}

#[derive(Debug, Default)]
struct Placed {
    segments: Vec<PlacedSegment>,
    blocks: Vec<u32>,
    pages: Vec<(u32, u32)>,
}

/// The chunked arrays. Holds at most its row and page limits, in user space as in the kernel; user space's copy grows
/// with use.
#[derive(Debug)]
pub struct Arena {
    images: BTreeMap<u32, Placed>,
    rows: Vec<Row>,
    pages: Vec<Page>,
    free_blocks: BTreeSet<u32>,
    /// Free page entries: first one to how many. Neighbours are always joined.
    free_pages: BTreeMap<u32, u32>,
    dirty_rows: BTreeSet<u32>,
    dirty_pages: BTreeSet<u32>,
    refused: u64,
    /// Room that an earlier daemon's mappings still refer to.
    reserved: Placed,
}

impl Default for Arena {
    fn default() -> Self {
        Self::new(ROW_CHUNKS_MAX, PAGE_CHUNKS_MAX)
    }
}

impl Arena {
    /// An empty arena for maps of `row_chunks` and `page_chunks` values; rows past [`ROW_NUMBERS_MAX`] are not used.
    #[must_use]
    pub fn new(row_chunks: u32, page_chunks: u32) -> Self {
        let row_chunks = row_chunks.min(ROW_NUMBERS_MAX / ROWS_PER_CHUNK);
        let pages_max = page_chunks.saturating_mul(PAGES_PER_CHUNK);
        Self {
            images: BTreeMap::new(),
            rows: Vec::new(),
            pages: Vec::new(),
            free_blocks: (0..row_chunks * (ROWS_PER_CHUNK / ROWS_PER_BLOCK)).collect(),
            free_pages: if pages_max == 0 {
                BTreeMap::new()
            } else {
                BTreeMap::from([(0, pages_max)])
            },
            dirty_rows: BTreeSet::new(),
            dirty_pages: BTreeSet::new(),
            refused: 0,
            reserved: Placed::default(),
        }
    }

    /// Uses none of these chunks until [`Self::release_reserved`]: an earlier arena's tables are in them. To be called while the
    /// arena is empty.
    pub fn reserve(&mut self, row_chunks: &[u32], page_chunks: &[u32]) {
        const BLOCKS: u32 = ROWS_PER_CHUNK / ROWS_PER_BLOCK;
        for chunk in row_chunks {
            for block in chunk * BLOCKS..(chunk + 1) * BLOCKS {
                if self.free_blocks.remove(&block) {
                    self.reserved.blocks.push(block);
                }
            }
        }
        for chunk in page_chunks {
            let (start, end) = (chunk * PAGES_PER_CHUNK, (chunk + 1) * PAGES_PER_CHUNK);
            let within = self.free_pages.range(..=start).next_back();
            let Some((free, len)) = within
                .map(|(free, len)| (*free, *len))
                .filter(|(free, len)| free + len >= end)
            else {
                continue;
            };
            self.free_pages.remove(&free);
            if free < start {
                self.free_pages.insert(free, start - free);
            }
            if end < free + len {
                self.free_pages.insert(end, free + len - end);
            }
            self.reserved.pages.push((start, PAGES_PER_CHUNK));
        }
    }

    /// Gives the reserved room free: no mapping refers to it any more.
    pub fn release_reserved(&mut self) {
        let reserved = std::mem::take(&mut self.reserved);
        self.give_back(&reserved);
    }

    /// Places the table of `image`.
    ///
    /// # Errors
    /// [`ArenaError`]; the arena is then as before, and [`Self::refused`] has risen.
    pub fn insert(&mut self, image: u32, table: &UnwindTable) -> Result<&[PlacedSegment], ArenaError> {
        if self.images.contains_key(&image) {
            return Err(ArenaError::Present(image));
        }
        let free = self.rows_free();
        let needed: usize = table.segments.iter().map(|segment| segment.rows.len()).sum();
        if needed > free as usize {
            self.refused += 1;
            return Err(ArenaError::RowsFull { image, free });
        }
        let mut placed = Placed::default();
        for segment in &table.segments {
            let result = match self.take_pages(segment.pages_len()) {
                None => Err(ArenaError::PagesFull {
                    image,
                    needed: segment.pages_len(),
                }),
                Some(page) => {
                    placed.pages.push((page, segment.pages_len()));
                    let place = PlacedSegment {
                        file_offset: segment.file_offset,
                        size: segment.size,
                        page,
                    };
                    placed.segments.push(place);
                    self.lay(segment, page, &mut placed.blocks)
                        .ok_or(ArenaError::RowsFull { image, free })
                }
            };
            if let Err(error) = result {
                self.give_back(&placed);
                self.refused += 1;
                return Err(error);
            }
        }
        Ok(&self.images.entry(image).or_insert(placed).segments)
    }

    /// Gives the room of an image's table back. Returns whether it had one.
    pub fn remove(&mut self, image: u32) -> bool {
        let Some(placed) = self.images.remove(&image) else {
            return false;
        };
        self.give_back(&placed);
        true
    }

    /// The segments of an image with a table.
    #[must_use]
    pub fn segments(&self, image: u32) -> Option<&[PlacedSegment]> {
        self.images.get(&image).map(|placed| placed.segments.as_slice())
    }

    /// The chunks that have to be written, rows first. [`Self::written`] forgets them.
    pub fn writes(&self) -> impl Iterator<Item = ChunkWrite<'_>> {
        let rows = self.dirty_rows.iter().filter_map(|&chunk| {
            let start = chunk as usize * ROWS_PER_CHUNK as usize;
            let rows = self.rows.get(start..start + ROWS_PER_CHUNK as usize)?;
            Some(ChunkWrite::Rows(chunk, rows.as_bytes()))
        });
        let pages = self.dirty_pages.iter().filter_map(|&chunk| {
            let start = chunk as usize * PAGES_PER_CHUNK as usize;
            let pages = self.pages.get(start..start + PAGES_PER_CHUNK as usize)?;
            Some(ChunkWrite::Pages(chunk, pages.as_bytes()))
        });
        rows.chain(pages)
    }

    /// Says that all of [`Self::writes`] have reached the maps.
    pub fn written(&mut self) {
        self.dirty_rows.clear();
        self.dirty_pages.clear();
    }

    /// Rows that are free, in whole blocks.
    #[must_use]
    pub fn rows_free(&self) -> u32 {
        self.free_blocks.len() as u32 * ROWS_PER_BLOCK
    }

    /// Page entries that are free.
    #[must_use]
    pub fn pages_free(&self) -> u32 {
        self.free_pages.values().sum()
    }

    /// Tables that found no room so far.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// Chunk `chunk` of the rows, as the map has it.
    pub(super) fn row_chunk(&self, chunk: u32) -> Option<&[Row]> {
        let start = (chunk as usize).checked_mul(ROWS_PER_CHUNK as usize)?;
        self.rows.get(start..start + ROWS_PER_CHUNK as usize)
    }

    /// Page entry `index`.
    pub(super) fn page(&self, index: u32) -> Option<Page> {
        self.pages.get(index as usize).copied()
    }

    /// Lays a segment's rows into free blocks and its index at `page`; `None` if the blocks run out.
    fn lay(&mut self, segment: &SegmentRows, page: u32, blocks: &mut Vec<u32>) -> Option<()> {
        // In the current block, source row `first + n` is at `base + n`, for all n below `laid`.
        let (mut base, mut first, mut laid) = (0, 0, 0);
        for ((row, rows_len), index) in segment.pages().zip(page..) {
            let last = row + rows_len;
            if blocks.is_empty() || last - first > ROWS_PER_BLOCK as usize {
                let block = self.free_blocks.pop_first()?;
                blocks.push(block);
                base = block * ROWS_PER_BLOCK;
                (first, laid) = (row, 0);
                self.touch_rows(base / ROWS_PER_CHUNK);
            }
            for source in segment.rows.get(first + laid..last).unwrap_or_default() {
                *self.rows.get_mut(base as usize + laid)? = *source;
                laid += 1;
            }
            *self.pages.get_mut(index as usize)? = Page::new(base + (row - first) as u32, rows_len as u32);
        }
        Some(())
    }

    fn touch_rows(&mut self, chunk: u32) {
        let needed = (chunk as usize + 1) * ROWS_PER_CHUNK as usize;
        if self.rows.len() < needed {
            self.rows.resize(needed, Row::new_zeroed());
        }
        self.dirty_rows.insert(chunk);
    }

    /// The first free run of `len` page entries.
    fn take_pages(&mut self, len: u32) -> Option<u32> {
        let (&start, &free) = self.free_pages.iter().find(|&(_, &free)| free >= len)?;
        self.free_pages.remove(&start);
        if free > len {
            self.free_pages.insert(start + len, free - len);
        }
        if len > 0 {
            let last_chunk = (start + len - 1) / PAGES_PER_CHUNK;
            let needed = (last_chunk as usize + 1) * PAGES_PER_CHUNK as usize;
            if self.pages.len() < needed {
                self.pages.resize(needed, Page::new_zeroed());
            }
            self.dirty_pages.extend(start / PAGES_PER_CHUNK..=last_chunk);
        }
        Some(start)
    }

    fn give_back(&mut self, placed: &Placed) {
        self.free_blocks.extend(&placed.blocks);
        for &(mut start, mut len) in &placed.pages {
            if len == 0 {
                continue;
            }
            if let Some((&before, &before_len)) = self.free_pages.range(..start).next_back()
                && before + before_len == start
            {
                self.free_pages.remove(&before);
                (start, len) = (before, before_len + len);
            }
            if let Some(after_len) = self.free_pages.remove(&(start + len)) {
                len += after_len;
            }
            self.free_pages.insert(start, len);
        }
    }
}
