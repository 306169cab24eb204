//! How long `leakmon run` takes to return when its command has ended.
//!
//! In: the victim `every_spawn`, which has more task types than others and so more probe sites. Out: a table.

use super::{Effort, remnants, summary::Summary};
use crate::{
    build_ebpf,
    victims::{self, Build},
    workspace::Workspace,
};
use anyhow::{Context as _, Result, bail};
use std::{
    io::Read as _,
    process::{Command, Stdio},
    time::Instant,
};

const VICTIM: &str = "every_spawn";

/// Runs the rounds and gives the table.
pub(super) fn run(workspace: &Workspace, Effort { rounds, .. }: Effort) -> Result<String> {
    build_ebpf::run(workspace, false)?;
    let leakmon = victims::build_leakmon(workspace)?;
    victims::build(workspace, Build::Release, Some(VICTIM))?;
    let report = workspace.target().join("bench-report.json");
    let mut samples = Vec::new();
    let mut sites = None;
    for _ in 0..rounds {
        let mut command = Command::new(&leakmon);
        command
            .args(["run", "--format", "json", "-o"])
            .arg(&report)
            .arg("--")
            .arg(Build::Release.example(workspace, VICTIM))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().context("can't start leakmon")?;
        // leakmon leaves the victim's output alone and never writes to it, but holds it open itself: the victim's last line is
        // what it prints just before it exits.
        let mut output = child.stdout.take().context("no output")?;
        let mut byte = [0];
        while byte != *b"\n" {
            if output.read(&mut byte)? == 0 {
                bail!("the victim printed nothing");
            }
        }
        let ended = Instant::now();
        if !child.wait()?.success() {
            bail!("leakmon or the victim failed");
        }
        samples.push(ended.elapsed().as_secs_f64() * 1e3);
        let text = std::fs::read_to_string(&report).with_context(|| format!("can't read {}", report.display()))?;
        let report: serde_json::Value = serde_json::from_str(&text)?;
        let counts = &report["targets"][0]["sites"];
        remnants::await_end_of(&command)?;
        sites = counts["spawn"].as_u64().zip(counts["end"].as_u64());
    }
    let (Some(Summary { median, low, high }), Some((births, ends))) = (Summary::of(&samples), sites) else {
        bail!("at least one round is needed, and a report with probe sites")
    };
    Ok(format!(
        "From the end of the command to the return of `leakmon run`, {births} birth and {ends} completion sites, {rounds} rounds\n\n\
         | median, ms | lowest | highest |\n| ---: | ---: | ---: |\n| {median:.0} | {low:.0} | {high:.0} |\n"
    ))
}
