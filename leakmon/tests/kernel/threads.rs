//! Threads of any program: as many as `/proc` has, and named by who started them.

use super::{
    host,
    observer::{Attach, signal},
    truth::{Counts, Report},
};
use nix::sys::signal::Signal;
use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

/// Threads that a phase of a victim leaves behind, and that it starts and ends.
const LEAKED: u64 = 5;
const ENDED: u64 = 4;

/// What is awaited takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

const PYTHON: &str = "/usr/bin/python3";
const PYTHON_VICTIM: &str = "
import sys, threading
for line in [None] + [None] * 100:
    for _ in range(5): threading.Thread(target=threading.Event().wait, daemon=True).start()
    for _ in range(4):
        thread = threading.Thread(target=int); thread.start(); thread.join()
    print('ready', flush=True)
    if not sys.stdin.readline(): break
";

/// A program that starts threads at each line of its input.
struct Threaded {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Threaded {
    /// Starts it and waits until its first phase is over.
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut victim = Self { child, input, output };
        victim.await_ready();
        victim
    }

    fn tgid(&self) -> u32 {
        self.child.id()
    }

    fn phase(&mut self, what: &str) {
        writeln!(self.input, "{what}").unwrap();
        self.await_ready();
    }

    fn await_ready(&mut self) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
    }

    /// Threads that `/proc` shows and that run, once they are as many as `expected`: what has ended goes a little later.
    fn await_threads(&self, expected: u64) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let running = running_threads(self.tgid());
            if running == expected || Instant::now() > deadline {
                return running;
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Threaded {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

fn running_threads(tgid: u32) -> u64 {
    let entries = std::fs::read_dir(format!("/proc/{tgid}/task")).unwrap();
    let runs = |entry: std::io::Result<std::fs::DirEntry>| {
        let status = std::fs::read_to_string(entry.ok()?.path().join("status")).ok()?;
        let state = status.lines().find_map(|line| line.strip_prefix("State:\t"))?;
        (!state.starts_with(['Z', 'X'])).then_some(())
    };
    entries.filter_map(runs).count() as u64
}

/// Compiles the C victim.
fn c_victim(folder: &Path) -> PathBuf {
    let program = folder.join("threads");
    let compiled = Command::new("cc")
        .args(["-O2", "-pthread", "-o"])
        .arg(&program)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernel/threads.c"))
        .status()
        .unwrap();
    assert!(compiled.success());
    program
}

/// Threads of one process, summed over its callsites whose function is this.
fn started_by(report: &Report, function: &str) -> Counts {
    let mut sum = Counts::default();
    for callsite in report.threads() {
        let known = callsite["location"]["function"].as_str().unwrap_or_default();
        if known == function || known.ends_with(&format!("::{function}")) {
            sum.add(Counts::of(callsite));
        }
    }
    sum
}

fn leaked(count: u64) -> Counts {
    Counts {
        spawned: count,
        ended: 0,
        live: count,
    }
}

fn ended(count: u64) -> Counts {
    Counts {
        spawned: count,
        ended: count,
        live: 0,
    }
}

/// Watches the second phase of a victim: what was there before is counted too, what comes is named.
fn threads_are_counted(mut victim: Threaded, leaking: &str, ending: &str) -> Report {
    let before = victim.await_threads(1 + LEAKED);
    let attach = Attach::start(&["-p", &victim.tgid().to_string()]);
    victim.phase("");
    let running = victim.await_threads(before + LEAKED);
    let report = attach.report();
    let thread = Counts::of(&report.target()["thread"]);
    assert_eq!(thread.live, running, "{:#}", report.0);
    assert_eq!(thread.spawned, before + LEAKED + ENDED);
    if leaking == ending {
        let mut both = leaked(LEAKED);
        both.add(ended(ENDED));
        assert_eq!(started_by(&report, leaking), both, "{:#}", report.0);
    } else {
        assert_eq!(started_by(&report, leaking), leaked(LEAKED), "{:#}", report.0);
        assert_eq!(started_by(&report, ending), ended(ENDED), "{:#}", report.0);
    }
    // Nobody can know who started those that were there before.
    assert_eq!(started_by(&report, "").live, before);
    for callsite in report.threads() {
        assert!(
            Counts::of(callsite).live == 0 || callsite["oldest_seconds"].is_f64(),
            "{callsite:#}"
        );
    }
    report
}

#[test]
fn threads_of_a_c_program_are_counted_and_named() {
    if !host::can_probe("threads_of_a_c_program_are_counted_and_named") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let victim = Threaded::start(&mut Command::new(c_victim(folder.path())));
    let report = threads_are_counted(victim, "accept_one", "compute_one");
    assert_eq!(report.target()["status"], "unsupported");
    let reason = report.target()["reason"].as_str().unwrap();
    assert!(reason.contains("threads alone are watched"), "{reason}");
}

#[test]
fn threads_of_a_rust_program_are_counted_and_named() {
    let test = "threads_of_a_rust_program_are_counted_and_named";
    let Some(path) = host::victim_for(test, "leaky_threads") else {
        return;
    };
    threads_are_counted(Threaded::start(&mut Command::new(path)), "accept", "compute");
}

#[test]
fn threads_of_a_python_program_are_counted() {
    let test = "threads_of_a_python_program_are_counted";
    if !host::can_probe(test) {
        return;
    }
    if !Path::new(PYTHON).exists() {
        return host::skip(test, "python3 is not installed: run `cargo xtask setup`");
    }
    let victim = Threaded::start(Command::new(PYTHON).args(["-c", PYTHON_VICTIM]));
    // The interpreter's own function is all that the native stack tells.
    threads_are_counted(victim, "PyThread_start_new_thread", "PyThread_start_new_thread");
}

#[test]
fn threads_of_a_tokio_program_are_as_many_as_the_kernel_has() {
    let test = "threads_of_a_tokio_program_are_as_many_as_the_kernel_has";
    let Some(path) = host::victim_for(test, "leaky_registry") else {
        return;
    };
    let mut victim = super::victim::Victim::start(&path, &[]);
    victim.await_ready();
    let attach = Attach::start(&["-p", &victim.tgid().to_string()]);
    victim.go_on();
    victim.await_ready();
    let running = running_threads(victim.tgid());
    let report = attach.report();
    assert_eq!(Counts::of(&report.target()["thread"]).live, running);
    assert_eq!(report.target()["status"], "attached");
}

#[test]
fn a_process_outlives_its_first_thread() {
    if !host::can_probe("a_process_outlives_its_first_thread") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut victim = Threaded::start(&mut Command::new(c_victim(folder.path())));
    let attach = Attach::start(&["-p", &victim.tgid().to_string()]);
    victim.phase("leader");
    // The one that serves now came, the first one went.
    let running = victim.await_threads(1 + 2 * LEAKED);
    victim.phase("");
    assert_eq!(victim.await_threads(running + LEAKED), running + LEAKED);
    signal(victim.tgid(), Signal::SIGKILL);
    // The observation ends by itself: the process has gone with its last thread, and no earlier.
    let report = attach.wait();
    let thread = Counts::of(&report.target()["thread"]);
    assert_eq!(
        thread.live,
        running + LEAKED,
        "what was alive at the end: {:#}",
        report.0
    );
    assert_eq!(report.target()["exited"], true);
}

#[test]
fn exec_ends_all_threads_and_begins_another_target() {
    if !host::can_probe("exec_ends_all_threads_and_begins_another_target") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut victim = Threaded::start(&mut Command::new(c_victim(folder.path())));
    let attach = Attach::start(&["-p", &victim.tgid().to_string()]);
    // Not the first thread calls it: all others go, and it takes the first one's number.
    victim.phase("exec");
    let running = victim.await_threads(1 + LEAKED);
    let report = attach.report();
    let targets = report.0["targets"].as_array().unwrap();
    assert_eq!(targets.len(), 2, "{targets:#?}");
    for target in targets {
        let thread = Counts::of(&target["thread"]);
        if target["exited"] == true {
            // The one that called exec was alive as well.
            assert_eq!(thread.live, 2 + LEAKED, "{target:#}");
        } else {
            assert_eq!(thread.live, running, "{target:#}");
            assert_eq!(thread.ended, ENDED, "{target:#}");
        }
    }
}
