//! Tables in the arena, mappings of a process.

use std::collections::BTreeMap;

use leakmon_ebpf::rows::{MAPPINGS_MAX, PAGES_PER_CHUNK, ROWS_PER_CHUNK, Row};
use proptest::prelude::*;

use super::super::arena::{Arena, ArenaError, ChunkWrite};
use super::super::mappings::{Region, pack};
use super::super::{SegmentRows, UnwindStats, UnwindTable};
use super::{packed_row_at, row_at};

/// A table of `rows` rows, `step` bytes apart, that can be told from another seed's.
fn table(rows: u32, step: u32, seed: u16) -> UnwindTable {
    let rows: Vec<Row> = (0..rows)
        .map(|row| Row {
            pc: row * step,
            kind: 1,
            frame_pointer: 0,
            offset: seed.wrapping_add(row as u16),
        })
        .collect();
    let size = rows.len() as u64 * u64::from(step);
    let segment = SegmentRows {
        vaddr: 0x1000,
        file_offset: 0x1000,
        size,
        rows,
    };
    UnwindTable {
        segments: vec![segment],
        stats: UnwindStats::default(),
    }
}

fn assert_readable(arena: &Arena, image: u32, table: &UnwindTable) {
    let placed = arena.segments(image).unwrap();
    for (segment, place) in table.segments.iter().zip(placed) {
        for relative in (0..segment.size as u32).step_by(29) {
            assert_eq!(packed_row_at(arena, place.page, relative), row_at(segment, relative));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn tables_come_and_go_without_touching_each_other(
        steps in prop::collection::vec((0u32..6, 1u32..6000, prop::sample::select(vec![1u32, 3, 16, 60])), 1..25)
    ) {
        let mut arena = Arena::new(2, 1);
        let (rows_free, pages_free) = (arena.rows_free(), arena.pages_free());
        let mut present: BTreeMap<u32, UnwindTable> = BTreeMap::new();
        for (number, (image, rows, step)) in steps.into_iter().enumerate() {
            prop_assert_eq!(arena.remove(image), present.remove(&image).is_some());
            let table = table(rows, step, number as u16 * 777);
            let before = (arena.rows_free(), arena.pages_free());
            if arena.insert(image, &table).is_ok() {
                present.insert(image, table);
            } else {
                prop_assert_eq!(before, (arena.rows_free(), arena.pages_free()));
            }
            for (image, table) in &present {
                assert_readable(&arena, *image, table);
            }
        }
        for image in present.into_keys() {
            prop_assert!(arena.remove(image));
        }
        prop_assert_eq!((rows_free, pages_free), (arena.rows_free(), arena.pages_free()));
    }
}

#[test]
fn a_full_arena_refuses_and_counts() {
    let mut arena = Arena::new(1, 1);
    let fits = table(ROWS_PER_CHUNK, 32, 1);
    arena.insert(1, &fits).unwrap();
    assert_eq!(arena.insert(1, &fits), Err(ArenaError::Present(1)));
    assert_eq!(
        arena.insert(2, &table(1, 256, 2)),
        Err(ArenaError::RowsFull { image: 2, free: 0 })
    );
    assert!(arena.remove(1));
    let long = table(1, (PAGES_PER_CHUNK + 1) * 256, 3);
    let needed = PAGES_PER_CHUNK + 1;
    assert_eq!(arena.insert(3, &long), Err(ArenaError::PagesFull { image: 3, needed }));
    arena.insert(4, &table(1, PAGES_PER_CHUNK * 256, 4)).unwrap();
    assert_eq!((arena.refused(), arena.pages_free()), (2, 0));
}

#[test]
fn only_changed_chunks_are_written_in_whole_values_rows_first() {
    let mut arena = Arena::new(4, 2);
    arena.insert(1, &table(ROWS_PER_CHUNK + 1, 32, 1)).unwrap();
    let writes: Vec<(bool, u32, usize)> = arena
        .writes()
        .map(|write| match write {
            ChunkWrite::Rows(index, bytes) => (true, index, bytes.len()),
            ChunkWrite::Pages(index, bytes) => (false, index, bytes.len()),
        })
        .collect();
    assert_eq!(writes, [(true, 0, 65536), (true, 1, 65536), (false, 0, 16384)]);
    arena.written();
    assert_eq!(arena.writes().count(), 0);
    arena.insert(2, &table(10, 32, 1)).unwrap();
    assert_eq!(arena.writes().count(), 2, "one chunk of rows, one of pages");
}

#[test]
fn mappings_are_sorted_cut_to_segments_and_bounded() {
    let mut arena = Arena::default();
    arena.insert(7, &table(100, 64, 1)).unwrap();
    let size = 6400;
    let region = |start: u64, file_offset| Region {
        start,
        end: start + 0x3000,
        file_offset,
        image: 7,
    };
    let regions = [
        region(0x9000, 0),
        region(0x20_0000, 0x2000),
        Region {
            image: 8,
            ..region(0x50_0000, 0)
        },
    ];
    let (packed, refused) = pack(&regions, &arena, 5);
    assert_eq!((packed.len, packed.generation, refused), (2, 5, 0));
    let first = packed.mappings[0];
    assert_eq!(
        (first.start, first.file_offset, first.relative, first.len),
        (0xa000, 0x1000, 0, size)
    );
    let second = packed.mappings[1];
    assert_eq!(
        (second.start, second.file_offset, second.relative),
        (0x20_0000, 0x2000, 0x1000)
    );
    assert_eq!(u64::from(second.len), 0x1000 + u64::from(size) - 0x2000);

    let many: Vec<Region> = (0..MAPPINGS_MAX as u64 + 3)
        .rev()
        .map(|at| region(0x10_0000 * (at + 1), 0x1000))
        .collect();
    let (packed, refused) = pack(&many, &arena, 6);
    assert_eq!((packed.len as usize, refused), (MAPPINGS_MAX, 3));
    assert!(packed.mappings.is_sorted_by_key(|mapping| mapping.start));
    let overlapping = [region(0x9000, 0), region(0xa800, 0x1000)];
    assert_eq!(pack(&overlapping, &arena, 7).1, 1);
}
