//! Recorded events in, golden output out: no root, no kernel, no clock.
//!
//! The recordings are real runs (`leakmon run --record FILE`); what they come to is compared with the golden output beside
//! this file, and each must come to the same with all events lost, since the counters are cumulative.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use leakmon::{
    kernel::recording::{Entry, read},
    live::Live,
};
use std::fmt::Write;

/// The victim `leaky_registry`, with `--pace-ms 40`, so that counters were read while it ran.
const LEAKY_REGISTRY: &[u8] = include_bytes!("leaky_registry.recording");

/// Feeds a recording to the counters, with or without its events, and shows what is known at each reading.
fn replay(recording: &[u8], with_events: bool) -> Vec<String> {
    let mut live = Live::default();
    let (mut counts, mut ages) = (Vec::new(), Vec::new());
    let mut readings = Vec::new();
    for entry in read(recording).unwrap() {
        match entry {
            Entry::Event(event) if with_events => live.apply(&event),
            Entry::Event(_) => {}
            Entry::Count(key, value) => counts.push((key, value)),
            Entry::Ages(key, value) => ages.push((key, value)),
            Entry::Reading { sweep, now_ns } => {
                live.read(&counts, &ages, sweep, now_ns);
                (counts, ages) = (Vec::new(), Vec::new());
                readings.push(shown(&live, now_ns));
            }
        }
    }
    readings
}

/// One line a stack: its site, spawned, ended, live, the age of its oldest task, and the ages of all by class.
fn shown(live: &Live, now_ns: u64) -> String {
    let mut stacks: Vec<_> = live.stacks().collect();
    stacks.sort_by_key(|(key, count)| (count.cookie.site(), key.stack));
    let mut text = String::new();
    for (_, count) in stacks {
        let age_ms = count.oldest_born_ns.map(|born_ns| (now_ns - born_ns) / 1_000_000);
        let (site, born, ended, alive) = (count.cookie.site(), count.born, count.ended, count.live());
        let classes = &count.ages[..3];
        writeln!(
            text,
            "site {site:2}  spawned {born:3}  ended {ended:3}  live {alive:2}  oldest {age_ms:?} ms  ages {classes:?}"
        )
        .unwrap();
    }
    text
}

#[test]
fn a_leak_grows_reading_by_reading() {
    let readings = replay(LEAKY_REGISTRY, true);
    insta::assert_snapshot!("leaky_registry", readings.join("--\n"));
}

#[test]
fn lost_events_change_no_reading() {
    assert_eq!(replay(LEAKY_REGISTRY, false), replay(LEAKY_REGISTRY, true));
}

#[test]
fn a_recording_that_is_cut_off_is_refused() {
    assert!(read(&LEAKY_REGISTRY[..LEAKY_REGISTRY.len() - 3]).is_err());
}
