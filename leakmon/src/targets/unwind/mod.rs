//! Unwind tables: how to leave each frame of an image, from its `.eh_frame`, and from the code itself where that says nothing.
//!
//! In: an ELF image's bytes (a file, or the vdso as it lies in memory). Out: per executable segment sorted rows of 8
//! bytes and a page index ([`UnwindTable`]), laid out over the chunks of the BPF maps by [`arena`], and found per
//! process by [`mappings`]. No BPF calls, no `/proc`, no clock in here; [`walk`] is the same walk as the BPF program's,
//! over the same tables, for tests and for user space.
//!
//! The bytes are hostile: every count is bounded, every broken entry is skipped and counted by its cause.

pub mod arena;
mod bare_code;
mod frame_entries;
mod image_frames;
pub mod mappings;
mod segment_rows;
#[cfg(test)]
mod tests;
pub mod walk;
mod x86_64;

use bare_code::Gap;
use frame_entries::{Range, Rule};
use image_frames::{ImageFrames, Segment};
use object::ReadRef;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

pub use segment_rows::SegmentRows;

/// Rows of one image: ten times those of a 24 MB program; 32 MiB.
pub const ROWS_MAX: usize = 4 << 20;
/// Function entries of one image. A 24 MB program has 40,000, a browser about 600,000.
pub const ENTRIES_MAX: usize = 2 << 20;
/// Executable segments of one image; linkers make one, rarely two.
pub const SEGMENTS_MAX: usize = 16;
/// Bytes of all executable segments of one image together: 1 GiB, whose page index is 16 MiB.
pub const TEXT_BYTES_MAX: u64 = 1 << 30;
/// Bytes of call frame instructions executed for one image, each entry's shared ones included. About 50 bytes an
/// entry are usual, 2 MB for a 24 MB program. It bounds time: entries may share long instructions, so the size of the
/// file does not.
pub const INSTRUCTION_BYTES_MAX: u64 = 1 << 25;

/// Bytes of code without entries that are looked at in one image. musl's whole C library is less than 700 KiB.
pub const BARE_BYTES_MAX: u64 = 1 << 20;

/// With fewer bytes of such code nobody looks for what calls it: only the start of the program and of libraries.
const CALLED_BYTES_MIN: u64 = 4096;
/// Bytes of code of an image in which such calls are looked for, since they have to be in memory.
const CALLING_BYTES_MAX: u64 = 64 << 20;

/// Why an image has no unwind table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnwindError {
    /// The headers can't be parsed.
    #[error("not a readable 64-bit little-endian ELF image: {0}")]
    Elf(&'static str),
    /// No rules are known for the image's processor.
    #[error("no unwind rules for ELF machine {0}; only x86-64 (62) is supported")]
    Machine(u16),
    /// Nothing in the image is executable.
    #[error("the image has no executable segment")]
    NoText,
    /// The image has no `.eh_frame`, by section header or by `PT_GNU_EH_FRAME`; stacks through it need frame pointers.
    #[error("the image has no .eh_frame; build it with unwind tables or with frame pointers")]
    NoEntries,
    /// More than a bound of this module.
    #[error("the image has more {0} than the bound allows")]
    TooLarge(&'static str),
}

/// What building a table met; each count is of one image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnwindStats {
    /// Function entries (FDEs) read.
    pub entries: usize,
    /// Rows of the table, gaps included.
    pub rows: usize,
    /// Rows whose rule can't be expressed, so that a walk stops there.
    pub unsupported: usize,
    /// Of those, by cause: the CFA is relative to a register other than rsp and rbp.
    pub unsupported_register: usize,
    /// The CFA's offset is negative, odd or too great.
    pub unsupported_offset: usize,
    /// The CFA is an unknown expression.
    pub unsupported_expression: usize,
    /// The return address is not at CFA − 8.
    pub unsupported_return: usize,
    /// Rows that leave the caller's frame pointer unknown.
    pub frame_pointer_lost: usize,
    /// Entries with a length or a header that can't be parsed; the rest of the section is not read after a bad length.
    pub broken_entries: usize,
    /// Entries whose common part (CIE) is missing, broken or too long.
    pub broken_commons: usize,
    /// Entries whose instructions are broken; rows before the break are kept.
    pub broken_instructions: usize,
    /// Row ranges that lie outside the executable segments.
    pub outside: usize,
    /// Row ranges dropped because an earlier one covers them.
    pub overlapping: usize,
    /// Ranges of code without entries whose rule was reckoned from the code.
    pub reckoned: usize,
    /// Bytes of these ranges.
    pub reckoned_bytes: u64,
    /// Bytes of code without entries that were not looked at, because of [`BARE_BYTES_MAX`].
    pub unreckoned_bytes: u64,
    /// Bytes of code in which no calls of such code were looked for, because of a bound: less of that has rules.
    pub unsearched_bytes: u64,
    /// Whether [`INSTRUCTION_BYTES_MAX`] or [`ENTRIES_MAX`] ended the reading early.
    pub cut: bool,
}

/// The unwind table of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnwindTable {
    /// One for each executable segment, in the order of the program headers.
    pub segments: Vec<SegmentRows>,
    /// What building it met.
    pub stats: UnwindStats,
}

impl UnwindTable {
    /// Builds the table of an ELF image (`ELFCLASS64`, little endian), from the file's bytes or from an image in
    /// memory whose layout is the file's, as the vdso's is.
    ///
    /// Total: any bytes give a table or an error, in time and memory bounded by the constants of this module.
    ///
    /// # Errors
    /// [`UnwindError`]; broken entries are no error but counted in [`UnwindStats`].
    pub fn build(bytes: &[u8]) -> Result<Self, UnwindError> {
        Self::build_from(bytes)
    }

    /// As [`Self::build`], from data of which only the headers and `.eh_frame` are read, code without entries, and where there is
    /// much of that the code that may call it.
    ///
    /// # Errors
    /// [`UnwindError`].
    pub fn build_from<'data, R: ReadRef<'data>>(data: R) -> Result<Self, UnwindError> {
        let image = ImageFrames::parse(data)?;
        let mut stats = UnwindStats::default();
        let mut ranges = frame_entries::read(&image, &mut stats)?;
        ranges.sort_unstable_by_key(|range| (range.start, range.len));
        stats.outside = ranges
            .iter()
            .filter(|range| !image.segments.iter().any(|segment| segment.contains(range.start)))
            .count();
        reckon_gaps(data, &image, &mut ranges, &mut stats);
        let mut segments = Vec::with_capacity(image.segments.len());
        for segment in &image.segments {
            let rows = SegmentRows::lay(segment, &ranges, ROWS_MAX - stats.rows, &mut stats)?;
            stats.rows += rows.rows.len();
            segments.push(rows);
        }
        stats.unsupported = stats.unsupported_register
            + stats.unsupported_offset
            + stats.unsupported_expression
            + stats.unsupported_return;
        Ok(Self { segments, stats })
    }

    /// The segment, if any, whose file range holds `file_offset`.
    #[must_use]
    pub fn segment_at(&self, file_offset: u64) -> Option<&SegmentRows> {
        self.segments.iter().find(|segment| {
            file_offset
                .checked_sub(segment.file_offset)
                .is_some_and(|within| within < segment.size)
        })
    }
}

/// Adds the ranges of a gap, and between them what has no rule: else it would be taken for padding, which gets the rule before it.
fn add_with_rests(ranges: &mut Vec<Range>, gap: &std::ops::Range<u64>, reckoned: Vec<Range>) {
    let mut end = gap.start;
    let rest = |from: u64, to: u64| {
        let len = u32::try_from(to.saturating_sub(from)).unwrap_or(u32::MAX);
        (len > 0).then_some(Range {
            start: from,
            len,
            rule: Rule::NONE,
        })
    };
    for range in reckoned {
        ranges.extend(rest(end, range.start));
        end = range.start + u64::from(range.len);
        ranges.push(range);
    }
    ranges.extend(rest(end, gap.end));
}

/// Adds to the sorted ranges those of code that none of them covers.
fn reckon_gaps<'data, R: ReadRef<'data>>(
    data: R,
    image: &ImageFrames<'_>,
    ranges: &mut Vec<Range>,
    stats: &mut UnwindStats,
) {
    let mut left = BARE_BYTES_MAX;
    let mut gaps = Vec::new();
    for segment in &image.segments {
        for gap in segment_rows::gaps(segment, ranges) {
            match left.checked_sub(gap.end - gap.start) {
                Some(rest) => {
                    left = rest;
                    gaps.push(gap);
                }
                None => stats.unreckoned_bytes += gap.end - gap.start,
            }
        }
    }
    gaps.sort_by_key(|gap| gap.start);
    let bytes_at = |segment: &Segment, place: &std::ops::Range<u64>| {
        let offset = segment.file_offset + (place.start - segment.vaddr);
        data.read_bytes_at(offset, place.end - place.start).ok()
    };
    let mut called = BTreeSet::new();
    let mut to_search = CALLING_BYTES_MAX;
    // Usual programs have a few bytes in which nothing is called.
    let is_worth_it = BARE_BYTES_MAX - left >= CALLED_BYTES_MIN;
    for segment in image.segments.iter().filter(|_| is_worth_it) {
        let Some(rest) = to_search.checked_sub(segment.size) else {
            stats.unsearched_bytes += segment.size;
            continue;
        };
        to_search = rest;
        let whole = segment.vaddr..segment.vaddr + segment.size;
        let bytes = bytes_at(segment, &whole).unwrap_or_default();
        called.extend(bare_code::calls_into(bytes, segment.vaddr, &gaps));
    }
    for gap in &gaps {
        let Some(segment) = image.segments.iter().find(|segment| segment.contains(gap.start)) else {
            continue;
        };
        let reckoned = bare_code::reckon(Gap {
            address: gap.start,
            bytes: bytes_at(segment, gap).unwrap_or_default(),
            follows_function: gap.start != segment.vaddr,
            entry_point: image.entry_point,
            called: &called,
        });
        stats.reckoned += reckoned.len();
        stats.reckoned_bytes += reckoned.iter().map(|range| u64::from(range.len)).sum::<u64>();
        add_with_rests(ranges, gap, reckoned);
    }
    ranges.sort_by_key(|range| (range.start, range.len));
}
