//! When a remembered walk may be used again: as long as every word that it read is unchanged.

use leakmon_ebpf::abi::WalkEnd;
use leakmon_ebpf::rows::{ProcessMappings, Row, kind};
use proptest::prelude::*;

use super::super::arena::Arena;
use super::super::mappings::{Region, pack};
use super::super::walk::{Registers, WalkedStack, walk};
use super::super::{SegmentRows, UnwindStats, UnwindTable};

const TEXT: u64 = 0x5000_0000;
const STACK: u64 = 0x7000_0000;
const WORDS: u64 = 64;

fn tables(rules: &[(u8, u8, u16)]) -> (Arena, ProcessMappings) {
    let rows: Vec<Row> = (0..)
        .step_by(16)
        .zip(rules)
        .map(|(pc, &(kind, frame_pointer, offset))| Row {
            pc,
            kind,
            frame_pointer,
            offset,
        })
        .collect();
    let size = rows.len() as u64 * 16;
    let segment = SegmentRows {
        vaddr: 0,
        file_offset: 0,
        size,
        rows,
    };
    let mut arena = Arena::new(1, 1);
    arena
        .insert(
            1,
            &UnwindTable {
                segments: vec![segment],
                stats: UnwindStats::default(),
            },
        )
        .unwrap();
    let region = Region {
        start: TEXT,
        end: TEXT + size,
        file_offset: 0,
        image: 1,
    };
    let (mappings, _) = pack(&[region], &arena, 1);
    (arena, mappings)
}

fn walk_over(tables: &(Arena, ProcessMappings), stack: &[u64], start: Registers) -> WalkedStack {
    walk(&tables.0, &tables.1, start, |address| {
        let index = address.checked_sub(STACK)? / 8;
        (address % 8 == 0).then(|| stack.get(index as usize).copied()).flatten()
    })
}

/// Words as they occur on a stack: return addresses, frame pointers, anything.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (0u64..24 * 16).prop_map(|at| TEXT + at),
        3 => (0u64..WORDS).prop_map(|at| STACK + at * 8),
        1 => any::<u64>(),
        1 => Just(0),
    ]
}

fn rule() -> impl Strategy<Value = (u8, u8, u16)> {
    let kinds = prop_oneof![8 => Just(kind::STACK_POINTER), 3 => Just(kind::FRAME_POINTER), 1 => 0u8..8];
    (kinds, prop::sample::select(vec![0u8, 0, 2, 2, 3, 5, 255]), 0u16..7)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    #[test]
    fn a_walk_depends_on_the_words_that_it_says(
        rules in prop::collection::vec(rule(), 24),
        stack in prop::collection::vec(word(), WORDS as usize),
        changes in prop::collection::vec((0..WORDS as usize, word()), 1..4),
        (pc, sp, bp) in (0u64..24 * 16, 0u64..8, 0u64..WORDS),
    ) {
        let tables = tables(&rules);
        let start = Registers { pc: TEXT + pc, sp: STACK + sp * 8, bp: STACK + bp * 8 };
        let before = walk_over(&tables, &stack, start);
        let mut changed = stack.clone();
        for (index, value) in changes {
            changed[index] = value;
        }
        let after = walk_over(&tables, &changed, start);
        let is_same = |&(address, value): &(u64, u64)| changed[((address - STACK) / 8) as usize] == value;
        let same_words = before.words.iter().all(is_same);
        if same_words {
            prop_assert_eq!(before, after);
        } else {
            prop_assert_ne!(before.words, after.words);
        }
    }
}

#[test]
fn each_way_out_has_its_cause() {
    let rules = [
        (kind::STACK_POINTER, 0, 1),
        (kind::END, 0, 0),
        (kind::UNSUPPORTED, 0, 0),
        (kind::NONE, 0, 0),
        (kind::STACK_POINTER, 0, 60_000),
        (kind::FRAME_POINTER, 2, 0),
        (kind::STACK_POINTER, 255, 1),
        (kind::SIGNAL, 0, 0),
    ];
    let tables = tables(&rules);
    let at = |row: u64| TEXT + row * 16 + 1;
    let (pc, sp) = (at(0), STACK);
    // The first word is the return address of the first frame, and so on up; nothing is readable below the stack.
    let walked = walk_over(&tables, &[at(0), at(1)], Registers { pc, sp, bp: 0 });
    assert_eq!((walked.end, walked.frames.len()), (WalkEnd::BadRead, 1));
    let case = |stack: &[u64]| {
        let stack = [&[0, 0], stack].concat();
        let walked = walk_over(
            &tables,
            &stack,
            Registers {
                pc: at(0),
                sp: STACK + 16,
                bp: STACK + 16 + 16,
            },
        );
        (walked.end, walked.frames.len(), walked.by_frame_pointer)
    };
    assert_eq!(case(&[at(0), at(1)]), (WalkEnd::Root, 3, 0));
    assert_eq!(case(&[at(0), 0]), (WalkEnd::Root, 2, 0));
    assert_eq!(case(&[at(2)]), (WalkEnd::Unsupported, 2, 0));
    assert_eq!(case(&[at(4)]), (WalkEnd::BadRead, 2, 0));
    assert_eq!(
        case(&[at(6), at(5)]),
        (WalkEnd::Unsupported, 3, 0),
        "the frame pointer is lost"
    );
    assert_eq!(
        case(&[at(3), 7, 0, at(1)]),
        (WalkEnd::Root, 3, 1),
        "by the frame pointer"
    );
    assert_eq!(case(&[at(3), 7, 0, at(3)]), (WalkEnd::FramePointer, 3, 1));
    assert_eq!(case(&[at(3), 7, 0, 5]), (WalkEnd::NoTable, 2, 0), "5 is no code");
    assert_eq!(case(&[9, 7, 0, at(1)]), (WalkEnd::Root, 3, 1), "no mapping");
    let mut signal = vec![at(7)];
    signal.resize(1 + 15, 0);
    signal.extend([0, 0, 0, 0, 0, STACK + 8 * 30, TEXT + 16]);
    assert_eq!(
        case(&signal),
        (WalkEnd::Root, 3, 0),
        "the interrupted instruction is the first of its function"
    );
}
