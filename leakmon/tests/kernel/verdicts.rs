//! Verdicts on a real leak, while it grows.

use super::{daemon::Daemon, host, observer::Attach, truth::Report, victim::Victim};
use std::time::{Duration, Instant};

/// A leak of which the states of its tasks are proof is named within a minute; ten times that is failure.
const PROOF_PATIENCE: Duration = Duration::from_secs(600);

#[test]
fn a_leak_is_a_suspect_after_half_a_minute_and_stands_first() {
    let Some(path) = host::victim_for(
        "a_leak_is_a_suspect_after_half_a_minute_and_stands_first",
        "leaky_registry",
    ) else {
        return;
    };
    // A subscriber each 450 ms, 36 seconds long: half of that rate would still do.
    let mut victim = Victim::start(&path, &["--connections", "95", "--pace-ms", "450"]);
    victim.await_ready();
    let attach = Attach::start(&["-p", &victim.tgid().to_string()]);
    victim.go_on();
    victim.await_ready();
    victim.go_on();
    let _truth = victim.truth();
    let report = attach.report();
    let callsites = report.callsites();
    let first = &callsites[0];
    let name = first["task_type"].as_str().unwrap();
    assert!(name.contains("handle_conn"), "{callsites:#?}");
    assert_eq!(first["verdict"], "suspect", "{first:#?}");
    let growth = first["growth_per_minute"].as_f64().unwrap();
    assert!((60.0..=150.0).contains(&growth), "{growth}");
    assert!(first["evidence"].as_str().unwrap().contains("more a minute"), "{first}");
    let alarms = callsites.iter().skip(1).filter(|callsite| {
        let verdict = callsite["verdict"].as_str().unwrap();
        verdict == "leak" || verdict == "suspect"
    });
    assert_eq!(alarms.count(), 0, "{callsites:#?}");
}

/// Verdict and function of every callsite of a process, in the report's order; threads apart.
fn verdicts(report: &Report, tgid: u32) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let all = report.callsites();
    let own = all.iter().filter(|row| row["pid"] == tgid && row["kind"] != "thread");
    own.map(|row| (text(&row["verdict"]), text(&row["task_type"])))
        .collect()
}

#[test]
fn tasks_that_nothing_can_wake_are_a_leak_within_a_minute() {
    let test = "tasks_that_nothing_can_wake_are_a_leak_within_a_minute";
    let Some(path) = host::victim_for(test, "unwakeable") else {
        return;
    };
    let mut victim = Victim::start(&path, &["--pace-ms", "1000"]);
    victim.await_ready();
    let tgid = victim.tgid();
    let daemon = Daemon::start(&["-p", &tgid.to_string()]);
    victim.go_on();
    victim.await_ready();
    let began = Instant::now();
    let leaks = ["await_nothing", "lose_waker"];
    let is_named = |report: &Report| {
        let found = verdicts(report, tgid);
        let named = |leak: &&str| {
            found
                .iter()
                .any(|(verdict, name)| verdict == "leak" && name.contains(*leak))
        };
        leaks.iter().all(named)
    };
    let report = daemon.await_report_for(PROOF_PATIENCE, "both leaks", is_named);
    println!("`leak` {:?} after the first task", began.elapsed());
    let all = report.callsites();
    for row in &all[..leaks.len()] {
        let name = row["task_type"].as_str().unwrap();
        assert!(leaks.iter().any(|leak| name.contains(leak)), "{row:#}");
        assert!(
            row["location"]["function"].as_str().unwrap().contains("accept_loop"),
            "{row:#}"
        );
        let evidence = row["evidence"].as_str().unwrap();
        assert!(
            evidence.contains("have no waker left and were ever more over"),
            "{evidence}"
        );
        assert!(
            evidence.ends_with("nothing but the runtime's shutdown can end them."),
            "{evidence}"
        );
    }
    // The guard can't be woken either, and is no leak; nor are visits.
    for (verdict, name) in &verdicts(&report, tgid)[leaks.len()..] {
        assert!(verdict == "unknown" || verdict == "steady", "{name}: {verdict}");
    }
    victim.go_on();
    let truth = victim.truth();
    let leaked = truth
        .sites()
        .into_iter()
        .filter(|site| leaks.contains(&site.name.as_str()));
    let counts: Vec<_> = leaked.map(|site| site.counts).collect();
    daemon.await_report("the victim's own numbers", |report| {
        leaks.iter().zip(&counts).all(|(leak, counts)| {
            let rows = report.callsites();
            let row = rows
                .iter()
                .find(|row| row["pid"] == tgid && row["task_type"].as_str().is_some_and(|name| name.contains(leak)));
            row.is_some_and(|row| row["live"] == counts.live && row["states"]["unwakeable"] == counts.live)
        })
    });
    drop(victim);
    daemon.stop();
}
