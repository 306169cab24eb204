//! Broken and hostile images: no panic, bounded work.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::super::arena::Arena;
use super::super::{INSTRUCTION_BYTES_MAX, UnwindError, UnwindTable};
use super::synthetic::{Entries, USUAL_START};
use super::{assert_consistent, own_images};

#[test]
fn instructions_that_many_entries_share_are_executed_up_to_a_bound() {
    let mut entries = Entries::default();
    let common = entries.common(b"zR", &[USUAL_START.as_slice(), &[0; 4000]].concat());
    let executed_by_each = 4000 + 20;
    let needed = INSTRUCTION_BYTES_MAX as usize / executed_by_each + 100;
    for index in 0..needed {
        entries.function(common, 0x10_0000 + 16 * index as u32, 16, &[]);
    }
    let table = UnwindTable::build(&entries.image(0x20_0000, true)).unwrap();
    assert_consistent(&table);
    assert!(table.stats.cut);
    assert!(
        table.stats.entries < needed && table.stats.entries > needed - 400,
        "{}",
        table.stats.entries
    );
}

#[test]
fn too_many_segments_are_refused() {
    let mut entries = Entries::default();
    let common = entries.common(b"zR", &USUAL_START);
    entries.function(common, 0x1000, 16, &[]);
    let mut bytes = entries.image(0x2000, true);
    let header = bytes[64..120].to_vec();
    let at = bytes.len();
    bytes[32..40].copy_from_slice(&(at as u64).to_le_bytes());
    for (count, expected) in [(16u16, None), (17, Some(UnwindError::TooLarge("executable segments")))] {
        bytes.truncate(at);
        for _ in 0..count {
            bytes.extend_from_slice(&header);
        }
        bytes[56..58].copy_from_slice(&count.to_le_bytes());
        assert_eq!(UnwindTable::build(&bytes).err(), expected);
    }
}

static VDSO: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let (_, images) = own_images();
    images
        .into_iter()
        .find(|(path, _)| path.as_os_str() == "[vdso]")
        .unwrap()
        .1
});

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn a_mutated_image_gives_a_table_or_an_error(
        // Mutations gather in the headers and in `.eh_frame`, where they matter.
        changes in prop::collection::vec((0usize..4, any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = VDSO.clone();
        let regions = interesting(&bytes);
        for (region, index, value) in changes {
            let region = &regions[region];
            let at = region.start + index.index(region.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(table) = UnwindTable::build(&bytes) {
            assert_consistent(&table);
            let mut arena = Arena::new(2, 1);
            let _ = arena.insert(1, &table);
        }
    }

    #[test]
    fn any_entries_give_a_table(body in prop::collection::vec(any::<u8>(), 1..400), instructions in any::<Vec<u8>>()) {
        let mut entries = Entries::default();
        let common = entries.common(b"zR", &USUAL_START);
        entries.function(common, 0x1000, 0x100, &instructions);
        entries.0.extend(body);
        for has_sections in [true, false] {
            assert_consistent(&UnwindTable::build(&entries.image(0x2000, has_sections)).unwrap());
        }
    }
}

/// Header and program headers, section headers, `.eh_frame` with its index, everything.
fn interesting(bytes: &[u8]) -> [std::ops::Range<usize>; 4] {
    use object::{Object, ObjectSection};
    let file = object::File::parse(bytes).unwrap();
    let range = |name| {
        let (start, len) = file.section_by_name(name).unwrap().file_range().unwrap();
        start as usize..(start + len) as usize
    };
    let sections = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
    [
        0..0x200,
        sections..bytes.len().min(sections + 64 * 24),
        range(".eh_frame"),
        0..bytes.len(),
    ]
}
