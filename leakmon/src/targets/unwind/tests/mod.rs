//! Tables and walks checked against other unwinders, on this process and on hostile images.

mod bare_code;
mod entries;
mod hostile;
mod lookup;
mod own_process;
mod placement;
mod remembered;
mod synthetic;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use leakmon_ebpf::rows::{PAGE_SHIFT, ProcessMappings, ROWS_PER_CHUNK, Row};
use procfs::process::{MMPermissions, MMapPath, Process};

use super::arena::Arena;
use super::mappings::{Region, pack};
use super::{SegmentRows, UnwindTable};

/// This process's executable regions with their images' bytes.
fn own_images() -> (Vec<Region>, Vec<(PathBuf, Vec<u8>)>) {
    let (mut regions, mut images, mut numbers) = (Vec::new(), Vec::new(), BTreeMap::new());
    for map in Process::myself().unwrap().maps().unwrap() {
        if !map.perms.contains(MMPermissions::EXECUTE) {
            continue;
        }
        let (start, end) = map.address;
        let (path, bytes) = match map.pathname {
            MMapPath::Path(path) => (path.clone(), std::fs::read(&path).unwrap()),
            MMapPath::Vdso => {
                let mut bytes = vec![0; (end - start) as usize];
                own_memory().read_exact_at(&mut bytes, start).unwrap();
                (PathBuf::from("[vdso]"), bytes)
            }
            _ => continue,
        };
        let image = *numbers.entry(path.clone()).or_insert_with(|| {
            images.push((path, bytes));
            images.len() as u32 - 1
        });
        regions.push(Region {
            start,
            end,
            file_offset: map.offset,
            image,
        });
    }
    (regions, images)
}

fn own_memory() -> File {
    File::open("/proc/self/mem").unwrap()
}

/// Everything a walk of this process needs.
fn own_tables() -> (Arena, ProcessMappings) {
    let (regions, images) = own_images();
    let mut arena = Arena::default();
    for ((path, bytes), image) in images.iter().zip(0..) {
        let table = UnwindTable::build(bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        arena.insert(image, &table).unwrap();
    }
    let (mappings, refused) = pack(&regions, &arena, 1);
    assert_eq!((mappings.len as usize, refused), (regions.len(), 0));
    (arena, mappings)
}

/// The row in force, by the plain definition.
fn row_at(segment: &SegmentRows, relative: u32) -> Row {
    segment.rows[segment.rows.partition_point(|row| row.pc <= relative) - 1]
}

/// The row in force, by the page index of the packed table, searched one by one.
fn packed_row_at(arena: &Arena, page: u32, relative: u32) -> Row {
    let page = arena.page(page + (relative >> PAGE_SHIFT)).unwrap();
    let chunk = arena.row_chunk(page.row() / ROWS_PER_CHUNK).unwrap();
    let start = (page.row() % ROWS_PER_CHUNK) as usize;
    let rows = &chunk[start..start + page.rows_len() as usize];
    *rows.iter().rev().find(|row| row.pc <= relative).unwrap()
}

/// What holds for every table, whatever it was built from.
fn assert_consistent(table: &UnwindTable) {
    let mut rows = 0;
    for segment in &table.segments {
        assert_eq!(segment.rows[0].pc, 0);
        assert!(segment.rows.is_sorted_by(|a, b| a.pc < b.pc), "addresses rise");
        assert!(segment.rows.iter().all(|row| u64::from(row.pc) < segment.size));
        assert_eq!(segment.pages().count() as u64, segment.size.div_ceil(256));
        assert!(
            segment
                .pages()
                .all(|(row, len)| (1..=256).contains(&len) && row + len <= segment.rows.len())
        );
        rows += segment.rows.len();
    }
    assert_eq!(rows, table.stats.rows);
}
