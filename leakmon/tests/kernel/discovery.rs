//! Finding processes: many of them, coming and going, wanted and not wanted.

use super::{
    daemon::{Daemon, of_victim, sample},
    host,
    observer::{Attach, leakmon, signal},
    storm::Storm,
    truth::Report,
    victim::Victim,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Five programs, each an image of its own.
const IMAGES: [&str; 5] = [
    "leaky_registry",
    "fixed_registry",
    "every_spawn",
    "wrappers",
    "deep_stacks",
];
const PROCESSES: usize = 50;
const CHURN: Duration = Duration::from_secs(60);
/// Between two starts or ends.
const STEP: Duration = Duration::from_millis(25);

/// Cycles of exec and exit, and forks without exec.
const LIVES: &str = "10000";

/// What the daemon's memory may have grown by: what its caches keep by design (names and debug information of a few images).
const GROWTH_BYTES_MAX: u64 = 48 << 20;

/// Copies victims into a folder of their own, so that no other test's process is found.
fn copies(test: &str, folder: &Path, victims: &[&str]) -> Option<Vec<PathBuf>> {
    let copy = |victim: &&str| {
        let path = folder.join(victim);
        fs::copy(host::victim_for(test, victim)?, &path).unwrap();
        Some(path)
    };
    victims.iter().map(copy).collect()
}

fn search(folder: &Path, options: &[&str]) -> Daemon {
    let include = format!("exe={}/*", folder.display());
    let arguments = ["daemon", "--listen", "127.0.0.1:0", "--include", &include];
    // With these its memory is what it keeps, and not what the allocator keeps free (`man 3 mallopt`): one arena for all threads,
    // and what is free at its end goes back to the system. Large blocks do anyway (leakmon/src/heap.rs).
    let mut command = leakmon(&[&arguments, options].concat());
    command
        .env("MALLOC_ARENA_MAX", "1")
        .env("MALLOC_TRIM_THRESHOLD_", "131072");
    Daemon::spawn(&mut command)
}

fn tgids(report: &Report) -> Vec<u64> {
    let targets = report.0["targets"].as_array().unwrap().iter();
    targets.map(|target| target["pid"].as_u64().unwrap()).collect()
}

/// What a process has open: each kind of thing, or file, and how often. Connections come and go with this test's own requests.
fn descriptors(tgid: u32) -> BTreeMap<PathBuf, usize> {
    let mut open = BTreeMap::new();
    for link in fs::read_dir(format!("/proc/{tgid}/fd")).unwrap() {
        let Ok(target) = fs::read_link(link.unwrap().path()) else {
            continue;
        };
        if !target.to_string_lossy().starts_with("socket:") {
            *open.entry(target).or_default() += 1;
        }
    }
    open
}

/// Open probes, and open files below a folder.
fn probes_and_files(tgid: u32, folder: &Path) -> (usize, usize) {
    let open = descriptors(tgid);
    let count = |wanted: &dyn Fn(&Path) -> bool| {
        open.iter()
            .filter(|(path, _)| wanted(path))
            .map(|(_, count)| count)
            .sum()
    };
    let is_probe = |path: &Path| {
        ["anon_inode:bpf_link", "anon_inode:[perf_event]"]
            .iter()
            .any(|kind| path == Path::new(kind))
    };
    (count(&is_probe), count(&|path| path.starts_with(folder)))
}

/// Files that a process maps executable.
fn mapped_files(tgid: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{tgid}/maps")).unwrap();
    let executable = maps
        .lines()
        .filter(|line| line.contains(" r-xp ") && line.contains('/'));
    let paths: BTreeSet<&str> = executable.map(|line| &line[line.find('/').unwrap()..]).collect();
    paths.len() as u64
}

fn resident_bytes(tgid: u32) -> u64 {
    status_bytes(tgid, "VmRSS:")
}

/// A line of `/proc/PID/status` that is in kB (proc_pid_status(5)).
pub(super) fn status_bytes(tgid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{tgid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Value of a metric without labels.
fn plain(metrics: &str, name: &str) -> u64 {
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {metrics}"))
        .parse::<f64>()
        .unwrap() as u64
}

/// The same numbers in the same order each time (`xorshift64`, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// Runs each image once, so that all are watched, and then as many processes as there will be to their end, so that all is known
/// that is kept, and memory is what so many take.
fn introduce(daemon: &Daemon, images: &[PathBuf], population: usize) {
    for count in [images.len(), population] {
        let paths = images.iter().cycle().take(count);
        let mut victims: Vec<Victim> = paths.map(|path| Victim::start(path, &[])).collect();
        daemon.await_report("one process of each image", |report| {
            victims.iter().all(|victim| of_victim(report, victim.tgid()).is_some())
        });
        if count == population {
            check(daemon, &mut victims);
        }
        victims.drain(..).for_each(Victim::kill);
        await_nobody(daemon);
    }
}

fn await_nobody(daemon: &Daemon) {
    daemon.await_report("the end of all targets", |report| tgids(report).is_empty());
}

/// Lets victims work to their end, and compares.
fn check(daemon: &Daemon, victims: &mut [Victim]) {
    let totals: Vec<_> = victims
        .iter_mut()
        .map(|victim| {
            victim.await_ready();
            victim.go_on();
            victim.await_ready();
            victim.go_on();
            (victim.tgid(), victim.truth().total())
        })
        .collect();
    daemon.await_report("the truth of each process", |report| {
        totals
            .iter()
            .all(|(tgid, total)| of_victim(report, *tgid) == Some(*total))
    });
}

/// Starts and kills processes at random. Returns those that are left, before their first phase.
fn come_and_go(images: &[PathBuf]) -> Vec<Victim> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut slots: Vec<Option<Victim>> = (0..PROCESSES).map(|_| None).collect();
    let (mut started, mut killed) = (0, 0);
    let end = Instant::now() + CHURN;
    while Instant::now() < end {
        let slot = &mut slots[random.below(PROCESSES)];
        match slot.take() {
            // Most are left alone at first, so that the population grows.
            Some(victim) if random.below(3) > 0 => *slot = Some(victim),
            Some(victim) => {
                killed += 1;
                victim.kill();
            }
            None => {
                let mut victim = Victim::start(&images[random.below(images.len())], &[]);
                started += 1;
                // Some are killed in the middle of their work.
                if random.below(2) == 0 {
                    victim.await_ready();
                    victim.go_on();
                    victim.go_on();
                    if random.below(2) == 0 {
                        signal(victim.tgid(), Signal::SIGKILL);
                    }
                    drop(victim);
                    killed += 1;
                } else {
                    *slot = Some(victim);
                }
            }
        }
        // tidy: the pace of what the test does, not a wait for anything.
        std::thread::sleep(STEP);
    }
    let survivors: Vec<Victim> = slots.into_iter().flatten().collect();
    eprintln!("{started} started, {killed} ended, {} survive", survivors.len());
    assert!(started >= PROCESSES && !survivors.is_empty());
    survivors
}

#[test]
fn processes_that_come_and_go_at_random_leave_nothing_behind() {
    let test = "processes_that_come_and_go_at_random_leave_nothing_behind";
    let folder = tempfile::tempdir().unwrap();
    let Some(images) = copies(test, folder.path(), &IMAGES) else {
        return;
    };
    let daemon = search(folder.path(), &[]);
    let path = folder.path().to_owned();
    let at_start = probes_and_files(daemon.tgid(), &path);
    introduce(&daemon, &images, PROCESSES);
    let (descriptors_before, bytes_before) = (descriptors(daemon.tgid()), resident_bytes(daemon.tgid()));

    let mut survivors = come_and_go(&images);
    check(&daemon, &mut survivors);
    let mut expected: Vec<u64> = survivors.iter().map(|victim| victim.tgid().into()).collect();
    expected.sort_unstable();
    daemon.await_report("no other target", |report| tgids(report) == expected);

    survivors.drain(..).for_each(Victim::kill);
    await_nobody(&daemon);
    let metrics = daemon.get("/metrics");
    assert_eq!(sample(&metrics, "leakmon_map_entries", &["map=\"counts\""]), Some(0.0));
    await_value("descriptors as before", &descriptors_before, || {
        descriptors(daemon.tgid())
    });
    let growth = resident_bytes(daemon.tgid()).saturating_sub(bytes_before);
    println!("memory grew by {} KiB", growth / 1024);
    assert!(growth < GROWTH_BYTES_MAX, "{growth} bytes");

    // Without their files the images can't come back, so nothing of them is kept.
    assert_ne!(probes_and_files(daemon.tgid(), &path), at_start);
    drop(folder);
    await_value("images", &0, || plain(&daemon.get("/metrics"), "leakmon_images"));
    await_value("probes and files", &at_start, || probes_and_files(daemon.tgid(), &path));
    daemon.stop();
}

/// Asks until a value is as it was; probes take a tenth of a second each to close.
pub(super) fn await_value<T: PartialEq + std::fmt::Debug>(what: &str, wanted: &T, mut value: impl FnMut() -> T) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while value() != *wanted {
        assert!(Instant::now() < deadline, "{what}: {:?} instead of {wanted:?}", value());
        // tidy: between two questions; the deadline is above.
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn ten_thousand_execs_and_forks_leave_nothing_behind() {
    let test = "ten_thousand_execs_and_forks_leave_nothing_behind";
    let folder = tempfile::tempdir().unwrap();
    let Some(images) = copies(test, folder.path(), &["many_lives"]) else {
        return;
    };
    let daemon = search(folder.path(), &[]);
    introduce(&daemon, &images, images.len() + 1);
    let (descriptors_before, bytes_before) = (descriptors(daemon.tgid()), resident_bytes(daemon.tgid()));
    let mut victim = Victim::start(&images[0], &["--execs", LIVES, "--forks", LIVES]);
    victim.await_ready();
    victim.go_on();
    victim.await_ready();
    victim.go_on();
    let total = victim.truth().total();
    let report = daemon.await_report("the victim alone, with its own tasks", |report| {
        tgids(report) == [u64::from(victim.tgid())] && of_victim(report, victim.tgid()) == Some(total)
    });
    for loss in ["live_full", "stacks_full", "unmatched_ends", "replaced"] {
        assert_eq!(report.loss(loss), 0, "{loss}");
    }
    victim.kill();
    await_nobody(&daemon);
    await_value("descriptors as before", &descriptors_before, || {
        descriptors(daemon.tgid())
    });
    let growth = resident_bytes(daemon.tgid()).saturating_sub(bytes_before);
    println!("memory grew by {} KiB", growth / 1024);
    assert!(growth < GROWTH_BYTES_MAX, "{growth} bytes");
    let metrics = daemon.get("/metrics");
    for map in ["counts", "targets"] {
        assert_eq!(
            sample(&metrics, "leakmon_map_entries", &[&format!("map=\"{map}\"")]),
            Some(0.0),
            "{map}"
        );
    }
    daemon.stop();
}

#[test]
fn an_image_is_analysed_once_and_rules_choose_among_its_processes() {
    let test = "an_image_is_analysed_once_and_rules_choose_among_its_processes";
    let folder = tempfile::tempdir().unwrap();
    let Some(images) = copies(test, folder.path(), &["leaky_registry"]) else {
        return;
    };
    let start = |pace: &str| Victim::start(&images[0], &["--pace-ms", pace]);
    let mut older = start("0");
    older.await_ready();
    let daemon = search(folder.path(), &["--exclude", "command=*--pace-ms 1"]);
    daemon.await_report("the process that was there before", |report| {
        of_victim(report, older.tgid()).is_some()
    });
    // Its own file and its libraries, each once.
    let files = mapped_files(older.tgid());
    let analysed = || plain(&daemon.get("/metrics"), "leakmon_files_analysed_total");
    await_value("files analysed", &files, analysed);
    let mut wanted: Vec<Victim> = (0..3).map(|_| start("0")).collect();
    let mut unwanted: Vec<Victim> = (0..3).map(|_| start("1")).collect();
    for victim in &mut unwanted {
        victim.await_ready();
        victim.go_on();
        victim.await_ready();
        victim.go_on();
        victim.truth();
    }
    check(&daemon, &mut wanted);
    // The older one's first tasks are older than the probes.
    older.go_on();
    older.await_ready();
    older.go_on();
    older.truth();
    let report = daemon.report();
    let mut expected: Vec<u64> = wanted
        .iter()
        .chain([&older])
        .map(|victim| victim.tgid().into())
        .collect();
    expected.sort_unstable();
    assert_eq!(tgids(&report), expected);
    let metrics = daemon.get("/metrics");
    for victim in &unwanted {
        assert_eq!(
            sample(&metrics, "leakmon_tasks_live", &[&format!("pid=\"{}\"", victim.tgid())]),
            None
        );
    }
    assert_eq!(plain(&metrics, "leakmon_images"), 1);
    assert_eq!(plain(&metrics, "leakmon_files_analysed_total"), files);
    daemon.stop();
}

#[test]
fn attach_all_finds_what_runs_already() {
    let test = "attach_all_finds_what_runs_already";
    let folder = tempfile::tempdir().unwrap();
    let Some(images) = copies(test, folder.path(), &["leaky_registry", "every_spawn"]) else {
        return;
    };
    let mut victims: Vec<Victim> = images.iter().map(|path| Victim::start(path, &[])).collect();
    for victim in &mut victims {
        victim.await_ready();
        victim.go_on();
        victim.await_ready();
    }
    let user = nix::unistd::geteuid();
    let include = format!("exe={}/*,user={user}", folder.path().display());
    let attach = Attach::start(&["--all", "--include", &include]);
    victims.iter_mut().for_each(Victim::go_on);
    let truths: Vec<_> = victims.iter_mut().map(Victim::truth).collect();
    let report = attach.report();
    assert_eq!(tgids(&report).len(), victims.len());
    for (victim, truth) in victims.iter().zip(truths) {
        assert_eq!(of_victim(&report, victim.tgid()), Some(truth.second_phase()));
        assert!(truth.older_ended() > 0, "some of its old tasks end");
        let targets = report.0["targets"].as_array().unwrap();
        let target = targets.iter().find(|target| target["pid"] == victim.tgid()).unwrap();
        assert_eq!(target["status"], "attached", "{target:#}");
    }
}

#[test]
fn a_process_that_is_named_is_watched_whatever_the_rules_say() {
    let test = "a_process_that_is_named_is_watched_whatever_the_rules_say";
    let Some(path) = host::victim_for(test, "leaky_registry") else {
        return;
    };
    for rule in [["--include", "exe=/nonexistent"], ["--exclude", "command=*"]] {
        let mut victim = Victim::start(&path, &[]);
        victim.await_ready();
        let attach = Attach::start(&[&["-p", &victim.tgid().to_string()], &rule[..]].concat());
        victim.go_on();
        victim.await_ready();
        victim.go_on();
        let expected = victim.truth().without_workers();
        assert_eq!(of_victim(&attach.report(), victim.tgid()), Some(expected), "{rule:?}");
    }
}

#[test]
fn what_is_older_is_known_of_a_process_that_spawns_while_it_is_found() {
    let test = "what_is_older_is_known_of_a_process_that_spawns_while_it_is_found";
    let folder = tempfile::tempdir().unwrap();
    let Some(images) = copies(test, folder.path(), &["storm"]) else {
        return;
    };
    const HELD: u64 = 50;
    let mut storm = Storm::start(&images[0]);
    storm.command(&format!("hold {HELD}"));
    storm.load();
    let daemon = Daemon::start(&["--include", &format!("exe={}/*", folder.path().display())]);
    let held = |site: &Value| site["born_before_attach"] == HELD && site["live"] == HELD;
    let report = daemon.await_report("a row of the older ones", |report| {
        report.callsites().iter().any(|site| held(site))
    });
    assert_eq!(tgids(&report), [u64::from(storm.tgid())]);
    let target = &report.0["targets"][0];
    assert_eq!(target["status"], "attached", "{target:#}");
    assert_eq!(target["census"]["disagreement"]["unseen_births"], 0, "{target:#}");
    daemon.stop();
    storm.end();
}
