//! What live tasks are doing, against the victim's own numbers.

use super::{crowd::Crowd, daemon::Daemon, host, truth::Report};
use std::collections::{BTreeMap, BTreeSet};

/// Readings that must all be exact.
const READINGS: usize = 50;

/// Idle, scheduled, running, unwakeable.
type States = [u64; 4];

/// The live tasks of a process by type, but for the runtime's own.
fn states(report: &Report, tgid: u32) -> Vec<States> {
    let mut types: BTreeMap<&str, States> = BTreeMap::new();
    let all = report.callsites();
    let rows = all.iter().filter(|row| row["pid"] == tgid && row["live"] != 0);
    for row in rows.filter(|row| row["kind"] != "held" && row["kind"] != "thread") {
        let name = row["task_type"].as_str().unwrap();
        if name.contains("tokio::runtime") {
            continue;
        }
        let sum = types.entry(name).or_default();
        for (sum, state) in sum.iter_mut().zip(["idle", "scheduled", "running", "unwakeable"]) {
            *sum += row["states"][state].as_u64().unwrap_or(0);
        }
    }
    let mut all: Vec<States> = types.into_values().collect();
    all.sort_unstable();
    all
}

#[test]
fn every_state_has_its_exact_number_and_only_the_hopeless_are_unwakeable() {
    let test = "every_state_has_its_exact_number_and_only_the_hopeless_are_unwakeable";
    let Some(path) = host::victim_for(test, "crowd") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    // A copy of its own, so that no other test's process is a target.
    let copy = folder.path().join("crowd");
    std::fs::copy(&path, &copy).unwrap();
    let config = folder.path().join("leakmon.toml");
    let text = format!(
        "exes = [{:?}]\ninterval = \"100ms\"\nconfirm_interval = \"50ms\"\n",
        copy.display().to_string()
    );
    std::fs::write(&config, text).unwrap();
    let daemon = Daemon::start(&["--config", config.to_str().unwrap()]);
    let crowd = Crowd::start(&copy, 1_000);
    let expected: Vec<States> = {
        let alive = crowd
            .states()
            .into_iter()
            .map(|[idle, scheduled, running, unwakeable, ..]| [idle, scheduled, running, unwakeable]);
        let mut alive: Vec<States> = alive.filter(|states| *states != States::default()).collect();
        alive.sort_unstable();
        alive
    };
    daemon.await_report("the first confirmed states", |report| {
        states(report, crowd.tgid()) == expected
    });
    let mut seen = BTreeSet::new();
    while seen.len() < READINGS {
        let report = daemon.report();
        assert_eq!(states(&report, crowd.tgid()), expected, "reading {}", seen.len());
        seen.insert(report.0["observed_seconds"].to_string());
    }
}
