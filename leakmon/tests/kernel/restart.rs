//! A daemon that is killed and started again, while its target goes on.

use super::{
    daemon::{Daemon, of_victim},
    host,
    observer::{leakmon, signal},
    storm::{Storm, by_spawner, truth_by_spawner, warm_up},
    truth::{Report, Truth},
};
use aya::maps::{Array, Map, MapData};
use leakmon_ebpf::abi::LiveSlot;
use nix::sys::signal::Signal;
use std::{
    path::PathBuf,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};
use zerocopy::FromBytes as _;

/// Restarts that must all be exact.
const RESTARTS: usize = 20;

/// Room for the rounding of ages, and for the time between two looks at clocks.
const AGE_SLACK: Duration = Duration::from_secs(1);

/// A directory of pins that no other test uses, and a program of its own. Both go with it.
pub(super) struct Ground {
    pins: PathBuf,
    pub(super) program: PathBuf,
    folder: tempfile::TempDir,
}

impl Ground {
    pub(super) fn new(test: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let victim = host::victim_for(test, "storm")?;
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("storm");
        std::fs::copy(victim, &program).unwrap();
        let number = NEXT.fetch_add(1, Relaxed);
        Some(Self {
            pins: PathBuf::from(format!("/sys/fs/bpf/leakmon_test_{}_{number}", std::process::id())),
            program,
            folder,
        })
    }

    /// A daemon that watches the program.
    pub(super) fn daemon(&self, bounds: &str) -> Daemon {
        self.start(bounds, &["--exe", self.program.to_str().unwrap()])
    }

    /// A daemon that searches for programs in the folder.
    fn search(&self) -> Daemon {
        self.start("", &["--include", &format!("exe={}/*", self.folder.path().display())])
    }

    fn start(&self, bounds: &str, what: &[&str]) -> Daemon {
        let config = self.program.with_extension("toml");
        std::fs::write(&config, format!("interval = \"200ms\"\n[bounds]\n{bounds}\n")).unwrap();
        let [config, pins] = [&config, &self.pins].map(|path| path.to_str().unwrap());
        Daemon::start(&[&["--config", config, "--pin", "--pin-dir", pins], what].concat())
    }

    /// Tasks that are in the second of the two hashes of live ones.
    pub(super) fn overflow(&self) -> u64 {
        let map = MapData::from_pin(self.pins.join("maps/OVERFLOW")).unwrap();
        Array::<_, u64>::try_from(Map::Array(map)).unwrap().get(&0, 0).unwrap()
    }

    /// Places of live tasks that are not free, and the tasks and threads that found theirs taken.
    pub(super) fn slots(&self) -> (usize, u64) {
        let map = MapData::from_pin(self.pins.join("maps/LIVE_SLOTS")).unwrap();
        let slots = Array::<_, [u8; size_of::<LiveSlot>()]>::try_from(Map::Array(map)).unwrap();
        let slots = slots
            .iter()
            .map(|slot| LiveSlot::read_from_bytes(&slot.unwrap()).unwrap());
        slots.fold((0, 0), |(taken, spilled), slot| {
            let is_taken = slot.state & LiveSlot::PHASES != LiveSlot::FREE;
            (taken + usize::from(is_taken), spilled + slot.spilled)
        })
    }

    fn clean_up(&self) -> Output {
        leakmon(&["daemon", "--cleanup", "--pin-dir", self.pins.to_str().unwrap()])
            .output()
            .unwrap()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // A test that fails must leave no probe behind; one that has cleaned up leaves nothing to do.
        let _removed = Command::new(env!("CARGO_BIN_EXE_leakmon"))
            .args(["daemon", "--cleanup", "--pin-dir"])
            .arg(&self.pins)
            .output();
    }
}

/// The report once every callsite of the storm is as its truth says, and ages are known.
pub(super) fn await_truth(daemon: &Daemon, storm: &Storm, truth: &Truth) -> Report {
    daemon.await_report("the truth of every callsite", |report| {
        of_victim(report, storm.tgid()) == Some(truth.total())
            && by_spawner(report, storm.tgid(), truth) == truth_by_spawner(truth)
            && oldest_seconds(report, storm.tgid()).is_some()
    })
}

/// Ids of the callsites of tasks.
fn callsites(report: &Report, tgid: u32) -> Vec<String> {
    let mine = report.callsites().into_iter().filter(|site| site["pid"] == tgid);
    mine.map(|site| site["id"].as_str().unwrap().to_owned()).collect()
}

/// The age of the oldest task that `hold` spawned.
fn oldest_seconds(report: &Report, tgid: u32) -> Option<f64> {
    let mut mine = report.callsites().into_iter().filter(|site| site["pid"] == tgid);
    mine.find(|site| site["location"]["function"] == "storm::hold")?["oldest_seconds"].as_f64()
}

#[test]
fn a_daemon_that_is_killed_goes_on_exactly_where_it_was() {
    let Some(ground) = Ground::new("a_daemon_that_is_killed_goes_on_exactly_where_it_was") else {
        return;
    };
    let mut daemon = ground.daemon("");
    let mut storm = Storm::start(&ground.program);
    warm_up(&daemon, &mut storm);
    let began = Instant::now();
    storm.command("hold 20");
    let truth = storm.command("spawn 100");
    let ids = callsites(&await_truth(&daemon, &storm, &truth), storm.tgid());
    for round in 0..RESTARTS {
        // At full load it is killed, in the gap all goes on, and at full load it is started again.
        let before = truth.total().spawned;
        storm.load();
        daemon.await_report("the load", |report| {
            of_victim(report, storm.tgid()).unwrap_or_default().spawned > before
        });
        daemon.kill();
        storm.command("spawn 64");
        storm.load();
        daemon = ground.daemon("");
        let truth = storm.command("");
        let report = await_truth(&daemon, &storm, &truth);
        let ids_now = callsites(&report, storm.tgid());
        assert!(
            ids.iter().all(|id| ids_now.contains(id)),
            "round {round}: {ids:?} {ids_now:?}"
        );
        let (oldest_seconds, age) = (
            oldest_seconds(&report, storm.tgid()).unwrap(),
            began.elapsed().as_secs_f64(),
        );
        assert!(
            (oldest_seconds - age).abs() < AGE_SLACK.as_secs_f64() + 1.0,
            "round {round}: {oldest_seconds} of {age}"
        );
        for loss in [
            "live_full",
            "counts_full",
            "stacks_full",
            "unmatched_ends",
            "replaced",
            "paused",
        ] {
            assert_eq!(report.loss(loss), 0, "{loss} in round {round}");
        }
        let target = report.0["targets"].as_array().unwrap()[0].clone();
        assert_eq!(target["status"], "attached", "{target:#}");
    }
    daemon.kill();
    // It goes on without anybody who counts, and without probes.
    storm.command("spawn 64");
    assert!(ground.clean_up().status.success());
    assert!(!ground.pins.exists());
    storm.command("spawn 64");
    storm.end();
}

#[test]
fn what_ended_in_the_gap_is_dropped_and_what_began_is_counted() {
    let Some(ground) = Ground::new("what_ended_in_the_gap_is_dropped_and_what_began_is_counted") else {
        return;
    };
    let daemon = ground.daemon("");
    let mut first = Storm::start(&ground.program);
    warm_up(&daemon, &mut first);
    let truth = first.command("hold 50");
    await_truth(&daemon, &first, &truth);
    daemon.kill();
    let gone = first.tgid();
    signal(gone, Signal::SIGKILL);
    drop(first);
    let mut second = Storm::start(&ground.program);
    let truth = second.command("hold 30");
    let daemon = ground.daemon("");
    // Its stacks are whole from now on; its counts always were.
    daemon.await_report("the process of the gap alone", |report| {
        of_victim(report, second.tgid()) == Some(truth.total()) && of_victim(report, gone).is_none()
    });
    let later = second.command("spawn 100");
    daemon.await_report("later tasks", |report| {
        of_victim(report, second.tgid()) == Some(later.total())
    });
    second.end();
    daemon.stop();
}

#[test]
fn a_process_of_an_unknown_image_that_began_in_the_gap_is_partial() {
    let Some(ground) = Ground::new("a_process_of_an_unknown_image_that_began_in_the_gap_is_partial") else {
        return;
    };
    let daemon = ground.daemon("");
    let mut first = Storm::start(&ground.program);
    warm_up(&daemon, &mut first);
    let before = first.command("hold 50");
    await_truth(&daemon, &first, &before);
    daemon.kill();
    // One of the image that was known, one of another.
    let unknown = ground.folder.path().join("unknown");
    std::fs::copy(&ground.program, &unknown).unwrap();
    let (mut known, mut unknown) = (Storm::start(&ground.program), Storm::start(&unknown));
    let (of_known, of_unknown) = (known.command("hold 30"), unknown.command("hold 20"));
    let daemon = ground.search();
    let status = |report: &Report, storm: &Storm| {
        let targets = report.0["targets"].as_array().unwrap();
        let target = targets.iter().find(|target| target["pid"] == storm.tgid())?;
        Some((target["status"].as_str()?.to_owned(), target["reason"].to_string()))
    };
    let report = daemon.await_report("all three", |report| {
        of_victim(report, first.tgid()) == Some(before.total())
            && of_victim(report, known.tgid()) == Some(of_known.total())
            && status(report, &unknown).is_some()
    });
    for storm in [&first, &known] {
        assert_eq!(status(&report, storm).unwrap().0, "attached");
    }
    let (word, reason) = status(&report, &unknown).unwrap();
    assert!(word == "partial" && reason.contains("restarted"), "{word}: {reason}");
    // What is born from now on is counted exactly.
    let later = unknown.command("spawn 100").total().spawned - of_unknown.total().spawned;
    daemon.await_report("later tasks", |report| {
        of_victim(report, unknown.tgid()).unwrap_or_default().spawned == later
    });
    // What is older than the attach is still so after another restart.
    let older = |report: &Report| {
        let targets = report.0["targets"].as_array().unwrap();
        let target = targets.iter().find(|target| target["pid"] == unknown.tgid())?;
        target["census"]["older"]["live"].as_u64()
    };
    let found = older(&daemon.await_report("older tasks", |report| older(report).is_some())).unwrap();
    assert!(found >= 20, "{found}");
    daemon.kill();
    let daemon = ground.search();
    daemon.await_report("the same older tasks", |report| older(report) == Some(found));
    for storm in [first, known, unknown] {
        storm.end();
    }
    daemon.stop();
}

#[test]
fn what_another_version_pinned_is_discarded() {
    let Some(ground) = Ground::new("what_another_version_pinned_is_discarded") else {
        return;
    };
    let daemon = ground.daemon("");
    let mut storm = Storm::start(&ground.program);
    warm_up(&daemon, &mut storm);
    let before = storm.command("hold 50");
    await_truth(&daemon, &storm, &before);
    // SIGTERM keeps what is pinned, as a restart by systemd needs it.
    daemon.stop();
    // Other bounds are other maps, as another version's are.
    let daemon = ground.daemon("live_entries_max = 5000");
    let after = storm.command("spawn 10");
    let born_since = after.total().spawned - before.total().spawned;
    daemon.await_report("what was born since", |report| {
        of_victim(report, storm.tgid()).unwrap_or_default().spawned == born_since
    });
    storm.end();
    daemon.stop();
}

#[test]
fn a_directory_belongs_to_one_daemon() {
    let Some(ground) = Ground::new("a_directory_belongs_to_one_daemon") else {
        return;
    };
    let daemon = ground.daemon("");
    let arguments = [
        "daemon",
        "--exe",
        ground.program.to_str().unwrap(),
        "--pin",
        "--listen",
        "127.0.0.1:0",
        "--pin-dir",
    ];
    let second = leakmon(&arguments).arg(&ground.pins).output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("another leakmon daemon is running"), "{said}");
    let cleanup = ground.clean_up();
    assert_eq!(
        cleanup.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&cleanup.stderr)
    );
    daemon.stop();
    // What it kept is removed once it has gone, and a second time there is nothing to do.
    assert!(ground.clean_up().status.success());
    assert!(!ground.pins.exists());
    assert!(ground.clean_up().status.success());
}

#[test]
fn a_place_that_is_no_bpf_file_system_is_refused() {
    if !host::can_probe("a_place_that_is_no_bpf_file_system_is_refused") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = leakmon(&["daemon", "-p", "1", "--pin", "--pin-dir"])
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("mount -t bpf") && said.contains("--no-pin"), "{said}");
}
