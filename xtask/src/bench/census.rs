//! `cargo xtask bench census`: the census of a process with a large heap and a million tasks: how long it takes, what memory it
//! needs, and how much slower the process is meanwhile.
//!
//! In: the victim `crowd`, which counts what work it gets done in a given time. Out: a table on standard output. It works alone
//! and beside censuses in turns, so that a machine that slows down slows both. Its work is put against the time that it had a processor
//! for, so that other work on the machine does not count; a census's processor time stands beside the time it took.

use super::Effort;
use crate::{crowds::PLAIN, victims, workspace::Workspace};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

/// Tasks of the victim.
const TASKS: usize = 1_000_000;
/// What it holds beside its tasks, in MiB, so that 4 GiB are resident.
const BALLAST_MIB: usize = 3_500;
/// How long it works in each turn, in milliseconds: longer than a census takes.
const WORK_MS: usize = 4_000;

/// Runs the rounds and prints the table.
pub(super) fn run(workspace: &Workspace, effort: Effort) -> Result<String> {
    let leakmon = victims::build_leakmon(workspace)?;
    PLAIN.build(workspace)?;
    let mut crowd = Crowd::start(&PLAIN.path(workspace), TASKS)?;
    crowd.tell(&format!("ballast {BALLAST_MIB}"))?;
    let resident = memory_mib(crowd.child.id(), "VmRSS:").unwrap_or(0);
    println!("bench: a process with {resident} MiB resident and some {TASKS} tasks");
    let mut table =
        "| round | census s | of it with a processor | read MiB | share | tasks found | of | leakmon MiB | \
                     work a ms of processor alone | beside | slower % |\n\
                     | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
            .to_owned();
    let mut slower = Vec::new();
    for round in 1..=effort.rounds {
        let alone = crowd.work()?;
        crowd.say(&format!("work {WORK_MS}"))?;
        // The work has begun by the time that leakmon has read the binary.
        let taken = take(&leakmon, crowd.tgid())?;
        let beside = work_of(&crowd.listen()?)?;
        let expected = alive(&crowd.tell("count")?);
        let census = &taken.census;
        slower.push((1.0 - beside / alone) * 100.0);
        // Writing to a string can't fail.
        let _ = writeln!(
            table,
            "| {round} | {:.2} | {:.2} | {} | {} | {} | {expected} | {} | {alone:.0} | {beside:.0} | {:.2} |",
            census["seconds"].as_f64().unwrap_or(f64::NAN),
            taken.processor_seconds,
            census["scanned_bytes"].as_u64().unwrap_or(0) >> 20,
            census["share"],
            census["tasks"]["alive"],
            taken.peak_mib,
            (1.0 - beside / alone) * 100.0,
        );
    }
    slower.sort_by(f64::total_cmp);
    let median = slower.get(slower.len() / 2).copied().unwrap_or(f64::NAN);
    let _ = writeln!(table, "\nMedian: {median:.2} % slower.");
    Ok(table)
}

/// A census, and what it cost.
pub(super) struct Taken {
    pub(super) census: Value,
    /// Memory that leakmon had at most.
    peak_mib: u64,
    /// How long leakmon had a processor, the analysis of the binary included.
    processor_seconds: f64,
}

/// Takes a census.
pub(super) fn take(leakmon: &Path, tgid: u32) -> Result<Taken> {
    let mut child = Command::new(leakmon)
        .args(["census", "--format", "json", "--confirm-interval", "20ms"])
        .args(["-p", &tgid.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .context("can't start leakmon")?;
    let (mut peak_mib, mut processor_seconds) = (0, 0.0_f64);
    let output = child.stdout.take().context("leakmon has no output")?;
    let reader = std::thread::spawn(move || serde_json::from_reader::<_, Value>(output));
    while child.try_wait()?.is_none() {
        // Both only rise.
        peak_mib = memory_mib(child.id(), "VmHWM:").unwrap_or(0).max(peak_mib);
        processor_seconds = processor_seconds_of(child.id()).unwrap_or(0.0).max(processor_seconds);
        std::thread::sleep(Duration::from_millis(5));
    }
    let Ok(Ok(mut found)) = reader.join() else {
        bail!("leakmon printed no census")
    };
    Ok(Taken {
        census: found["census"].take(),
        peak_mib,
        processor_seconds,
    })
}

/// How long a process's first thread, which takes the census, has had a processor.
fn processor_seconds_of(tgid: u32) -> Option<f64> {
    let statistics = fs::read_to_string(format!("/proc/{tgid}/schedstat")).ok()?;
    let nanoseconds: f64 = statistics.split(' ').next()?.parse().ok()?;
    Some(nanoseconds / 1e9)
}

/// A line of `/proc/PID/status` in MiB.
fn memory_mib(tgid: u32, line: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{tgid}/status")).ok()?;
    let line = status.lines().find_map(|text| text.strip_prefix(line))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib / 1024)
}

/// A running crowd.
pub(super) struct Crowd {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Crowd {
    pub(super) fn start(path: &Path, tasks: usize) -> Result<Self> {
        let mut child = Command::new(path)
            .args(["--tasks", &tasks.to_string(), "--disguised"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("can't start {}", path.display()))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else {
            bail!("the crowd has no input or output")
        };
        let mut crowd = Self {
            child,
            input,
            output: BufReader::new(output),
        };
        crowd.listen()?;
        Ok(crowd)
    }

    fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}")
            .and_then(|()| self.input.flush())
            .context("the crowd has ended")
    }

    fn listen(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the crowd said {line:?}"))
    }

    pub(super) fn tgid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn tell(&mut self, line: &str) -> Result<Value> {
        self.say(line)?;
        self.listen()
    }

    fn work(&mut self) -> Result<f64> {
        let answer = self.tell(&format!("work {WORK_MS}"))?;
        work_of(&answer)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// What was done in a millisecond of processor time.
fn work_of(answer: &Value) -> Result<f64> {
    let (done, nanoseconds) = (answer["work"].as_f64(), answer["work_ns"].as_f64());
    let milliseconds = nanoseconds
        .filter(|nanoseconds| *nanoseconds > 0.0)
        .map(|nanoseconds| nanoseconds / 1e6);
    let done = done.context("the crowd did not count its work")?;
    Ok(done / milliseconds.context("the crowd did not measure its time")?)
}

/// What a crowd says is alive, its workers included.
fn alive(answer: &Value) -> u64 {
    let rows = answer["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of = |row: &Value| {
        ["idle", "scheduled", "running"]
            .map(|state| row[state].as_u64().unwrap_or(0))
            .iter()
            .sum::<u64>()
    };
    rows.iter().map(of).sum::<u64>() + answer["workers"].as_u64().unwrap_or(0)
}
