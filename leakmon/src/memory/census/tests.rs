//! What is counted, and what is left out.

use super::*;
use proptest::prelude::*;

fn reading(state: State) -> Reading {
    Reading {
        word: 0,
        state,
        id: 1,
        owner: 1,
        scheduler: 8,
        stage: None,
        neighbours: Neighbours::default(),
    }
}

fn found(header: u64, reading: Reading) -> Found {
    Found::new(Place { header, layout: 0 }, &reading)
}

/// Tasks at these headers, each with its neighbours.
pub(in crate::memory) fn linked(tasks: &[(u64, u64, u64)]) -> Vec<Found> {
    let of = |(header, previous, next): &(u64, u64, u64)| {
        let neighbours = Neighbours {
            previous: *previous,
            next: *next,
        };
        found(
            *header,
            Reading {
                neighbours,
                ..reading(State::Idle)
            },
        )
    };
    tasks.iter().map(of).collect()
}

fn headers(tasks: &[Found]) -> Vec<u64> {
    tasks.iter().map(|task| task.header).collect()
}

#[test]
fn each_state_is_counted_once_and_unwakeable_ones_are_idle_too() {
    let mut tally = Tally::default();
    let unwakeable = |abortable| State::Unwakeable { abortable };
    for (state, confirmed) in [
        (State::Idle, false),
        (unwakeable(true), true),
        (unwakeable(false), true),
        (unwakeable(false), false),
        (State::Scheduled, false),
        (State::Running, false),
        (State::Held, false),
        (State::Lingering, false),
    ] {
        tally.add(state, confirmed);
    }
    let expected = Tally {
        idle: 4,
        scheduled: 1,
        running: 1,
        unwakeable: 2,
        abortable: 1,
        held: 1,
        lingering: 1,
    };
    assert_eq!((tally, tally.alive()), (expected, 6));
}

#[test]
fn the_copy_of_a_new_blocking_task_on_a_stack_is_none() {
    let regions = [(0x1000, false), (0x3000, true)].map(|(start, stack)| Region {
        start,
        end: start + 0x1000,
        stack,
    });
    let new = |id| Reading {
        word: 0xcc,
        id,
        owner: 0,
        ..reading(State::Scheduled)
    };
    let runs = Reading { word: 0x81, ..new(7) };
    let mut tasks = vec![
        found(0x1080, new(5)),
        // On a stack.
        found(0x3080, new(6)),
        // The real one runs already.
        found(0x1100, new(7)),
        found(0x1180, runs),
        // Between the regions, for all that is known.
        found(0x2080, new(8)),
    ];
    without_copies(&mut tasks, &regions);
    assert_eq!(headers(&tasks), [0x1080, 0x1180, 0x2080]);
}

#[test]
fn remains_of_freed_tasks_are_told_by_their_stage() {
    let staged = |state, stage| Reading {
        stage: Some(stage),
        ..reading(state)
    };
    let linked = |stage, previous, next| Reading {
        neighbours: Neighbours { previous, next },
        ..staged(State::Idle, stage)
    };
    let mut tasks = vec![
        found(0x80, staged(State::Idle, stage::RUNNING)),
        found(0x100, staged(State::Idle, stage::CONSUMED)),
        found(0x180, staged(State::Held, stage::FINISHED)),
        found(0x200, staged(State::Held, stage::CONSUMED)),
        found(0x280, staged(State::Running, stage::FINISHED)),
        // It says that it has a neighbour, which knows nothing of it.
        found(0x300, linked(stage::CONSUMED, 0x80, 0)),
    ];
    without_remains(&mut tasks);
    assert_eq!(headers(&tasks), [0x80, 0x180, 0x280]);

    // Two tasks that know each other are alive: where they have odd tags, the tags of that type mean nothing.
    let mut tasks = vec![
        found(0x80, linked(stage::CONSUMED, 0, 0x100)),
        found(0x100, linked(stage::CONSUMED, 0x80, 0)),
        found(0x180, staged(State::Held, stage::CONSUMED)),
    ];
    without_remains(&mut tasks);
    assert_eq!(headers(&tasks), [0x80, 0x100, 0x180]);
}

#[test]
fn the_share_says_what_was_not_read() {
    let census = |resident_bytes, scanned_bytes, swapped_bytes, refused_tasks| Census {
        resident_bytes,
        scanned_bytes,
        swapped_bytes,
        refused_tasks,
        ..Census::default()
    };
    assert_eq!(census(0, 0, 0, 0).share().to_string(), "1");
    assert_eq!(census(100, 100, 0, 0).share().to_string(), "1");
    assert_eq!(census(100, 50, 0, 0).share().to_string(), "0.5");
    assert_eq!(census(50, 50, 50, 0).share().to_string(), "0.5");
    assert!(census(100, 100, 0, 1).share() < 1.0);
}

proptest! {
    #[test]
    fn ranges_with_arenas_come_first_and_none_is_lost(
        mut starts in prop::collection::btree_set(0_u64..1000, 1..50),
        arenas in prop::collection::btree_set(0_u64..1000, 0..20),
    ) {
        starts.insert(0);
        let starts: Vec<u64> = starts.into_iter().collect();
        let ranges: Vec<Range<u64>> = starts.iter().map(|start| 10 * start..10 * start + 6).collect();
        let arenas: Vec<Range<u64>> = arenas.into_iter().map(|start| 10 * start + 3..10 * start + 4).collect();
        let ordered = in_order(ranges.clone(), &arenas);
        let meets = |range: &Range<u64>| arenas.iter().any(|arena| arena.start < range.end && range.start < arena.end);
        let fruitful = ordered.iter().take_while(|range| meets(range)).count();
        prop_assert!(ordered[fruitful..].iter().all(|range| !meets(range)));
        let mut sorted = ordered;
        sorted.sort_unstable_by_key(|range| range.start);
        prop_assert_eq!(sorted, ranges);
    }
}

#[test]
fn arenas_join_what_lies_close_together_and_are_bounded() {
    let tasks: Vec<Found> = [0x1000, 0x2000, 0x2000 + ARENA_GAP_BYTES + 2, 1 << 40]
        .map(|header| found(header, reading(State::Idle)))
        .to_vec();
    assert_eq!(
        arenas_of(&tasks),
        [
            0x1000..0x2001,
            0x2002 + ARENA_GAP_BYTES..0x2003 + ARENA_GAP_BYTES,
            1 << 40..(1 << 40) + 1
        ]
    );
    let far: Vec<Found> = (0..=ARENAS_MAX as u64)
        .map(|index| found(index * 2 * ARENA_GAP_BYTES, reading(State::Idle)))
        .collect();
    assert_eq!(arenas_of(&far).len(), ARENAS_MAX);
}
