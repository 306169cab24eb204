//! The counters against a naive model: whatever events are lost, one reading of the kernel's counters sets all right.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const TARGET: TargetId = TargetId(1);

fn count(born: u64, ended: u64, swept: u64, oldest_born_ns: u64) -> CountValue {
    CountValue {
        born,
        ended,
        reported_ns: 0,
        cookie: 9,
        oldest_born_ns,
        swept,
    }
}

fn key(target: TargetId, stack: u64) -> (CountKey, StackKey) {
    (
        CountKey {
            target: target.0,
            stack,
        },
        StackKey { target, stack },
    )
}

fn seen(live: &Live, stack: u64) -> StackCount {
    let wanted = StackKey { target: TARGET, stack };
    live.stacks()
        .find_map(|(key, count)| (key == wanted).then_some(*count))
        .unwrap()
}

#[test]
fn a_late_event_lowers_nothing() {
    let mut live = Live::default();
    live.read(&[(key(TARGET, 5).0, count(10, 4, 0, 0))], &[], None, 1);
    live.apply(&Event::Changed {
        target: TARGET,
        stack: 5,
        born: 7,
        ended: 2,
        time_ns: 0,
    });
    assert_eq!(
        (seen(&live, 5).born, seen(&live, 5).ended, seen(&live, 5).live()),
        (10, 4, 6)
    );
}

#[test]
fn an_end_that_is_seen_first_is_no_negative_count() {
    let mut live = Live::default();
    live.read(&[(key(TARGET, 5).0, count(1, 2, 0, 0))], &[], None, 1);
    assert_eq!(seen(&live, 5).live(), 0);
}

#[test]
fn only_the_last_sweep_says_who_is_oldest() {
    let mut live = Live::default();
    live.read(&[(key(TARGET, 5).0, count(2, 1, 3, 77))], &[], Some(3), 100);
    assert_eq!(seen(&live, 5).oldest_born_ns, Some(77));
    // Read without a sweep: what is known stays.
    live.read(&[(key(TARGET, 5).0, count(2, 1, 3, 77))], &[], None, 100);
    assert_eq!(seen(&live, 5).oldest_born_ns, Some(77));
    // Swept again, and the entry was not touched: nothing lives there any more.
    live.read(&[(key(TARGET, 5).0, count(2, 2, 3, 77))], &[], Some(4), 100);
    assert_eq!(seen(&live, 5).oldest_born_ns, None);
}

#[test]
fn ages_are_those_of_the_sweep_or_none() {
    let mut live = Live::default();
    let entry = |sweep| [(key(TARGET, 5).0, count(2, 0, sweep, 77))];
    let classes = [0, 2, 0, 0, 0, 0, 0, 0];
    let ages = |swept| {
        let ages = Ages { swept, classes };
        [(key(TARGET, 5).0, ages), (key(TARGET, 6).0, ages)]
    };
    live.read(&entry(3), &ages(3), Some(3), 100);
    assert_eq!(seen(&live, 5).ages, classes);
    // Read without a sweep: what is known stays.
    live.read(&entry(3), &[], None, 100);
    assert_eq!(seen(&live, 5).ages, classes);
    // Swept again, and the entry was not touched.
    live.read(&entry(3), &ages(3), Some(4), 100);
    assert_eq!(seen(&live, 5).ages, [0; AGE_CLASSES]);
    assert_eq!(live.stacks().count(), 1);
}

#[test]
fn states_belong_to_a_stack_that_is_known() {
    let states = States {
        sampled: 3,
        idle: 2,
        running: 1,
        ..States::default()
    };
    let mut live = Live::default();
    live.read(&[(key(TARGET, 5).0, count(3, 0, 0, 0))], &[], None, 1);
    live.set_states(key(TARGET, 5).1, Some(states));
    live.set_states(key(TARGET, 6).1, Some(states));
    assert_eq!(seen(&live, 5).states, Some(states));
    assert_eq!(live.stacks().count(), 1);
    live.set_states(key(TARGET, 5).1, None);
    assert_eq!(seen(&live, 5).states, None);
}

#[test]
fn an_exec_ends_one_target_and_begins_another() {
    let mut live = Live::default();
    let after = TargetId(2);
    live.apply(&Event::Target {
        target: TARGET,
        time_ns: 1,
    });
    live.apply(&Event::Exec {
        target: Some(after),
        before: Some(TARGET),
        tgid: 1,
        time_ns: 8,
    });
    let targets: Vec<_> = live
        .targets()
        .map(|(id, target)| (id, target.since_ns, target.exited_ns))
        .collect();
    assert_eq!(targets, [(TARGET, 1, Some(8)), (after, 8, None)]);
}

#[test]
fn what_was_live_at_exit_stays_live_until_it_is_forgotten() {
    let mut live = Live::default();
    live.read(
        &[
            (key(TARGET, 5).0, count(3, 1, 0, 0)),
            (key(TargetId(2), 5).0, count(1, 0, 0, 0)),
        ],
        &[],
        None,
        1,
    );
    live.apply(&Event::Exit {
        target: TARGET,
        time_ns: 9,
    });
    assert_eq!(seen(&live, 5).live(), 2);
    live.forget(&BTreeSet::from([TARGET]));
    let left: Vec<_> = live.stacks().map(|(key, _)| key.target).collect();
    assert_eq!(left, [TargetId(2)]);
    assert_eq!(live.targets().map(|(id, _)| id).collect::<Vec<_>>(), [TargetId(2)]);
}

#[test]
fn what_a_forgotten_target_counted_stays_in_the_sum() {
    let mut live = Live::default();
    for (target, unmatched_ends) in [(TARGET, 3), (TargetId(2), 4)] {
        live.apply(&Event::Target { target, time_ns: 1 });
        live.set_totals(
            target,
            Totals {
                unmatched_ends,
                replaced: 1,
                untracked: 0,
                untracked_ends: 2,
            },
        );
    }
    live.forget(&BTreeSet::from([TARGET]));
    assert_eq!(
        live.totals(),
        Totals {
            unmatched_ends: 7,
            replaced: 2,
            untracked: 0,
            untracked_ends: 4,
        }
    );
}

#[test]
fn targets_beyond_the_bound_are_refused_and_counted() {
    let mut live = Live::default();
    for number in 0..TARGETS_MAX as u64 + 3 {
        live.apply(&Event::Target {
            target: TargetId(number),
            time_ns: 0,
        });
    }
    assert_eq!(live.targets().count(), TARGETS_MAX);
    assert_eq!(live.refused().targets, 3);
    // One that is known is still followed.
    live.apply(&Event::Exit {
        target: TargetId(0),
        time_ns: 5,
    });
    assert_eq!(live.targets().next().unwrap().1.exited_ns, Some(5));
    assert_eq!(live.refused().targets, 3);
}

#[test]
fn stacks_beyond_the_bound_are_refused_and_counted() {
    let mut live = Live::default();
    let entries: Vec<_> = (0..STACKS_MAX as u64 + 2)
        .map(|stack| (key(TARGET, stack).0, count(1, 0, 0, 0)))
        .collect();
    live.read(&entries, &[], None, 0);
    assert_eq!(live.stacks().count(), STACKS_MAX);
    assert_eq!(live.refused().stacks, 2);
}

/// One thing that happens in a target, and whether its event is lost.
fn steps() -> impl Strategy<Value = Vec<(u64, bool, bool)>> {
    proptest::collection::vec((0..5_u64, any::<bool>(), any::<bool>()), 0..200)
}

proptest! {
    #[test]
    fn lost_events_lose_nothing_but_time(steps in steps()) {
        let mut model: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let mut live = Live::default();
        for (stack, is_birth, is_lost) in steps {
            let (born, ended) = model.entry(stack).or_default();
            if is_birth {
                *born += 1;
            } else if ended < born {
                *ended += 1;
            }
            let (born, ended) = (*born, *ended);
            if !is_lost {
                let first = Event::Stack { target: TARGET, stack, cookie: Cookie(9), time_ns: 0 };
                let changed = Event::Changed { target: TARGET, stack, born, ended, time_ns: 0 };
                live.apply(if born == 1 && ended == 0 { &first } else { &changed });
            }
            for (key, count) in live.stacks() {
                let (born, ended) = model[&key.stack];
                prop_assert!(count.born <= born && count.ended <= ended);
            }
        }
        let entries: Vec<_> =
            model.iter().map(|(stack, (born, ended))| (key(TARGET, *stack).0, count(*born, *ended, 0, 0))).collect();
        live.read(&entries, &[], None, 0);
        for (stack, (born, ended)) in model {
            let count = seen(&live, stack);
            prop_assert_eq!((count.born, count.ended, count.live()), (born, ended, born - ended));
        }
    }
}
