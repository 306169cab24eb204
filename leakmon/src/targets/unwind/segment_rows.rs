//! The rows of one executable segment, and their page index.
//!
//! In: sorted ranges of the whole image. Out: rows relative to the segment's start, equal neighbours merged, gaps
//! marked; for each page of text the rows to look at.

use std::ops;

use leakmon_ebpf::rows::{PAGE_SHIFT, Row};

use super::frame_entries::{Range, Rule};
use super::image_frames::Segment;
use super::{UnwindError, UnwindStats};

/// Functions begin at multiples of 16 bytes; what is between two is never executed, so a gap up to this gets no row
/// of its own. This saves a tenth of the rows.
const PADDING_BYTES_MAX: u64 = 15;

/// The rows of one executable segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentRows {
    /// Address of its first byte in the image, a multiple of the page size.
    pub vaddr: u64,
    /// File offset of its first byte, a multiple of the page size.
    pub file_offset: u64,
    /// Bytes from there to the segment's end in the file, at most [`super::TEXT_BYTES_MAX`].
    pub size: u64,
    /// Rows in ascending order of their address; the first one is at 0.
    pub rows: Vec<Row>,
}

impl SegmentRows {
    /// Lays the ranges that begin in `segment`, in at most `rows_max` rows. `ranges` are sorted by their start.
    ///
    /// Of two ranges that overlap, the later one holds from its start; one inside another is dropped and counted.
    pub(super) fn lay(
        segment: &Segment,
        ranges: &[Range],
        rows_max: usize,
        stats: &mut UnwindStats,
    ) -> Result<Self, UnwindError> {
        let mut rows = Rows {
            rows: Vec::new(),
            last: Rule::NONE,
        };
        rows.push(0, Rule::NONE);
        // Where the ranges laid so far end, relative to the segment.
        let mut end = 0u64;
        let first = ranges.partition_point(|range| range.start < segment.vaddr);
        for range in ranges.get(first..).unwrap_or_default() {
            let start = range.start - segment.vaddr;
            if start >= segment.size {
                break;
            }
            let range_end = (start + u64::from(range.len)).min(segment.size);
            if range_end <= end {
                stats.overlapping += 1;
                continue;
            }
            if start.saturating_sub(end) > PADDING_BYTES_MAX {
                rows.push(end, Rule::NONE);
            }
            rows.push(start, range.rule);
            end = range_end;
            if rows.rows.len() >= rows_max {
                return Err(UnwindError::TooLarge("rows"));
            }
        }
        if end < segment.size {
            rows.push(end, Rule::NONE);
        }
        Ok(Self {
            vaddr: segment.vaddr,
            file_offset: segment.file_offset,
            size: segment.size,
            rows: rows.rows,
        })
    }

    /// Page entries that the segment needs.
    #[must_use]
    pub fn pages_len(&self) -> u32 {
        u32::try_from(self.size.div_ceil(1 << PAGE_SHIFT)).unwrap_or(u32::MAX)
    }

    /// For each page of text the index of the row in force at its start, and how many rows to look at from there.
    pub fn pages(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let starts_by = |row: usize, address: u64| self.rows.get(row).is_some_and(|row| u64::from(row.pc) <= address);
        let mut row = 0;
        (0..u64::from(self.pages_len())).map(move |page| {
            let start = page << PAGE_SHIFT;
            while starts_by(row + 1, start) {
                row += 1;
            }
            let mut last = row;
            while starts_by(last + 1, start + (1 << PAGE_SHIFT) - 1) {
                last += 1;
            }
            (row, last - row + 1)
        })
    }
}

/// The stretches of a segment that no range covers, but for padding. `ranges` are sorted by their start.
pub(super) fn gaps(segment: &Segment, ranges: &[Range]) -> impl Iterator<Item = ops::Range<u64>> {
    let segment_end = segment.vaddr + segment.size;
    let first = ranges.partition_point(|range| range.start < segment.vaddr);
    let covered = ranges.get(first..).unwrap_or_default().iter();
    let covered = covered.map(|range| (range.start, range.start.saturating_add(u64::from(range.len))));
    let covered = covered.chain([(segment_end, segment_end)]);
    covered
        .scan(segment.vaddr, move |end, (start, next_end)| {
            let gap = *end..start.min(segment_end);
            *end = next_end.max(*end);
            Some(gap)
        })
        .filter(|gap| gap.end.saturating_sub(gap.start) > PADDING_BYTES_MAX)
}

struct Rows {
    rows: Vec<Row>,
    last: Rule,
}

impl Rows {
    /// Lets `rule` hold from `address` on. Addresses don't fall.
    fn push(&mut self, address: u64, rule: Rule) {
        // Segments are below 4 GiB (`TEXT_BYTES_MAX`).
        let pc = address as u32;
        if self.rows.last().is_some_and(|row| row.pc == pc) {
            self.rows.pop();
            self.last = self.rows.last().map_or(Rule::NONE, rule_of);
        }
        if self.rows.is_empty() || self.last != rule {
            self.rows.push(Row {
                pc,
                kind: rule.kind,
                frame_pointer: rule.frame_pointer,
                offset: rule.offset,
            });
            self.last = rule;
        }
    }
}

fn rule_of(row: &Row) -> Rule {
    Rule {
        kind: row.kind,
        frame_pointer: row.frame_pointer,
        offset: row.offset,
    }
}
