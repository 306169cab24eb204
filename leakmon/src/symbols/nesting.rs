//! How deep the tree of an image's debug information is, and how often it would have to be read.
//!
//! In: an image and its file. Out: what blazesym may do with it ([`Tree`]). It looks for inlined functions by recursion:
//! some hundred kilobytes of nested entries would overflow its stack and end the daemon. It parses the abbreviations of
//! every unit: a megabyte whose units begin at different places of one long table would take minutes. It keeps nothing.
//!
//! The tree is that of DWARF 5, section 2.3 (and 7.5 for its form); gimli walks it, one unit in memory at a time.

use super::image::Image;
use gimli::{Abbreviations, DebugAbbrev, DebugAbbrevOffset, DebugInfo, EndianSlice, LittleEndian, Reader as _};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Levels that are allowed. A dev build with 135 MB of debug information has 38; blazesym needs less than a kilobyte
/// a level.
pub const LEVELS_MAX: isize = 1_000;
/// Bytes of one unit. Fat LTO gives units of a whole crate each; larger ones are not looked at.
const UNIT_BYTES_MAX: u64 = 64 << 20;
/// Bytes of the section of abbreviations, and of all tables in it that units refer to: 0.7 MB in that dev build. Parsed,
/// a table takes up to thirty times its bytes.
const ABBREVIATIONS_BYTES_MAX: u64 = 4 << 20;
/// Attributes of one entry; compilers write some twenty. Many entries may refer to one, which is then read for each, and
/// an attribute may take no bytes there.
const ATTRIBUTES_MAX: usize = 256;
/// Unit lengths from here on are no lengths; the last one says that 64 bits follow (DWARF 5, section 7.4).
const LENGTH_ESCAPES: u32 = 0xffff_fff0;

/// What blazesym may do with debug information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// Everything.
    Shallow,
    /// All but looking for inlined functions: a unit nests deeper than [`LEVELS_MAX`], or that can't be told of a
    /// compressed or a broken tree, or of a unit that is too large to be looked at.
    Deep,
    /// Nothing: its abbreviations exceed the bounds of this module.
    Costly,
}

impl Tree {
    /// Takes 0.2 s for 50 MB of `.debug_info`.
    #[must_use]
    pub fn of(image: &Image, file: &File) -> Self {
        match image.debug_tree {
            Some([info, abbreviations]) => walk(file, info, abbreviations).unwrap_or(Self::Deep),
            None => Self::Deep,
        }
    }
}

/// `None` where the tree is broken.
fn walk(file: &File, info: (u64, u64), abbreviations: (u64, u64)) -> Option<Tree> {
    if abbreviations.1 > ABBREVIATIONS_BYTES_MAX {
        return Some(Tree::Costly);
    }
    let section = read(file, abbreviations.0, abbreviations.1, ABBREVIATIONS_BYTES_MAX)?;
    let mut tables = Tables {
        section: &section,
        left: ABBREVIATIONS_BYTES_MAX,
        parsed: HashMap::new(),
    };
    let (mut at, size) = info;
    let end = at.checked_add(size)?;
    let mut tree = Tree::Shallow;
    while at < end {
        let unit_bytes = unit_bytes(file, at)?;
        let next = at.checked_add(unit_bytes).filter(|next| *next <= end)?;
        let unit = read(file, at, unit_bytes, UNIT_BYTES_MAX);
        match unit.and_then(|unit| walk_unit(&unit, &mut tables)) {
            Some(Tree::Shallow) => {}
            Some(Tree::Costly) => return Some(Tree::Costly),
            // The units behind it may be costly.
            Some(Tree::Deep) | None => tree = Tree::Deep,
        }
        at = next;
    }
    Some(tree)
}

/// Bytes of a unit, its length included.
fn unit_bytes(file: &File, at: u64) -> Option<u64> {
    match u32::from_le_bytes(read(file, at, 4, 4)?.try_into().ok()?) {
        u32::MAX => u64::from_le_bytes(read(file, at.checked_add(4)?, 8, 8)?.try_into().ok()?).checked_add(12),
        escape if escape >= LENGTH_ESCAPES => None,
        length => Some(u64::from(length) + 4),
    }
}

fn walk_unit(unit: &[u8], tables: &mut Tables<'_>) -> Option<Tree> {
    let header = DebugInfo::new(unit, LittleEndian).units().next().ok()??;
    let abbreviations = match tables.at(header.debug_abbrev_offset()) {
        Some(abbreviations) => abbreviations.as_ref()?,
        None => return Some(Tree::Costly),
    };
    let mut entries = header.entries_raw(abbreviations, None).ok()?;
    while !entries.is_empty() {
        if entries.next_depth() > LEVELS_MAX {
            return Some(Tree::Deep);
        }
        if let Some(abbreviation) = entries.read_abbreviation().ok()? {
            entries.skip_attributes(abbreviation.attributes()).ok()?;
        }
    }
    Some(Tree::Shallow)
}

/// The tables of abbreviations that units refer to, each parsed once.
struct Tables<'a> {
    section: &'a [u8],
    /// Bytes of tables that may still be parsed.
    left: u64,
    parsed: HashMap<usize, Option<Abbreviations>>,
}

impl Tables<'_> {
    /// The table at an offset, `Some(None)` if it is broken. `None` where the bounds are exceeded.
    fn at(&mut self, offset: DebugAbbrevOffset) -> Option<&Option<Abbreviations>> {
        if !self.parsed.contains_key(&offset.0) {
            let (bytes, attributes) = extent(self.section.get(offset.0..).unwrap_or_default());
            // A table that is broken from the start has to be looked up as well.
            self.left = self.left.checked_sub(bytes.max(1))?;
            if attributes > ATTRIBUTES_MAX {
                return None;
            }
            let parsed = DebugAbbrev::new(self.section, LittleEndian).abbreviations(offset).ok();
            self.parsed.insert(offset.0, parsed);
        }
        self.parsed.get(&offset.0)
    }
}

/// Bytes of the table, to its end or to where it is broken, and the most attributes of one of its entries. Form: DWARF 5,
/// section 7.5.3.
fn extent(table: &[u8]) -> (u64, usize) {
    let mut rest = EndianSlice::new(table, LittleEndian);
    let mut most = 0;
    let mut read = || -> gimli::Result<()> {
        while rest.read_uleb128()? != 0 {
            rest.read_uleb128()?;
            rest.read_u8()?;
            let mut attributes = 0;
            while let (name, form) = (rest.read_uleb128()?, rest.read_uleb128()?)
                && (name, form) != (0, 0)
            {
                if form == u64::from(gimli::DW_FORM_implicit_const.0) {
                    rest.read_sleb128()?;
                }
                attributes += 1;
                most = most.max(attributes);
            }
        }
        Ok(())
    };
    // What is broken is read up to there by others, too.
    let _ = read();
    ((table.len() - rest.len()) as u64, most)
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
        walk(&file, (0, info), (info, abbreviations)) == Some(Tree::Shallow)
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

    /// Entries without children and attributes, with codes from 1 on.
    fn table(entries: u64) -> Vec<u8> {
        let mut table = Vec::new();
        for code in 1..=entries {
            table.extend([
                code as u8 | 0x80,
                (code >> 7) as u8 | 0x80,
                (code >> 14) as u8,
                0x1d,
                0,
                0,
                0,
            ]);
        }
        [table, vec![0]].concat()
    }

    /// A unit of one entry, whose abbreviations are at an offset.
    fn referring(offset: u32, entry: &[u8]) -> Vec<u8> {
        let length = entry.len() as u32 + 7;
        [&length.to_le_bytes()[..], &[4, 0], &offset.to_le_bytes(), &[8], entry].concat()
    }

    #[test]
    fn tables_are_parsed_once_and_up_to_a_bound() {
        let file_of = |units: &[Vec<u8>], abbreviations: &[u8]| {
            let info = units.concat();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[&info, abbreviations].concat()).unwrap();
            let (info, abbreviations) = (info.len() as u64, abbreviations.len() as u64);
            walk(&file, (0, info), (info, abbreviations))
        };
        let entries = 100_000;
        let table = table(entries);
        let most = ABBREVIATIONS_BYTES_MAX as usize / table.len();
        let first = referring(0, &[0x81, 0x80, 0]);
        // One table for all units, as after merging.
        assert_eq!(file_of(&vec![first; 20_000], &table), Some(Tree::Shallow));
        // Another suffix of it for each unit.
        let suffixes = |units: usize| -> Vec<Vec<u8>> {
            let codes = (0..units).map(|index| index as u64 + 1);
            let unit = |code: u64| {
                referring(
                    7 * (code as u32 - 1),
                    &[code as u8 | 0x80, (code >> 7) as u8 | 0x80, (code >> 14) as u8],
                )
            };
            codes.map(unit).collect()
        };
        assert_eq!(file_of(&suffixes(most), &table), Some(Tree::Shallow));
        assert_eq!(file_of(&suffixes(most + 1), &table), Some(Tree::Costly));
        assert_eq!(
            file_of(&[unit(most * 700)], &vec![0; ABBREVIATIONS_BYTES_MAX as usize + 1]),
            Some(Tree::Costly)
        );
        // Entries with attributes that take no bytes.
        for (attributes, expected) in [(ATTRIBUTES_MAX, Tree::Shallow), (ATTRIBUTES_MAX + 1, Tree::Costly)] {
            let pairs = [0x3f, 0x19].repeat(attributes);
            let table = [&[1, 0x34, 0][..], &pairs, &[0, 0, 0]].concat();
            assert_eq!(file_of(&[referring(0, &[1])], &table), Some(expected));
        }
        // What can't be parsed is not parsed for each unit again.
        assert_eq!(file_of(&[referring(0, &[1])], &[1, 0x80]), Some(Tree::Deep));
        // What follows a unit of 64-bit DWARF, or a broken one, is looked at.
        let wide = [&[0xff; 4][..], &12_u64.to_le_bytes(), &[4, 0], &[0; 8], &[8, 1]].concat();
        let broken = referring(0, &[2]);
        for first in [wide, broken] {
            let units = [vec![first], suffixes(most + 1)].concat();
            assert_eq!(file_of(&units, &table), Some(Tree::Costly));
        }
    }

    proptest! {
        #[test]
        fn an_extent_is_within_the_table(table in proptest::collection::vec(0_u8..40, 0..60)) {
            prop_assert!(extent(&table).0 <= table.len() as u64);
        }

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
