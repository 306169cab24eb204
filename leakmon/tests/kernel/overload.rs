//! Tables and rings at their bounds: what does not fit is counted, and what is counted is right.

use super::{
    daemon::{Daemon, of_victim, sample},
    discovery::await_value,
    host,
    observer::signal,
    restart::{Ground, await_truth},
    storm::{Storm, by_spawner, truth_by_spawner, warm_up},
    truth::{Counts, Report, Truth},
};
use leakmon_ebpf::abi::{LIVE_FIRST_ENTRIES_MAX, LIVE_SLOTS_MAX};
use nix::sys::signal::Signal;
use std::{
    ops::Range,
    path::PathBuf,
    time::{Duration, Instant},
};

/// How long the daemon is held up, and how many tasks are spawned meanwhile at least.
const STOPPED: Duration = Duration::from_secs(5);
const SPAWNS: u64 = 100_000;

/// A daemon with these bounds, and a storm of its own that it watches from the first instruction.
struct Watched {
    daemon: Daemon,
    storm: Storm,
    program: PathBuf,
    _folder: tempfile::TempDir,
}

impl Watched {
    fn start(test: &str, bounds: &str) -> Option<Self> {
        let victim = host::victim_for(test, "storm")?;
        let folder = tempfile::tempdir().unwrap();
        // A copy, so that no other test's process is a target.
        let program = folder.path().join("storm");
        std::fs::copy(victim, &program).unwrap();
        let config = folder.path().join("leakmon.toml");
        std::fs::write(&config, format!("interval = \"200ms\"\n[bounds]\n{bounds}\n")).unwrap();
        let daemon = Daemon::start(&["--config", config.to_str().unwrap(), "--exe", program.to_str().unwrap()]);
        let storm = Storm::start(&program);
        Some(Self {
            daemon,
            storm,
            program,
            _folder: folder,
        })
    }

    /// The report once the target's tasks are these.
    fn await_task(&self, what: &str, expected: Counts) -> Report {
        self.daemon
            .await_report(what, |report| of_victim(report, self.storm.tgid()) == Some(expected))
    }

    fn target(&self, report: &Report) -> serde_json::Value {
        let targets = report.0["targets"].as_array().unwrap();
        let target = targets.iter().find(|target| target["pid"] == self.storm.tgid());
        target.unwrap().clone()
    }
}

fn dropped(daemon: &Daemon, reason: &str) -> u64 {
    let reason = format!("reason=\"{reason}\"");
    sample(&daemon.get("/metrics"), "leakmon_events_dropped_total", &[&reason]).unwrap() as u64
}

fn minus(truth: &Truth, untracked: u64, untracked_ends: u64) -> Counts {
    let total = truth.total();
    let (spawned, ended) = (total.spawned - untracked, total.ended - untracked_ends);
    Counts {
        spawned,
        ended,
        live: spawned - ended,
    }
}

#[test]
fn what_a_full_ring_drops_is_counted_and_no_count_is_wrong() {
    let test = "what_a_full_ring_drops_is_counted_and_no_count_is_wrong";
    let Some(mut watched) = Watched::start(test, "ring_bytes = 4096") else {
        return;
    };
    warm_up(&watched.daemon, &mut watched.storm);
    signal(watched.daemon.tgid(), Signal::SIGSTOP);
    let stopped = Instant::now();
    let mut truth = watched.storm.command("");
    while stopped.elapsed() < STOPPED || truth.total().spawned < SPAWNS {
        truth = watched.storm.command("spawn 500");
    }
    signal(watched.daemon.tgid(), Signal::SIGCONT);
    let report = watched.daemon.await_report("the truth of every callsite", |report| {
        of_victim(report, watched.storm.tgid()) == Some(truth.total())
            && by_spawner(report, watched.storm.tgid(), &truth) == truth_by_spawner(&truth)
    });
    assert!(report.loss("events_dropped") > 0, "{:#}", report.0["loss"]);
    assert!(dropped(&watched.daemon, "ring_full") > 0);
    for loss in [
        "live_full",
        "counts_full",
        "stacks_full",
        "paused",
        "unmatched_ends",
        "replaced",
    ] {
        assert_eq!(report.loss(loss), 0, "{loss}");
    }
    println!("{} events dropped", report.loss("events_dropped"));
    watched.storm.end();
    watched.daemon.stop();
}

#[test]
fn births_beyond_the_table_of_live_tasks_are_untracked_and_nothing_counted_is_wrong() {
    let test = "births_beyond_the_table_of_live_tasks_are_untracked_and_nothing_counted_is_wrong";
    let Some(mut watched) = Watched::start(test, "live_entries_max = 1000") else {
        return;
    };
    let truth = watched.storm.command("hold 5000");
    let first = watched.daemon.await_report("all births", |report| {
        let task = of_victim(report, watched.storm.tgid()).unwrap_or_default();
        task.spawned + report.loss("live_full") == truth.total().spawned
    });
    let untracked = first.loss("live_full");
    // Threads have their room in the table too, and few.
    assert!((4_000..4_020).contains(&untracked), "{untracked}");
    assert_eq!(
        of_victim(&first, watched.storm.tgid()),
        Some(minus(&truth, untracked, 0))
    );
    assert_eq!(dropped(&watched.daemon, "live_full"), untracked);
    let target = watched.target(&first);
    assert_eq!(target["status"], "partial");
    assert!(
        target["reason"].as_str().unwrap().contains(&untracked.to_string()),
        "{target:#}"
    );

    // All end, tracked or not.
    let truth = watched.storm.command("release");
    let second = watched.await_task("all ends", minus(&truth, untracked, untracked));
    // This process was followed from its start, so whose ends these are is known.
    assert_eq!(second.loss("untracked_ends"), untracked);
    assert_eq!(second.loss("unmatched_ends"), 0);
    assert_eq!(second.loss("replaced"), 0);

    // There is room again, and what comes now is exact.
    let truth = watched.storm.command("hold 500");
    let third = watched.await_task("later tasks", minus(&truth, untracked, untracked));
    assert_eq!(third.loss("live_full"), untracked);
    watched.storm.end();
    watched.daemon.stop();
}

#[test]
fn tasks_beyond_the_first_of_two_hashes_are_exact_and_outlive_the_daemon() {
    let Some(ground) = Ground::new("tasks_beyond_the_first_of_two_hashes_are_exact_and_outlive_the_daemon") else {
        return;
    };
    let daemon = ground.daemon("");
    let mut storm = Storm::start(&ground.program);
    warm_up(&daemon, &mut storm);
    // 16,384 may find their place free, 65,536 find room in the first hash, and some thousands do not.
    let held = LIVE_SLOTS_MAX + LIVE_FIRST_ENTRIES_MAX + 5_000;
    storm.command(&format!("hold {held}"));
    // Those that come and go meanwhile are in the second.
    let truth = storm.command("spawn 2000");
    let report = await_truth(&daemon, &storm, &truth);
    let older: u64 = report.callsites().iter().filter_map(|site| site["live"].as_u64()).sum();
    assert!(older >= u64::from(held), "{older}");
    // Next to no place is free beside so many tasks, and none is left unused.
    assert!((5_000..10_000).contains(&ground.overflow()), "{}", ground.overflow());
    daemon.stop();

    let daemon = ground.daemon("");
    let truth = storm.command("spawn 1000");
    await_truth(&daemon, &storm, &truth);
    let truth = storm.command("release");
    let report = daemon.await_report("all ends", |report| {
        of_victim(report, storm.tgid()) == Some(truth.total())
            && by_spawner(report, storm.tgid(), &truth) == truth_by_spawner(&truth)
    });
    // There is room in the first again. The second still has threads that were started meanwhile.
    let threads = ground.overflow();
    assert!(threads < 1_000, "{threads}");
    let truth = storm.command("hold 1000");
    await_truth(&daemon, &storm, &truth);
    assert!(ground.overflow() <= threads, "{}", ground.overflow());
    for loss in ["live_full", "unmatched_ends", "replaced"] {
        assert_eq!(report.loss(loss), 0, "{loss}");
    }
    // What a target that is gone had in places and in hashes is taken out of them.
    assert!(ground.slots().0 > 0);
    storm.end();
    daemon.await_report("nobody", |report| {
        report.0["targets"].as_array().is_some_and(Vec::is_empty)
    });
    await_value("places taken, and tasks without", &(0, 0), || ground.slots());
    daemon.stop();
}

#[test]
fn births_beyond_both_hashes_are_untracked() {
    let Some(ground) = Ground::new("births_beyond_both_hashes_are_untracked") else {
        return;
    };
    // With the smallest bound that has places beside the hashes, of which few stay free, and with one that has none.
    overflow_both(&ground, LIVE_SLOTS_MAX, 1_000..2_000);
    let without = u64::from(LIVE_SLOTS_MAX) + 1_000;
    overflow_both(&ground, 1_000, without..without + 1_000);
}

/// Holds more tasks than there is room for in all three tables, of which the last has room for `more`, and so many are not tracked.
fn overflow_both(ground: &Ground, more: u32, untracked: Range<u64>) {
    let room = LIVE_FIRST_ENTRIES_MAX + more;
    let daemon = ground.daemon(&format!("live_entries_max = {room}"));
    let mut storm = Storm::start(&ground.program);
    warm_up(&daemon, &mut storm);
    let truth = storm.command(&format!("hold {}", room + LIVE_SLOTS_MAX + 1_000));
    let full = daemon.await_report("all births", |report| {
        let task = of_victim(report, storm.tgid()).unwrap_or_default();
        task.spawned + report.loss("live_full") == truth.total().spawned
    });
    assert!(
        untracked.contains(&full.loss("live_full")),
        "{}",
        full.loss("live_full")
    );
    assert_eq!(ground.overflow(), u64::from(more));
    let truth = storm.command("release");
    let untracked = full.loss("live_full");
    let expected = minus(&truth, untracked, untracked);
    daemon.await_report("all ends", |report| of_victim(report, storm.tgid()) == Some(expected));
    assert_eq!(ground.overflow(), 0);
    storm.end();
    daemon.stop();
}

#[test]
fn stacks_beyond_their_table_are_counted_by_their_site() {
    let test = "stacks_beyond_their_table_are_counted_by_their_site";
    let Some(mut watched) = Watched::start(test, "stacks_entries_max = 16") else {
        return;
    };
    warm_up(&watched.daemon, &mut watched.storm);
    let truth = watched.storm.command("stacks 100");
    let tgid = watched.storm.tgid();
    let named = |report: &Report| {
        let sites = report.callsites().into_iter().filter(|site| site["pid"] == tgid);
        let mut sum = Counts::default();
        sites.for_each(|site| sum.add(Counts::of(site)));
        sum
    };
    let report = watched.daemon.await_report("every task", |report| {
        of_victim(report, tgid) == Some(truth.total()) && named(report) == truth.total()
    });
    let without = report.loss("stacks_full");
    assert!(without >= 84, "{without}");
    assert_eq!(dropped(&watched.daemon, "stacks_full"), without);
    // Those that found no room are of one callsite, whose only frame is the probe site.
    let alone = report
        .callsites()
        .into_iter()
        .filter(|site| site["pid"] == tgid)
        .find(|site| {
            let stacks = site["stacks"].as_array().unwrap();
            site["live"].as_u64().unwrap() >= 84 && stacks.iter().all(|stack| stack["complete"] == false)
        });
    assert!(alone.is_some(), "{:#}", report.locations());
    watched.storm.end();
    watched.daemon.stop();
}

#[test]
fn births_of_a_stack_that_found_no_counter_are_untracked() {
    let test = "births_of_a_stack_that_found_no_counter_are_untracked";
    let Some(mut watched) = Watched::start(test, "counts_entries_max = 8") else {
        return;
    };
    warm_up(&watched.daemon, &mut watched.storm);
    let truth = watched.storm.command("stacks 100");
    let report = watched.daemon.await_report("all births", |report| {
        let task = of_victim(report, watched.storm.tgid()).unwrap_or_default();
        task.spawned + report.loss("counts_full") >= truth.total().spawned && task.spawned > 0
    });
    let task = of_victim(&report, watched.storm.tgid()).unwrap();
    assert_eq!(task.live, task.spawned - task.ended, "{task:?}");
    // Some stacks had counters already, and threads' callsites need some too.
    assert!(
        (90..=100).contains(&report.loss("counts_full")),
        "{:#}",
        report.0["loss"]
    );
    assert_eq!(report.loss("replaced"), 0);
    watched.storm.end();
    watched.daemon.stop();
}

#[test]
fn a_process_beyond_the_bound_on_targets_is_left_out() {
    let test = "a_process_beyond_the_bound_on_targets_is_left_out";
    let Some(mut watched) = Watched::start(test, "targets_entries_max = 1") else {
        return;
    };
    let truth = watched.storm.command("spawn 100");
    watched.await_task("the first process", truth.total());
    let mut second = Storm::start(&watched.program);
    let tasks_of_second = second.command("spawn 100").total();
    let report = watched.daemon.await_report("the other process's hits", |report| {
        report.loss("targets_full") >= tasks_of_second.spawned + tasks_of_second.ended
    });
    assert_eq!(of_victim(&report, second.tgid()), None);
    assert_eq!(of_victim(&report, watched.storm.tgid()), Some(truth.total()));
    assert!(dropped(&watched.daemon, "targets_full") > 0);
    second.end();
    watched.storm.end();
    watched.daemon.stop();
}

#[test]
fn a_process_with_too_many_hits_is_paused_and_right_afterwards() {
    let test = "a_process_with_too_many_hits_is_paused_and_right_afterwards";
    let Some(mut watched) = Watched::start(test, "hits_per_second_max = 5000\npause = \"2s\"") else {
        return;
    };
    let tgid = watched.storm.tgid();
    // Beside one that is not paused the probes stay, so each birth is counted or left out.
    let beside = Storm::start(&watched.program);
    watched
        .daemon
        .await_report("the other process", |report| of_victim(report, beside.tgid()).is_some());
    let truth = watched.storm.command("spawn 12500");
    let paused = watched.daemon.await_report("the pause", |report| {
        report.0["targets"]
            .as_array()
            .unwrap()
            .iter()
            .any(|target| target["status"] == "paused")
    });
    assert!(
        watched.target(&paused)["reason"]
            .as_str()
            .unwrap()
            .contains("not counted")
    );
    let metrics = watched.daemon.get("/metrics");
    assert!(sample(&metrics, "leakmon_targets", &["status=\"paused\""]).is_some());
    let after = watched.daemon.await_report("the end of the pause", |report| {
        watched.target(report)["status"] == "partial"
    });
    let untracked = after.loss("paused");
    assert!(untracked > 0 && dropped(&watched.daemon, "paused") == untracked);
    // Each birth was either counted or left out, and ends went on being seen.
    let ends = after.loss("untracked_ends");
    assert_eq!(after.loss("unmatched_ends"), 0);
    assert_eq!(of_victim(&after, tgid), Some(minus(&truth, untracked, ends)));

    // Too few to be paused again: exact from here on.
    let later = watched.storm.command("spawn 100");
    let report = watched.await_task("later tasks", minus(&later, untracked, ends));
    assert_eq!(report.loss("paused"), untracked);
    beside.end();
    watched.storm.end();
    watched.daemon.stop();
}
