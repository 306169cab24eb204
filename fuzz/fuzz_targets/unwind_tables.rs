//! Any bytes, made into an unwind table; and the walk over it, on a stack that is as hostile as the table.
//!
//! In: an ELF image, or what was one. Checked: no panic, tables that the BPF program may search, and a walk that ends.
#![no_main]

use leakmon::targets::unwind::arena::Arena;
use leakmon::targets::unwind::mappings::{Region, pack};
use leakmon::targets::unwind::walk::{Registers, walk};
use leakmon::targets::unwind::{ROWS_MAX, UnwindTable};
use leakmon_ebpf::abi::FRAMES_MAX;
use libfuzzer_sys::fuzz_target;

/// Where segments are mapped, each at its own multiple.
const MAPPED_AT: u64 = 0x5555_0000_0000;
const IMAGE: u32 = 1;
/// Chunks of the arena: 64 Ki rows and the index of 8 MiB, so that it can be full.
const CHUNKS: u32 = 8;
/// Addresses of each segment at which a walk begins.
const WALKS: u64 = 8;

fuzz_target!(|bytes: &[u8]| {
    let Ok(table) = UnwindTable::build(bytes) else { return };
    check(&table);
    let mut arena = Arena::new(CHUNKS, CHUNKS);
    let free = arena.rows_free();
    if arena.insert(IMAGE, &table).is_err() {
        assert_eq!(arena.rows_free(), free, "a refused table leaves nothing behind");
        return;
    }
    let regions: Vec<Region> = (1..)
        .zip(&table.segments)
        .map(|(number, segment)| {
            let start = MAPPED_AT * number;
            let (end, file_offset) = (start + segment.size, segment.file_offset);
            Region {
                start,
                end,
                file_offset,
                image: IMAGE,
            }
        })
        .collect();
    let (mappings, _) = pack(&regions, &arena, 1);
    for region in &regions {
        for index in 0..WALKS {
            let pc = region.start + (region.end - region.start) / WALKS * index;
            let registers = Registers {
                pc,
                sp: 0x7ff0_0000_0000,
                bp: 0x7ff0_0000_0040,
            };
            let walked = walk(&arena, &mappings, registers, |address| {
                Some(word(bytes, region, address))
            });
            assert!((1..=FRAMES_MAX).contains(&walked.frames.len()));
            assert!(walked.words.len() <= FRAMES_MAX * 8, "a frame reads a handful of words");
        }
    }
    assert!(arena.remove(IMAGE));
    assert_eq!(arena.rows_free(), free);
});

/// What holds for every table, whatever it was built from.
fn check(table: &UnwindTable) {
    let mut rows = 0;
    for segment in &table.segments {
        assert_eq!(segment.rows[0].pc, 0);
        assert!(
            segment.rows.is_sorted_by(|one, next| one.pc < next.pc),
            "addresses rise"
        );
        assert!(segment.rows.iter().all(|row| u64::from(row.pc) < segment.size));
        let pages = segment.pages().inspect(|(row, len)| {
            assert!((1..=256).contains(len) && row + len <= segment.rows.len());
        });
        assert_eq!(pages.count() as u64, u64::from(segment.pages_len()));
        rows += segment.rows.len();
    }
    assert!(rows == table.stats.rows && rows <= ROWS_MAX + 2 * table.segments.len());
}

/// A word of the stack: now a code address, now a stack address, now a word of the file.
fn word(bytes: &[u8], region: &Region, address: u64) -> u64 {
    let mixed = (address ^ bytes.len() as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(23);
    match mixed % 4 {
        0 | 1 => region.start + (mixed >> 8) % (region.end - region.start),
        2 => address.wrapping_add(mixed % 4096 & !15),
        _ => {
            let at = mixed as usize % bytes.len();
            bytes[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
        }
    }
}
