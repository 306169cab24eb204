//! How deep the tree of an image's debug information is.
//!
//! In: an image and its file. Out: whether blazesym may look for inlined functions in it, which it does by recursion: some
//! hundred kilobytes of nested entries would overflow its stack and end the daemon. It keeps nothing.
//!
//! The tree is that of DWARF 5, section 2.3 (and 7.5 for its form); gimli walks it, one unit in memory at a time.

use super::image::Image;
use gimli::{DebugAbbrev, DebugInfo, LittleEndian};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Levels that are allowed. A dev build with 135 MB of debug information has 38; blazesym needs less than a kilobyte a level.
pub const LEVELS_MAX: isize = 1_000;
/// Bytes of one unit. Fat LTO gives units of a whole crate each; larger ones are not looked at.
const UNIT_BYTES_MAX: u64 = 64 << 20;
/// Bytes of all abbreviations: 0.4 MB in that dev build.
const ABBREVIATIONS_BYTES_MAX: u64 = 16 << 20;
/// Unit lengths from here on are no lengths; the last one says that 64 bits follow (DWARF 5, section 7.4).
const LENGTH_ESCAPES: u32 = 0xffff_fff0;

/// Whether no unit nests deeper than [`LEVELS_MAX`]. `false` too where that can't be told: a compressed or a broken tree,
/// units of 64-bit DWARF. Takes 0.2 s for 50 MB of `.debug_info`.
#[must_use]
pub fn is_bounded(image: &Image, file: &File) -> bool {
    image
        .debug_tree
        .is_some_and(|[info, abbreviations]| walk(file, info, abbreviations).is_some())
}

fn walk(file: &File, info: (u64, u64), abbreviations: (u64, u64)) -> Option<()> {
    let abbreviations = read(file, abbreviations.0, abbreviations.1, ABBREVIATIONS_BYTES_MAX)?;
    let abbreviations = DebugAbbrev::new(&abbreviations, LittleEndian);
    let (mut at, size) = info;
    let end = at.checked_add(size)?;
    while at < end {
        let length = u32::from_le_bytes(read(file, at, 4, 4)?.try_into().ok()?);
        if length >= LENGTH_ESCAPES {
            return None;
        }
        let unit_bytes = u64::from(length) + 4;
        let unit = read(file, at, unit_bytes, UNIT_BYTES_MAX.min(end - at))?;
        walk_unit(&DebugInfo::new(&unit, LittleEndian), &abbreviations)?;
        at += unit_bytes;
    }
    Some(())
}

fn walk_unit<'data>(
    unit: &DebugInfo<gimli::EndianSlice<'data, LittleEndian>>,
    abbreviations: &DebugAbbrev<gimli::EndianSlice<'data, LittleEndian>>,
) -> Option<()> {
    let header = unit.units().next().ok()??;
    let abbreviations = header.abbreviations(abbreviations).ok()?;
    let mut entries = header.entries_raw(&abbreviations, None).ok()?;
    while !entries.is_empty() {
        if entries.next_depth() > LEVELS_MAX {
            return None;
        }
        if let Some(abbreviation) = entries.read_abbreviation().ok()? {
            entries.skip_attributes(abbreviation.attributes()).ok()?;
        }
    }
    Some(())
}

fn read(file: &File, offset: u64, len: u64, max: u64) -> Option<Vec<u8>> {
    let mut buffer = vec![0; usize::try_from(len).ok().filter(|_| len <= max)?];
    file.read_exact_at(&mut buffer, offset).ok()?;
    Some(buffer)
}
