//! A process's executable mappings, in the form that the walk searches.
//!
//! In: executable regions (from `/proc/PID/maps`, read elsewhere) with the number of each one's image, and the arena.
//! Out: [`ProcessMappings`] and how many regions found no room.

use leakmon_ebpf::rows::{MAPPINGS_MAX, Mapping, ProcessMappings};
use zerocopy::FromZeros;

use super::arena::Arena;

/// An executable region of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// File offset of `start`; 0 for the vdso.
    pub file_offset: u64,
    /// Number of its image.
    pub image: u32,
}

/// The mappings of `regions` whose image has a table in `arena`, sorted. `generation` must differ from that of the
/// process's mappings before.
///
/// Returns as well how many were left out for want of room ([`MAPPINGS_MAX`]): the last ones given, so the important
/// ones (the program, libc) come first. A region that overlaps one before it in memory is left out too.
#[must_use]
pub fn pack(regions: &[Region], arena: &Arena, generation: u32) -> (ProcessMappings, usize) {
    let mut mappings = regions.iter().flat_map(|region| region_mappings(region, arena));
    let mut kept: Vec<Mapping> = mappings.by_ref().take(MAPPINGS_MAX).collect();
    let mut refused = mappings.count();
    kept.sort_by_key(|mapping| mapping.start);
    let mut packed = ProcessMappings::new_zeroed();
    packed.generation = generation;
    let mut end = 0;
    let mut slots = packed.mappings.iter_mut();
    for mapping in kept {
        if mapping.start < end {
            refused += 1;
        } else if let Some(slot) = slots.next() {
            end = mapping.start.saturating_add(u64::from(mapping.len));
            *slot = mapping;
            packed.len += 1;
        }
    }
    (packed, refused)
}

/// The parts of a region that segments of its image cover; usually one.
fn region_mappings<'a>(region: &'a Region, arena: &'a Arena) -> impl Iterator<Item = Mapping> + 'a {
    arena
        .segments(region.image)
        .unwrap_or_default()
        .iter()
        .filter_map(|segment| {
            let region_len = region.end.checked_sub(region.start)?;
            let region_end = region.file_offset.checked_add(region_len)?;
            let start = region.file_offset.max(segment.file_offset);
            let end = region_end.min(segment.file_offset.checked_add(segment.size)?);
            let len = end.checked_sub(start).filter(|&len| len > 0)?;
            Some(Mapping {
                start: region.start + (start - region.file_offset),
                file_offset: start,
                len: u32::try_from(len).ok()?,
                relative: u32::try_from(start - segment.file_offset).ok()?,
                page: segment.page,
                image: region.image,
            })
        })
}
