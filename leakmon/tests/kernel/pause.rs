//! A process with more hits than it may have: its probes of births are off for a while.

use super::{
    daemon::{Daemon, of_victim, sample},
    restart::Ground,
    storm::{Storm, by_spawner, warm_up},
    truth::{Counts, Report, Truth},
};
use serde_json::Value;

/// Held before the pause.
const HELD: u64 = 500;

/// Attached sites.
fn sites(daemon: &Daemon) -> f64 {
    let metrics = daemon.get("/metrics");
    let of_cost = |cost: &str| sample(&metrics, "leakmon_probe_sites", &[&format!("cost=\"{cost}\"")]).unwrap();
    of_cost("cheap") + of_cost("slow")
}

fn status(report: &Report, tgid: u32) -> String {
    let targets = report.0["targets"].as_array().unwrap();
    let target = targets.iter().find(|target| target["pid"] == tgid);
    target
        .and_then(|target| target["status"].as_str())
        .unwrap_or_default()
        .to_owned()
}

fn held(report: &Report, storm: &Storm, truth: &Truth) -> Counts {
    let sites = by_spawner(report, storm.tgid(), truth);
    sites.into_iter().find(|(spawner, _)| spawner == "hold").unwrap().1
}

/// Waits until births cost nothing: none is counted as left out, though they go on.
fn await_silence(daemon: &Daemon, storm: &mut Storm) {
    let mut seen: Vec<(Value, u64)> = Vec::new();
    daemon.await_report("births that are not looked at", |report| {
        let now = (report.0["observed_seconds"].clone(), report.loss("paused"));
        if seen.last().is_none_or(|last| last.0 != now.0) {
            seen.push(now);
        }
        storm.command("spawn 64");
        // Between the first and the last of three snapshots there were births, whenever they were taken.
        matches!(&seen[..], [.., first, _, last] if first.1 == last.1)
    });
}

#[test]
fn births_of_a_paused_process_are_not_looked_at_and_ends_are() {
    let Some(ground) = Ground::new("births_of_a_paused_process_are_not_looked_at_and_ends_are") else {
        return;
    };
    let daemon = ground.daemon("hits_per_second_max = 5000\npause = \"15s\"");
    let mut storm = Storm::start(&ground.program);
    warm_up(&daemon, &mut storm);
    let truth = storm.command(&format!("hold {HELD}"));
    daemon.await_report("held tasks", |report| held(report, &storm, &truth).live == HELD);
    let all_sites = sites(&daemon);
    storm.load();
    daemon.await_report("the pause", |report| status(report, storm.tgid()) == "paused");
    await_silence(&daemon, &mut storm);
    assert!(sites(&daemon) < all_sites);

    // What was counted before goes on being right.
    storm.command("release");
    let report = daemon.await_report("the ends of what was held", |report| {
        let counts = held(report, &storm, &truth);
        (counts.spawned, counts.ended) == (HELD, HELD)
    });
    assert_eq!(status(&report, storm.tgid()), "paused", "or the test says nothing");

    let report = daemon.await_report("the end of the pause", |report| {
        status(report, storm.tgid()) == "partial" && sites(&daemon).to_bits() == all_sites.to_bits()
    });
    let before = of_victim(&report, storm.tgid()).unwrap();
    let count = |truth: &Truth| truth.total().spawned;
    let begun = count(&storm.command(""));
    let later = count(&storm.command("spawn 100")) - begun;
    let report = daemon.await_report("later births, each once", |report| {
        of_victim(report, storm.tgid()).is_some_and(|counts| counts.spawned == before.spawned + later)
    });
    for loss in ["replaced", "unmatched_ends"] {
        assert_eq!(report.loss(loss), 0, "{loss}");
    }
    storm.end();
    daemon.stop();
}

#[test]
fn a_process_that_begins_beside_paused_ones_has_births_looked_at_again() {
    let Some(ground) = Ground::new("a_process_that_begins_beside_paused_ones_has_births_looked_at_again") else {
        return;
    };
    let daemon = ground.daemon("hits_per_second_max = 5000\npause = \"60s\"");
    let mut storm = Storm::start(&ground.program);
    warm_up(&daemon, &mut storm);
    let all_sites = sites(&daemon);
    storm.load();
    await_silence(&daemon, &mut storm);
    let mut second = Storm::start(&ground.program);
    second.command("spawn 10");
    let report = daemon.await_report("all probes, and the second process", |report| {
        sites(&daemon).to_bits() == all_sites.to_bits() && !status(report, second.tgid()).is_empty()
    });
    assert_eq!(status(&report, second.tgid()), "partial", "its first tasks were missed");
    assert_eq!(status(&report, storm.tgid()), "paused");
    let truth = second.command(&format!("hold {HELD}"));
    daemon.await_report("each birth once", |report| {
        held(report, &second, &truth).spawned == HELD
    });
    second.end();
    storm.end();
    daemon.stop();
}
