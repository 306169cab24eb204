//! Verdicts from counts, with what happens to histories around them. The rules on whole programs are in `tests/verdicts`.

use super::*;
use crate::kernel::event::Event;
use leakmon_ebpf::abi::{AGE_CLASSES, Ages, CountKey, CountValue, age_class};

const TARGET: TargetId = TargetId(1);
const OTHER: TargetId = TargetId(2);
const SECOND: u64 = 1_000_000_000;

fn key(target: TargetId, callsite: u64) -> CallsiteKey {
    CallsiteKey { target, callsite }
}

/// Tasks of one stack that were born at these seconds and never end.
fn counts(
    target: TargetId,
    stack: u64,
    births: &[u64],
    now: u64,
    sweep: u64,
) -> ((CountKey, CountValue), (CountKey, Ages)) {
    let key = CountKey {
        target: target.0,
        stack,
    };
    let alive: Vec<u64> = births.iter().copied().filter(|birth| *birth <= now).collect();
    let mut classes = [0; AGE_CLASSES];
    for birth in &alive {
        classes[age_class((now - birth) * SECOND) as usize] += 1;
    }
    let value = CountValue {
        born: alive.len() as u64,
        ended: 0,
        reported_ns: 0,
        cookie: 0,
        oldest_born_ns: alive.first().map_or(0, |birth| birth * SECOND),
        swept: sweep,
    };
    ((key, value), (key, Ages { swept: sweep, classes }))
}

/// Follows stacks of [`TARGET`] and [`OTHER`] second by second.
fn follow(
    seconds: std::ops::Range<u64>,
    live: &mut Live,
    verdicts: &mut Verdicts,
    stacks: &[(TargetId, u64, Vec<u64>)],
    callsite_of: impl Fn(u64, StackKey) -> Option<u64>,
) {
    for now in seconds {
        let (counts, ages): (Vec<_>, Vec<_>) = stacks
            .iter()
            .map(|(target, stack, births)| counts(*target, *stack, births, now, now + 1))
            .filter(|((_, value), _)| value.born > 0)
            .unzip();
        live.read(&counts, &ages, Some(now + 1), now * SECOND);
        verdicts.observe(live, |key| callsite_of(now, key), now * SECOND);
    }
}

fn each_second(seconds: std::ops::Range<u64>) -> Vec<u64> {
    seconds.collect()
}

#[test]
fn one_a_second_is_a_suspect_within_a_minute_and_a_leak_within_twenty_one() {
    let (mut live, mut verdicts) = (Live::default(), Verdicts::default());
    let stacks = [(TARGET, 5, each_second(1..1300))];
    let step = |range, live: &mut Live, verdicts: &mut Verdicts| follow(range, live, verdicts, &stacks, |_, _| Some(7));
    step(0..29, &mut live, &mut verdicts);
    assert_eq!(verdicts.verdict(key(TARGET, 7)), Verdict::Unknown);
    step(29..60, &mut live, &mut verdicts);
    let judgement = verdicts.of(key(TARGET, 7));
    assert_eq!(judgement.verdict, Verdict::Suspect, "{judgement:?}");
    assert_eq!(judgement.growth_per_minute, Some(60.0));
    assert!(judgement.evidence.unwrap().contains("none has ended"));
    step(60..1261, &mut live, &mut verdicts);
    assert_eq!(verdicts.verdict(key(TARGET, 7)), Verdict::Leak);
    // Nobody knows a callsite that is not there.
    assert_eq!(verdicts.of(key(TARGET, 8)), Judgement::default());
}

#[test]
fn a_stack_that_gets_its_name_late_changes_nothing() {
    let judged = |named_at: u64| {
        let (mut live, mut verdicts) = (Live::default(), Verdicts::default());
        let stacks = [(TARGET, 5, each_second(1..100)), (TARGET, 6, each_second(20..100))];
        let callsite_of = |now, key: StackKey| (key.stack == 5 || now >= named_at).then_some(7);
        follow(0..80, &mut live, &mut verdicts, &stacks, callsite_of);
        verdicts.of(key(TARGET, 7))
    };
    assert_eq!(judged(0), judged(79));
    assert_eq!(judged(0).growth_per_minute, Some(120.0));
}

#[test]
fn a_restarted_daemon_sees_old_counts_and_no_growth() {
    let (mut live, mut verdicts) = (Live::default(), Verdicts::default());
    // Half a thousand tasks that leaked before; then nothing.
    let stacks = [(TARGET, 5, each_second(1..500))];
    follow(5000..5060, &mut live, &mut verdicts, &stacks, |_, _| Some(7));
    let judgement = verdicts.of(key(TARGET, 7));
    assert_eq!(
        (judgement.verdict, judgement.growth_per_minute),
        (Verdict::Steady, Some(0.0))
    );
}

#[test]
fn what_exited_keeps_its_verdict_until_it_is_forgotten() {
    let (mut live, mut verdicts) = (Live::default(), Verdicts::default());
    let stacks = [(TARGET, 5, each_second(1..60)), (OTHER, 5, each_second(1..60))];
    follow(0..60, &mut live, &mut verdicts, &stacks, |_, _| Some(7));
    live.apply(&Event::Exit {
        target: TARGET,
        time_ns: 60 * SECOND,
    });
    follow(60..300, &mut live, &mut verdicts, &stacks, |_, _| Some(7));
    assert_eq!(verdicts.verdict(key(TARGET, 7)), Verdict::Suspect);
    assert_eq!(verdicts.verdict(key(OTHER, 7)), Verdict::Steady);
    live.forget(&std::collections::BTreeSet::from([TARGET]));
    verdicts.observe(&live, |_| Some(7), 301 * SECOND);
    assert_eq!(verdicts.of(key(TARGET, 7)), Judgement::default());
    assert_eq!(verdicts.verdict(key(OTHER, 7)), Verdict::Steady);
}

#[test]
fn callsites_beyond_the_bound_are_refused_and_counted() {
    let (mut live, mut verdicts) = (Live::default(), Verdicts::default());
    let stacks: Vec<_> = (0..CALLSITES_MAX as u64 + 3)
        .map(|stack| (TARGET, stack, vec![1]))
        .collect();
    follow(1..2, &mut live, &mut verdicts, &stacks, |_, key| Some(key.stack));
    assert_eq!((verdicts.sites.len(), verdicts.refused()), (CALLSITES_MAX, 3));
    // One that is known is still followed, and one that waits may get the room of one that goes.
    follow(2..3, &mut live, &mut verdicts, &stacks, |_, key| Some(key.stack / 2));
    assert_eq!(verdicts.refused(), 3);
}
