//! What the daemon costs the host: its time by the rate of tasks, its memory by live tasks and by callsites.
//!
//! In: the victim `callsites`. Out: three tables. The victim's own cost is the subject of `tasks`, not of this file.

use super::watched::{self, Layout, Watched};
use crate::{
    build_ebpf,
    victims::{self, Build, Truth},
    workspace::Workspace,
};
use anyhow::{Context as _, Result, bail};
use std::{
    fmt::Write as _,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

const VICTIM: &str = "callsites";
/// Tasks a second whose daemon is timed.
const RATES: [u32; 3] = [1_000, 10_000, 100_000];
/// Seconds of each rate.
const RATE_SECONDS: u32 = 10;
/// Callsites of the rates.
const RATE_SITES: u32 = 100;
const LIVE: [u32; 4] = [1_000, 10_000, 100_000, 1_000_000];
const SITES: [u32; 4] = [10, 100, 1_000, 10_000];
/// How long the daemon may take to show what the victim knows; a census is taken every 30 s.
const AGREEMENT: Duration = Duration::from_secs(60);
/// How long memory is looked at when all has been seen: states are read every 2 s.
const SETTLING: Duration = Duration::from_secs(6);
/// How often.
const LOOK: Duration = Duration::from_millis(10);
/// `LIVE` and `LIVE_MORE`, which are hashes, and `LIVE_SLOTS`, an array (leakmon-ebpf/src/abi/live.rs).
const LIVE_TABLES: [Layout; 2] = [
    Layout {
        map_type: 1,
        key_size: 16,
        value_size: 16,
    },
    Layout {
        map_type: 2,
        key_size: 4,
        value_size: 64,
    },
];

/// A victim and its daemon.
struct Pair {
    victim: Watched,
    daemon: Watched,
    address: String,
}

/// Runs all three and gives the tables.
pub(super) fn run(workspace: &Workspace) -> Result<String> {
    build_ebpf::run(workspace, false)?;
    let leakmon = victims::build_leakmon(workspace)?;
    victims::build(workspace, Build::Release, Some(VICTIM))?;
    let programs = (leakmon, Build::Release.example(workspace, VICTIM));
    Ok([rates(&programs)?, live(workspace, &programs)?, sites(&programs)?].join("\n"))
}

fn rates(programs: &(PathBuf, PathBuf)) -> Result<String> {
    let mut text = format!(
        "The daemon's time, {RATE_SITES} callsites\n\n| tasks a second | counted | of a processor |\n| ---: | ---: | ---: |\n"
    );
    for rate in RATES {
        println!("bench: {rate} tasks a second for {RATE_SECONDS} s");
        let arguments = [("rate", rate), ("sites", RATE_SITES), ("seconds", RATE_SECONDS)];
        let mut pair = Pair::start(programs, &arguments, &[])?;
        pair.enter_second_phase()?;
        let (cpu, started) = (watched::cpu(pair.daemon.tgid())?, Instant::now());
        pair.victim.go_on()?;
        let truth = Truth::parse(&pair.victim.line()?)?;
        let busy = watched::cpu(pair.daemon.tgid())? - cpu;
        let share = busy.as_secs_f64() / started.elapsed().as_secs_f64();
        pair.agree(&truth)?;
        // Writing to a string can't fail.
        let _ = writeln!(
            text,
            "| {:.0} | {} | {:.2} % |",
            truth.total.ended as f64 / f64::from(RATE_SECONDS),
            truth.total.spawned,
            share * 100.0
        );
    }
    Ok(text)
}

fn live(workspace: &Workspace, programs: &(PathBuf, PathBuf)) -> Result<String> {
    let path = workspace.target().join("bench/without-census.toml");
    std::fs::write(&path, "census = false\n").with_context(|| format!("can't write {}", path.display()))?;
    let without_census = path.display().to_string();
    let mut text = String::from(
        "Memory by live tasks, 100 callsites, while their states are read; the kernel has room for so many from the start\n\n\
         | live | daemon without census, MiB | with one, at rest | with one, at most | tables of live tasks in the kernel, MiB | room \
         for | bytes a task |\n| ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for live in LIVE {
        println!("bench: {live} live tasks");
        let arguments = [("live", live), ("sites", 100), ("rate", 0), ("seconds", 0)];
        let mut pair = Pair::hold(programs, &arguments, &["--config", &without_census])?;
        let without = pair.settle()?;
        drop(pair);
        let mut pair = Pair::hold(programs, &arguments, &[])?;
        let census = pair.await_census(live.into())?;
        let settled = pair.settle()?;
        let tables = watched::tables(pair.daemon.tgid(), &LIVE_TABLES)?;
        let _ = writeln!(
            text,
            "| {live} | {:.1} | {:.1} | {:.1} | {:.1} | {} | {:.0} |",
            mib(without.last),
            mib(settled.last),
            mib(census.highest.max(settled.highest)),
            mib(tables.bytes),
            tables.entries_max,
            tables.bytes as f64 / tables.entries_max as f64
        );
    }
    Ok(text)
}

fn sites(programs: &(PathBuf, PathBuf)) -> Result<String> {
    let mut text =
        String::from("Memory by callsites, one live task each\n\n| callsites | daemon, MiB |\n| ---: | ---: |\n");
    for sites in SITES {
        println!("bench: {sites} callsites");
        let arguments = [("live", sites), ("sites", sites), ("rate", 0), ("seconds", 0)];
        let settled = Pair::hold(programs, &arguments, &[])?.settle()?;
        let _ = writeln!(text, "| {sites} | {:.1} |", mib(settled.last));
    }
    Ok(text)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Pair {
    /// Starts both; the victim waits before its first phase and is being watched.
    fn start((leakmon, victim): &(PathBuf, PathBuf), arguments: &[(&str, u32)], options: &[&str]) -> Result<Self> {
        let mut command = Command::new(victim);
        command.arg("--wait");
        for (name, number) in arguments {
            command.arg(format!("--{name}")).arg(number.to_string());
        }
        let mut victim = Watched::victim(&mut command)?;
        expect_ready(&mut victim)?;
        let mut command = Command::new(leakmon);
        command.args([
            "daemon",
            "--no-pin",
            "--listen",
            "127.0.0.1:0",
            "-p",
            &victim.tgid().to_string(),
        ]);
        command.args(options);
        let mut daemon = Watched::leakmon(&mut command)?;
        let line = daemon.line_with("serving http://")?;
        let address = line.rsplit("http://").next().unwrap_or_default();
        let address = address.trim_end_matches('/').to_owned();
        Ok(Self {
            victim,
            daemon,
            address,
        })
    }

    /// Starts both, and waits until the daemon counts all tasks of the victim, which goes on holding them.
    fn hold(programs: &(PathBuf, PathBuf), arguments: &[(&str, u32)], options: &[&str]) -> Result<Self> {
        let mut pair = Self::start(programs, arguments, options)?;
        pair.enter_second_phase()?;
        pair.victim.go_on()?;
        let truth = Truth::parse(&pair.victim.line()?)?;
        pair.agree(&truth)?;
        Ok(pair)
    }

    /// Lets the victim do its first phase.
    fn enter_second_phase(&mut self) -> Result<()> {
        self.victim.go_on()?;
        expect_ready(&mut self.victim)
    }

    /// Waits until the daemon's report says what the victim knows of itself. The victim still runs.
    fn agree(&mut self, truth: &Truth) -> Result<()> {
        let started = Instant::now();
        loop {
            let target = self.target()?;
            let task = &target["task"];
            // The workers are older than the attach.
            let same = [("spawned", truth.total.spawned), ("live", truth.total.live)]
                .iter()
                .all(|(name, number)| task[name].as_u64() == Some(*number));
            if same {
                return Ok(());
            }
            if started.elapsed() > AGREEMENT {
                bail!("the daemon counts {task}, the victim {:?}", truth.total);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The victim in the daemon's report.
    fn target(&self) -> Result<serde_json::Value> {
        let report = super::http::get(&self.address, "/api/v1/report")?;
        let mut report: serde_json::Value = serde_json::from_slice(&report).context("the daemon's report")?;
        // Nothing while the daemon has not seen it.
        Ok(report
            .pointer_mut("/targets/0")
            .map(serde_json::Value::take)
            .unwrap_or_default())
    }

    /// Waits until a census has found all that live; the daemon's memory meanwhile.
    fn await_census(&mut self, live: u64) -> Result<Memory> {
        let started = Instant::now();
        let (mut memory, mut asked) = (Memory::default(), started);
        loop {
            memory.look(self.daemon.tgid())?;
            if asked.elapsed() < Duration::from_millis(500) {
                continue;
            }
            asked = Instant::now();
            let census = &self.target()?["census"];
            if census["tasks"]["alive"].as_u64().is_some_and(|alive| alive >= live) {
                return Ok(memory);
            }
            if started.elapsed() > AGREEMENT {
                bail!("no census of {live} tasks: {census}");
            }
        }
    }

    /// The daemon's memory over a while in which nothing new happens.
    fn settle(&mut self) -> Result<Memory> {
        let started = Instant::now();
        let mut memory = Memory::default();
        while started.elapsed() < SETTLING {
            memory.look(self.daemon.tgid())?;
        }
        Ok(memory)
    }
}

/// The daemon's memory over some time, bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    last: u64,
    highest: u64,
}

impl Memory {
    fn look(&mut self, tgid: u32) -> Result<()> {
        self.last = watched::anonymous_bytes(tgid)?;
        self.highest = self.highest.max(self.last);
        std::thread::sleep(LOOK);
        Ok(())
    }
}

fn expect_ready(victim: &mut Watched) -> Result<()> {
    match victim.line()?.as_str() {
        "ready" => Ok(()),
        other => bail!("the victim says {other:?} instead of being ready"),
    }
}
