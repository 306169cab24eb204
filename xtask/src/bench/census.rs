//! `cargo xtask bench census`: the census of a process with a large heap and a million tasks: how long it takes, what memory it
//! needs, and how much slower the process is meanwhile.
//!
//! In: the victim `crowd`, which counts what work it gets done in a given time. Out: a table on standard output. The victim works
//! in short slices; those within a census are compared with those of the seconds before and after, so that a machine that slows
//! down slows both. Its work is put against the time that it had a processor for, so that other work on the machine does not
//! count; a census's processor time stands beside the time it took. In turns with the censuses a thread that only counts works
//! and rests as much as they do: what any neighbour costs.

use super::{Effort, summary::Summary};
use crate::{crowds::PLAIN, victims, workspace::Workspace};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::{
    fmt::Write as _,
    fs, hint,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Tasks of the victim, the finished ones that it holds included: a million live.
const TASKS: usize = 1_065_000;
/// What it holds beside its tasks, in MiB, so that 4 GiB are resident.
const BALLAST_MIB: usize = 3_500;
/// How long it works in each slice, in milliseconds.
const SLICE_MS: usize = 50;
/// Slices alone, before a census and as many after it.
const SLICES_ALONE: usize = 15;
/// How long a thread that only counts works before it rests: about as long as a census does.
const PIECE: Duration = Duration::from_millis(2);
/// Censuses in each of the rounds asked for: a machine shared with others varies by more than what is to be seen.
const CENSUSES_PER_ROUND: usize = 3;

/// Runs the rounds and prints the table.
pub(super) fn run(workspace: &Workspace, effort: Effort) -> Result<String> {
    let leakmon = victims::build_leakmon(workspace)?;
    PLAIN.build(workspace)?;
    let mut crowd = Crowd::start(&PLAIN.path(workspace), TASKS)?;
    crowd.tell(&format!("ballast {BALLAST_MIB}"))?;
    let resident = memory_mib(crowd.child.id(), "VmRSS:").unwrap_or(0);
    println!("bench: a process with {resident} MiB resident");
    let mut table = "| census s | of it with a processor | read MiB | share | tasks found | of | leakmon MiB | slower % | beside a thread that \
                     only counts |\n| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        .to_owned();
    let (mut slower, mut slower_beside_a_thread) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds * CENSUSES_PER_ROUND {
        let tgid = crowd.tgid();
        let (taken, compared) = crowd.work_beside(|| take(&leakmon, tgid))?;
        let (taken, slowed) = (taken?, compared.slower_percent()?);
        let expected = alive(&crowd.tell("count")?);
        let census = &taken.census;
        let share = taken.processor_seconds / taken.seconds;
        let ((), compared) = crowd.work_beside(|| count_for(Duration::from_secs_f64(taken.seconds), share))?;
        let slowed_by_thread = compared.slower_percent()?;
        slower.push(slowed);
        slower_beside_a_thread.push(slowed_by_thread);
        // Writing to a string can't fail.
        let _ = writeln!(
            table,
            "| {:.2} | {:.2} | {} | {} | {} | {expected} | {} | {slowed:.1} | {slowed_by_thread:.1} |",
            census["seconds"].as_f64().unwrap_or(f64::NAN),
            taken.processor_seconds,
            census["scanned_bytes"].as_u64().unwrap_or(0) >> 20,
            census["share"],
            census["tasks"]["alive"],
            taken.peak_mib,
        );
    }
    let (Some(beside_census), Some(beside_thread)) = (Summary::of(&slower), Summary::of(&slower_beside_a_thread))
    else {
        bail!("at least one round is needed");
    };
    let _ = writeln!(
        table,
        "\nMedians: {:.1} % slower beside a census, {:.1} % beside a thread that only counts. Found are also the task that \
         works meanwhile and those that it spawns.",
        beside_census.median, beside_thread.median
    );
    Ok(table)
}

/// Keeps a processor busy for a share of the time, in pieces, and touches no memory.
fn count_for(time: Duration, share: f64) {
    let began = Instant::now();
    let mut count = 0_u64;
    while began.elapsed() < time {
        let piece = Instant::now();
        while piece.elapsed() < PIECE {
            count = hint::black_box(count.wrapping_add(1));
        }
        thread::sleep(PIECE.mul_f64((1.0 / share.clamp(0.01, 1.0)) - 1.0));
    }
}

/// A census, and what it cost.
pub(super) struct Taken {
    pub(super) census: Value,
    /// Memory that leakmon had at most.
    peak_mib: u64,
    /// How long leakmon had a processor, the analysis of the binary included.
    processor_seconds: f64,
    /// How long it took by the clock, all included.
    seconds: f64,
}

/// Takes a census.
pub(super) fn take(leakmon: &Path, tgid: u32) -> Result<Taken> {
    let began = Instant::now();
    let mut child = Command::new(leakmon)
        .args(["census", "--format", "json", "--confirm-interval", "20ms"])
        .args(["-p", &tgid.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .context("can't start leakmon")?;
    let (mut peak_mib, mut processor_seconds) = (0, 0.0_f64);
    let output = child.stdout.take().context("leakmon has no output")?;
    let reader = thread::spawn(move || serde_json::from_reader::<_, Value>(output));
    while child.try_wait()?.is_none() {
        // Both only rise.
        peak_mib = memory_mib(child.id(), "VmHWM:").unwrap_or(0).max(peak_mib);
        processor_seconds = processor_seconds_of(child.id()).unwrap_or(0.0).max(processor_seconds);
        thread::sleep(Duration::from_millis(5));
    }
    let Ok(Ok(mut found)) = reader.join() else {
        bail!("leakmon printed no census")
    };
    Ok(Taken {
        census: found["census"].take(),
        peak_mib,
        processor_seconds,
        seconds: began.elapsed().as_secs_f64(),
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

    /// Works while `other` runs, and before and after that.
    fn work_beside<T: Send>(&mut self, other: impl FnOnce() -> T + Send) -> Result<(T, Compared)> {
        let mut alone = Work::default();
        alone.add(self, SLICES_ALONE)?;
        let (given, beside) = thread::scope(|scope| {
            let other = scope.spawn(other);
            let (mut all, mut slice) = (Work::default(), Work::default());
            loop {
                all.done += slice.done;
                all.nanoseconds += slice.nanoseconds;
                slice = Work::default();
                slice.add(self, 1)?;
                // A slice that reaches beyond its end is of neither.
                if other.is_finished() {
                    let given = other.join().ok().context("what ran beside the work has panicked")?;
                    return Ok::<_, anyhow::Error>((given, all));
                }
            }
        })?;
        alone.add(self, SLICES_ALONE)?;
        Ok((given, Compared { alone, beside }))
    }
}

/// Work that was done alone, and beside something.
struct Compared {
    alone: Work,
    beside: Work,
}

impl Compared {
    fn slower_percent(&self) -> Result<f64> {
        Ok((1.0 - self.beside.rate()? / self.alone.rate()?) * 100.0)
    }
}

/// Work that a crowd got done.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    done: f64,
    /// How long it had a processor.
    nanoseconds: f64,
}

impl Work {
    fn add(&mut self, crowd: &mut Crowd, slices: usize) -> Result<()> {
        for _ in 0..slices {
            let answer = crowd.tell(&format!("work {SLICE_MS}"))?;
            self.done += answer["work"].as_f64().context("the crowd did not count its work")?;
            let nanoseconds = answer["work_ns"].as_f64();
            self.nanoseconds += nanoseconds.context("the crowd did not measure its time")?;
        }
        Ok(())
    }

    fn rate(&self) -> Result<f64> {
        if self.nanoseconds > 0.0 {
            return Ok(self.done / self.nanoseconds);
        }
        bail!("the crowd had no processor: run the measurement on a quiet machine")
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
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
