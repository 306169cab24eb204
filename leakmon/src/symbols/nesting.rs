//! How deep the tree of an image's debug information is, and how often it would have to be read.
//!
//! In: an image and its file. Out: what blazesym may do with it ([`Tree`]). It looks for inlined functions by recursion:
//! some hundred kilobytes of nested entries would overflow its stack and end the daemon. It parses the abbreviations of
//! every unit and keeps the ranges of every entry: a megabyte whose units refer to one long table, or to one long list,
//! would take minutes or gigabytes. It keeps nothing.
//!
//! The tree is that of DWARF 5, section 2.3 (and 7.5 for its form); gimli walks it, one unit in memory at a time.

use super::image::{Image, TREE};
use gimli::{
    Abbreviations, AttributeSpecification, AttributeValue, DebugAbbrev, DebugAbbrevOffset, DebugInfo, DebugRanges,
    DebugRngLists, DebugRngListsBase, DwarfFileType, Encoding, EndianSlice, LittleEndian, RangeLists, RangeListsOffset,
    Reader as _,
};
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
/// Bytes of a section of ranges: 7 MB in that dev build.
const RANGES_BYTES_MAX: u64 = 64 << 20;
/// Ranges of all entries together, each counted as often as it is referred to: 0.5 million in that dev build. blazesym
/// keeps up to 40 bytes for each.
const RANGES_MAX: u64 = 2 << 20;
/// Attributes by which an entry has many ranges.
const OF_RANGES: [gimli::DwAt; 2] = [gimli::DW_AT_ranges, gimli::DW_AT_rnglists_base];
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
    /// Nothing: its abbreviations or ranges exceed the bounds of this module.
    Costly,
}

impl Tree {
    /// Takes 0.2 s for 50 MB of `.debug_info`.
    #[must_use]
    pub fn of(image: &Image, file: &File) -> Self {
        match image.debug_tree {
            Some(sections) => walk(file, sections).unwrap_or(Self::Deep),
            None => Self::Deep,
        }
    }
}

/// `None` where the tree is broken.
fn walk(file: &File, sections: [(u64, u64); TREE.len()]) -> Option<Tree> {
    let [info, abbreviations, ranges, lists] = sections;
    if abbreviations.1 > ABBREVIATIONS_BYTES_MAX || ranges.1.max(lists.1) > RANGES_BYTES_MAX {
        return Some(Tree::Costly);
    }
    let ranges = read(file, ranges.0, ranges.1, RANGES_BYTES_MAX)?;
    let lists = read(file, lists.0, lists.1, RANGES_BYTES_MAX)?;
    let lists = RangeLists::new(
        DebugRanges::new(&ranges, LittleEndian),
        DebugRngLists::new(&lists, LittleEndian),
    );
    let mut ranges = Ranges {
        lists,
        left: RANGES_MAX,
    };
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
        match unit.and_then(|unit| walk_unit(&unit, &mut tables, &mut ranges)) {
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

fn walk_unit(unit: &[u8], tables: &mut Tables<'_>, ranges: &mut Ranges<'_>) -> Option<Tree> {
    let header = DebugInfo::new(unit, LittleEndian).units().next().ok()??;
    let abbreviations = match tables.at(header.debug_abbrev_offset()) {
        Some(abbreviations) => abbreviations.as_ref()?,
        None => return Some(Tree::Costly),
    };
    let mut entries = header.entries_raw(abbreviations, None).ok()?;
    let encoding = header.encoding();
    let mut base = DebugRngListsBase::default_for_encoding_and_file(encoding, DwarfFileType::Main);
    while !entries.is_empty() {
        if entries.next_depth() > LEVELS_MAX {
            return Some(Tree::Deep);
        }
        let Some(abbreviation) = entries.read_abbreviation().ok()? else {
            continue;
        };
        let attributes = abbreviation.attributes();
        let of_ranges = |attribute: &AttributeSpecification| OF_RANGES.contains(&attribute.name());
        if !attributes.iter().any(of_ranges) {
            entries.skip_attributes(attributes).ok()?;
            continue;
        }
        let mut list = None;
        for attribute in attributes {
            let attribute = entries.read_attribute(*attribute).ok()?;
            match (attribute.name(), attribute.value()) {
                (gimli::DW_AT_rnglists_base, AttributeValue::DebugRngListsBase(own)) => base = own,
                (gimli::DW_AT_ranges, value) => list = Some(value),
                _ => {}
            }
        }
        if list.is_some_and(|list| !ranges.count(&list, base, encoding)) {
            return Some(Tree::Costly);
        }
    }
    Some(Tree::Shallow)
}

/// The lists of ranges that entries refer to, and how many more may be read.
struct Ranges<'a> {
    lists: RangeLists<EndianSlice<'a, LittleEndian>>,
    left: u64,
}

impl Ranges<'_> {
    /// Counts a list, up to where it is broken; says whether it is within the bound.
    fn count(
        &mut self,
        list: &AttributeValue<EndianSlice<'_, LittleEndian>>,
        base: DebugRngListsBase,
        encoding: Encoding,
    ) -> bool {
        let offset = match *list {
            AttributeValue::RangeListsRef(offset) => Some(RangeListsOffset(offset.0)),
            AttributeValue::DebugRngListsIndex(index) => self.lists.get_offset(encoding, base, index).ok(),
            _ => None,
        };
        let Some(mut ranges) = offset.and_then(|offset| self.lists.raw_ranges(offset, encoding).ok()) else {
            return true;
        };
        while let Ok(Some(_)) = ranges.next() {
            let Some(left) = self.left.checked_sub(1) else {
                return false;
            };
            self.left = left;
        }
        true
    }
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
        walk(&file, [(0, info), (info, abbreviations), (0, 0), (0, 0)]) == Some(Tree::Shallow)
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
            walk(&file, [(0, info), (info, abbreviations), (0, 0), (0, 0)])
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

    #[test]
    fn ranges_are_counted_as_often_as_they_are_referred_to() {
        // A unit of one entry with DW_AT_ranges: DW_FORM_sec_offset, or DW_FORM_rnglistx.
        let (abbreviations, indexed) = ([1, 0x11, 0, 0x55, 0x17, 0, 0, 0], [1, 0x11, 0, 0x55, 0x23, 0, 0, 0]);
        let old = [
            [1_u64.to_le_bytes(), 2_u64.to_le_bytes()].concat().repeat(1 << 10),
            vec![0; 16],
        ]
        .concat();
        // One offset, then pairs of offsets (DW_RLE_offset_pair).
        let new = [&[4, 0, 0, 0][..], &[4, 1, 2].repeat(1 << 10), &[0]].concat();
        let modern = [&10_u32.to_le_bytes()[..], &[5, 0, 1, 8, 0, 0, 0, 0, 1, 0]].concat();
        let classic = referring(0, &[1, 0, 0, 0, 0]);
        let most = (RANGES_MAX >> 10) as usize;
        for (unit, abbreviations, ranges, at) in [(classic, abbreviations, old, 2), (modern, indexed, new, 3)] {
            for (units, expected) in [(most, Tree::Shallow), (most + 1, Tree::Costly)] {
                let info = unit.repeat(units);
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&[&info[..], &abbreviations, &ranges].concat()).unwrap();
                let mut sections = [(0, info.len() as u64), (info.len() as u64, 8), (0, 0), (0, 0)];
                sections[at] = (info.len() as u64 + 8, ranges.len() as u64);
                assert_eq!(walk(&file, sections), Some(expected), "section {at}, {units} units");
            }
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
