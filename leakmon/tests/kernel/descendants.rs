//! Processes that a watched command starts: images first seen, programs without a runtime, and nobody left behind stopped.

use super::{
    host,
    observer::{Run, leakmon},
    truth::{Counts, Truth},
};
use std::path::Path;

/// Output of a command in a shell, watched.
fn shell(options: &[&str], script: &str) -> Run {
    Run::of(options, Path::new("/bin/sh"), &["-c", script])
}

#[test]
fn programs_first_seen_are_counted_from_their_first_task() {
    const TEST: &str = "programs_first_seen_are_counted_from_their_first_task";
    let (Some(leaky), Some(fixed)) = (
        host::victim_for(TEST, "leaky_registry"),
        host::victim_for(TEST, "fixed_registry"),
    ) else {
        return;
    };
    let (leaky, fixed) = (leaky.display(), fixed.display());
    // In the foreground, in the background, by exec, and one of them twice; other programs in between.
    let script = format!("/bin/true; {fixed} & ls / > /dev/null; {leaky}; wait; env {leaky}; exec {fixed}");
    let run = shell(&[], &script);
    let mut truths: Vec<Counts> = String::from_utf8(run.output.stdout.clone())
        .unwrap()
        .lines()
        .map(|line| Truth::parse(line).total())
        .collect();
    let targets = run.report.0["targets"].as_array().unwrap();
    let mut counted: Vec<Counts> = targets.iter().map(|target| Counts::of(&target["task"])).collect();
    let order = |counts: &Counts| (counts.live, counts.ended);
    truths.sort_by_key(order);
    counted.sort_by_key(order);
    assert_eq!(truths.len(), 4);
    assert_eq!(counted, truths);
    assert!(
        targets.iter().all(|target| target["status"] == "attached"),
        "{targets:?}"
    );
}

#[test]
fn nobody_is_left_stopped_when_the_observation_ends_early() {
    const TEST: &str = "nobody_is_left_stopped_when_the_observation_ends_early";
    if host::victim_for(TEST, "leaky_registry").is_none() {
        return;
    }
    // It goes on for longer than it is watched, and each round is an exec that would be held.
    let script = "end=$(($(date +%s) + 3)); while [ $(date +%s) -lt $end ]; do /bin/true; done; echo whole; exit 7";
    let output = leakmon(&["run", "--duration", "1s", "--", "/bin/sh", "-c", script])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "whole\n");
    assert_eq!(output.status.code(), Some(7));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("no process of the command ran an async runtime"),
        "{said}"
    );
}
