//! A daemon that the kernel keeps waiting for probes, while others' probes are taken away.

use super::{
    daemon::{Daemon, of_victim},
    host,
    observer::{Attach, Run},
    restart::{Ground, await_truth},
    storm::{Storm, warm_up},
    truth::{Counts, Report},
};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Observations that end at once. Each leaves the probes of an image, which go one after the other, each in a grace period of the
/// kernel's.
const ENDING: usize = 4;

/// Another test may have the machine just when the probes would have been waited for.
const TRIES: usize = 3;

/// A kernel that has attached by then did not keep anybody waiting.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Attached sites of a process's image; 0 before it is attached.
fn sites(report: &Report, tgid: u32) -> u64 {
    let targets = report.0["targets"].as_array().unwrap();
    let target = targets.iter().find(|target| target["pid"] == tgid);
    target.map_or(0, |target| target["sites"]["spawn"].as_u64().unwrap())
}

/// Has many probes taken away from now on, of copies that nobody else watches.
fn take_probes_away(ground: &Ground) {
    let elsewhere = tempfile::tempdir().unwrap();
    let begin = |number: usize| {
        let copy = elsewhere.path().join(number.to_string());
        std::fs::copy(&ground.program, &copy).unwrap();
        Attach::start(&["--exe", copy.to_str().unwrap()])
    };
    let observations: Vec<Attach> = (0..ENDING).map(begin).collect();
    std::thread::scope(|scope| {
        for observation in observations {
            scope.spawn(move || observation.report());
        }
    });
}

/// Starts a copy that the daemon does not know, and returns when its probes are being attached.
fn begin_another(ground: &Ground, daemon: &Daemon, name: &str) -> Storm {
    let known = ground.images().len();
    let copy = ground.copy(name);
    take_probes_away(ground);
    let another = Storm::start(&copy);
    daemon.await_report("another image's number", |_| ground.images().len() > known);
    another
}

#[test]
fn what_is_counted_is_told_while_another_image_waits_for_its_probes() {
    const TEST: &str = "what_is_counted_is_told_while_another_image_waits_for_its_probes";
    let Some(ground) = Ground::new(TEST) else {
        return;
    };
    let daemon = ground.watch_and_search();
    let mut storm = Storm::start(&ground.program);
    warm_up(&daemon, &mut storm);
    let mut slowest = Duration::ZERO;
    for number in 0..TRIES {
        let another = begin_another(&ground, &daemon, &number.to_string());
        let began = Instant::now();
        let truth = storm.command("spawn 10");
        let report = daemon.await_report("later tasks", |report| {
            of_victim(report, storm.tgid()) == Some(truth.total())
        });
        let is_told_before = sites(&report, another.tgid()) == 0;
        slowest = slowest.max(began.elapsed());
        daemon.await_report("the other image", |report| sites(report, another.tgid()) > 0);
        another.end();
        if is_told_before {
            storm.end();
            return daemon.stop();
        }
    }
    if slowest < AT_ONCE {
        return host::skip(TEST, "this kernel attaches at once while probes are taken away");
    }
    panic!("what is counted was told only when the other image had its probes");
}

#[test]
fn what_a_command_starts_is_counted_from_its_first_task_however_long_its_probes_take() {
    const TEST: &str = "what_a_command_starts_is_counted_from_its_first_task_however_long_its_probes_take";
    let (Some(ground), Some(program)) = (Ground::new(TEST), host::victim_for(TEST, "leaky_registry")) else {
        return;
    };
    take_probes_away(&ground);
    let script = format!("{}; true", program.display());
    let run = Run::of(&[], Path::new("/bin/sh"), &["-c", &script]);
    let target = &run.report.0["targets"].as_array().unwrap()[0];
    assert_eq!(Counts::of(&target["task"]), run.truth().total());
    assert_eq!(target["status"], "attached", "{target:#}");
}

#[test]
fn a_daemon_that_ends_while_an_image_waits_leaves_nothing_of_it() {
    let Some(ground) = Ground::new("a_daemon_that_ends_while_an_image_waits_leaves_nothing_of_it") else {
        return;
    };
    let daemon = ground.watch_and_search();
    let mut storm = Storm::start(&ground.program);
    warm_up(&daemon, &mut storm);
    let known = ground.images();
    let mut another = begin_another(&ground, &daemon, "another");
    let is_attached = sites(&daemon.report(), another.tgid()) > 0;
    daemon.stop();
    // Unless it was sooner than the end, which the next daemon shows all the same.
    if !is_attached && ground.images() == known {
        let of_known = |name: &String| known.iter().any(|number| name.starts_with(&format!("i{number}_")));
        let links = ground.links();
        assert!(
            links.iter().all(|name| name.starts_with("t_") || of_known(name)),
            "{links:?}"
        );
    }
    let truth = storm.command("hold 5");
    let daemon = ground.watch_and_search();
    await_truth(&daemon, &storm, &truth);
    daemon.await_report("the other image", |report| sites(report, another.tgid()) > 0);
    let before = another.command("").total().spawned;
    let shown = of_victim(&daemon.report(), another.tgid()).unwrap().spawned;
    let later = another.command("spawn 100").total().spawned - before;
    daemon.await_report("its later tasks, each once", |report| {
        of_victim(report, another.tgid()).unwrap().spawned == shown + later
    });
    another.end();
    storm.end();
    daemon.stop();
}
