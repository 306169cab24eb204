//! How deep the tree of an image's debug information is.
//!
//! In: an image and its file. Out: whether blazesym may look for inlined functions in it, which it does by recursion:
//! some hundred kilobytes of nested entries would overflow its stack and end the daemon. It keeps nothing.
//!
//! The tree is that of DWARF 5, section 2.3 (and 7.5 for its form); gimli walks it, one unit in memory at a time.

use super::image::Image;
use gimli::{DebugAbbrev, DebugInfo, LittleEndian};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Levels that are allowed. A dev build with 135 MB of debug information has 38; blazesym needs less than a kilobyte
/// a level.
pub const LEVELS_MAX: isize = 1_000;
/// Bytes of one unit. Fat LTO gives units of a whole crate each; larger ones are not looked at.
const UNIT_BYTES_MAX: u64 = 64 << 20;
/// Bytes of all abbreviations: 0.4 MB in that dev build.
const ABBREVIATIONS_BYTES_MAX: u64 = 16 << 20;
/// Unit lengths from here on are no lengths; the last one says that 64 bits follow (DWARF 5, section 7.4).
const LENGTH_ESCAPES: u32 = 0xffff_fff0;

/// Whether no unit nests deeper than [`LEVELS_MAX`]. `false` too where that can't be told: a compressed or a broken
/// tree, units of 64-bit DWARF. Takes 0.2 s for 50 MB of `.debug_info`.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// One abbreviation: an inlined function with children and no attributes.
    const ABBREVIATION: [u8; 6] = [1, 0x1d, 1, 0, 0, 0];

    /// Whether a file of these two sections is accepted.
    fn accepts(info: &[u8], abbreviations: &[u8]) -> bool {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[info, abbreviations].concat()).unwrap();
        let (info, abbreviations) = (info.len() as u64, abbreviations.len() as u64);
        walk(&file, (0, info), (info, abbreviations)).is_some()
    }

    /// A unit (version 4, abbreviations at 0, addresses of 8 bytes) of entries nested so deep.
    fn unit(levels: usize) -> Vec<u8> {
        let entries = [vec![1; levels], vec![0; levels]].concat();
        let length = entries.len() as u32 + 7;
        [&length.to_le_bytes()[..], &[4, 0, 0, 0, 0, 0, 8], &entries].concat()
    }

    #[test]
    fn the_bound_holds_in_every_unit() {
        // The first entry is at level 0.
        let most = LEVELS_MAX as usize;
        for (units, accepted) in [
            (vec![], true),
            (vec![1], true),
            (vec![most, most], true),
            (vec![most + 2], false),
            (vec![1, 1, most + 2], false),
        ] {
            let info: Vec<u8> = units.iter().flat_map(|levels| unit(*levels)).collect();
            assert_eq!(accepts(&info, &ABBREVIATION), accepted, "{units:?}");
        }
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        let whole = unit(3);
        assert!(!accepts(&whole[..whole.len() - 1], &ABBREVIATION), "cut off");
        assert!(!accepts(&whole[..2], &ABBREVIATION), "no length");
        assert!(!accepts(&whole, &[2, 0x1d, 1, 0, 0, 0]), "no such abbreviation");
        assert!(!accepts(&[0xff; 40], &ABBREVIATION), "64-bit");
        assert!(!accepts(&[0; 4], &ABBREVIATION), "an empty unit");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut info in proptest::collection::vec(any::<u8>(), 11..200),
            abbreviations in proptest::collection::vec(0_u8..40, 0..60)) {
            let length = info.len() as u32 - 4;
            info[..4].copy_from_slice(&length.to_le_bytes());
            info[4..6].copy_from_slice(&[4, 0]);
            accepts(&info, &abbreviations);
        }
    }
}
