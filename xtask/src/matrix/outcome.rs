//! What came out of a combination: the victim's own numbers beside leakmon's report.
//!
//! In: a program. Out: a verdict, as a line and as a row of the document. A run is exact only where each end met its birth: no end
//! without one, no birth at an address that was still taken.

use super::combinations::{Combination, Expectation, Variant};
use crate::{
    victims::Counts,
    workspace::{self, Workspace},
};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{ChildStdout, Stdio},
};

/// Seconds that a run may take; the longest takes ten on a busy machine.
const TIME_LIMIT: &str = "180";
/// leakmon's exit code where a program can't be probed.
const REFUSED: i32 = 4;

/// Numbers of sites.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sites {
    births: u64,
    ends: u64,
    slow: u64,
}

/// How a combination came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Exact {
        spawned: u64,
        sites: Sites,
        reason: Option<String>,
    },
    /// Not exact, and says so.
    Partial {
        sites: Sites,
        reason: String,
    },
    Refused(String),
    /// Not exact, and doesn't say so; or no run.
    Inexact(String),
    Unbuilt(String),
}

/// A combination and its verdict.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) combination: Combination,
    pub(super) verdict: Verdict,
}

impl Outcome {
    pub(super) fn is_exact(&self) -> bool {
        matches!(self.verdict, Verdict::Exact { .. })
    }

    pub(super) fn is_built(&self) -> bool {
        !matches!(self.verdict, Verdict::Unbuilt(_))
    }

    pub(super) fn is_as_expected(&self) -> bool {
        match (self.combination.expectation(), &self.verdict) {
            (Expectation::Exact, Verdict::Exact { reason: None, .. }) => true,
            (expectation, Verdict::Refused(_)) => expectation == Expectation::Refused,
            _ => false,
        }
    }

    /// For a person who waits.
    pub(super) fn line(&self) -> String {
        let [verdict, births, sites, ends, slow, says] = self.cells();
        format!(
            "{:<28} {verdict:<8} births {births:>5}  sites {sites:>3} + {ends:>3}, slow {slow:>3}  {says}",
            self.combination.name
        )
    }

    /// For the document.
    pub(super) fn row(&self) -> String {
        let cells = self.cells().map(|cell| cell.replace('|', "\\|"));
        format!(
            "| {} | {} | {} |\n",
            self.combination.name,
            self.combination.tokio,
            cells.join(" | ")
        )
    }

    fn cells(&self) -> [String; 6] {
        let numbers = |sites: &Sites| [sites.births, sites.ends, sites.slow].map(|number| number.to_string());
        let without = |verdict: &str, says: &str| {
            let dash = || "–".to_owned();
            [verdict.to_owned(), dash(), dash(), dash(), dash(), one_line(says)]
        };
        match &self.verdict {
            Verdict::Exact { spawned, sites, reason } => {
                let [births, ends, slow] = numbers(sites);
                let says = one_line(reason.as_deref().unwrap_or_default());
                ["exact".to_owned(), spawned.to_string(), births, ends, slow, says]
            }
            Verdict::Partial { sites, reason } => {
                let [births, ends, slow] = numbers(sites);
                [
                    "partial".to_owned(),
                    "–".to_owned(),
                    births,
                    ends,
                    slow,
                    one_line(reason),
                ]
            }
            Verdict::Refused(reason) => without("refused", reason),
            Verdict::Inexact(reason) => without("INEXACT", reason),
            Verdict::Unbuilt(reason) => without("not built", reason),
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Runs a program under leakmon.
pub(super) fn observe(
    workspace: &Workspace,
    leakmon: &Path,
    combination: &Combination,
    program: &Path,
) -> Result<Verdict> {
    if combination.variant == Variant::Library {
        return attach_to_library(workspace, leakmon, program);
    }
    let report = workspace.target().join("matrix/report.json");
    let _none = fs::remove_file(&report);
    let mut command = workspace.command("timeout");
    command.args(["--kill-after=10", TIME_LIMIT]).arg(leakmon);
    command.args(["run", "--format", "json", "-o"]).arg(&report).arg("--");
    command.arg(program).stderr(Stdio::piped());
    let output = command
        .output()
        .with_context(|| format!("can't start {}", workspace::shown(&command)))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() == Some(REFUSED) {
        // The path is this machine's.
        let reason = said.replace(&program.display().to_string(), "the program");
        return Ok(Verdict::Refused(reason.trim_start_matches("leakmon: ").to_owned()));
    }
    if !output.status.success() {
        return Ok(Verdict::Inexact(format!("{}: {said}", output.status)));
    }
    let text = fs::read_to_string(&report).context("leakmon wrote no report")?;
    let report: Value = serde_json::from_str(&text).context("leakmon's report is no JSON")?;
    let truth = String::from_utf8_lossy(&output.stdout).into_owned();
    let truth: Counts = serde_json::from_str(truth.lines().last().unwrap_or_default())
        .with_context(|| format!("the victim's last line is not its truth: {truth:?}"))?;
    compare(truth, &report)
}

fn compare(truth: Counts, report: &Value) -> Result<Verdict> {
    let [target] = report["targets"].as_array().map_or(&[][..], Vec::as_slice) else {
        bail!("the report has not one target: {}", report["targets"]);
    };
    let counted: Counts = serde_json::from_value(target["task"].clone()).context("the report has no counts")?;
    let number = |value: &Value| value.as_u64().context("the report lacks a number");
    let sites = Sites {
        births: number(&target["sites"]["spawn"])?,
        ends: number(&target["sites"]["end"])?,
        slow: number(&target["sites"]["slow"])?,
    };
    let loss = &report["loss"];
    let mut amiss = 0;
    for name in ["events_dropped", "live_full", "unmatched_ends", "replaced"] {
        amiss += number(&loss[name])?;
    }
    let reason = target["reason"].as_str().map(str::to_owned);
    let partial = target["status"] != "attached";
    Ok(match (counted == truth && amiss == 0, partial) {
        (true, _) => Verdict::Exact {
            spawned: truth.spawned,
            sites,
            reason: reason.filter(|_| partial),
        },
        (false, true) => Verdict::Partial {
            sites,
            reason: reason.unwrap_or_default(),
        },
        (false, false) => Verdict::Inexact(format!("{counted:?}, but the truth is {truth:?}; loss: {loss}")),
    })
}

/// A library is loaded when its program runs already: leakmon attaches to that before the victim in it begins.
fn attach_to_library(workspace: &Workspace, leakmon: &Path, library: &Path) -> Result<Verdict> {
    let mut command = workspace.command("timeout");
    command.arg(TIME_LIMIT).arg(loader(workspace)?).arg(library);
    let mut loader = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = loader.stdin.take().context("no input")?;
    let mut output = BufReader::new(loader.stdout.take().context("no output")?);
    let line = |output: &mut BufReader<ChildStdout>| -> Result<String> {
        let mut line = String::new();
        output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    };
    if line(&mut output)? != "ready" {
        bail!("the library can't be loaded");
    }
    // The loader is the child of `timeout`.
    let children = format!("/proc/{0}/task/{0}/children", loader.id());
    let tgid = fs::read_to_string(&children).with_context(|| format!("can't read {children}"))?;
    let mut command = workspace.command("timeout");
    command.arg(TIME_LIMIT).arg(leakmon);
    command.args(["-v", "attach", "--format", "json", "-p", tgid.trim()]);
    let mut attach = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut messages = BufReader::new(attach.stderr.take().context("no messages")?);
    let mut said = String::new();
    while !said.contains("attached ") {
        if messages.read_line(&mut said)? == 0 {
            let _gone = (loader.kill(), loader.wait());
            return Ok(Verdict::Inexact(format!("leakmon ended: {said}")));
        }
    }
    input.write_all(b"\n")?;
    let truth = line(&mut output)?;
    drop(input);
    loader.wait()?;
    // Nobody is left to be watched, so it ends by itself. Few messages follow: they fit into the pipe.
    let report = attach.wait_with_output()?.stdout;
    let report: Value = serde_json::from_slice(&report).context("leakmon's report is no JSON")?;
    let truth = serde_json::from_str(&truth).with_context(|| format!("{truth:?} is not a victim's truth"))?;
    compare(truth, &report)
}

/// The C program that loads a library.
fn loader(workspace: &Workspace) -> Result<PathBuf> {
    let loader = workspace.target().join("matrix/loader");
    let source = workspace.root.join("xtask/matrix/loader.c");
    if !loader.is_file() {
        workspace::run(
            workspace
                .command("cc")
                .arg("-O2")
                .arg("-o")
                .arg(&loader)
                .arg(source)
                .arg("-ldl"),
        )?;
    }
    Ok(loader)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn verdict(spawned: u64, unmatched: u64, status: &str) -> Verdict {
        let report = json!({
            "targets": [{
                "status": status,
                "reason": if status == "attached" { Value::Null } else { json!("Something is\n missing.") },
                "sites": { "spawn": 3, "end": 2, "slow": 1 },
                "task": { "spawned": spawned, "ended": 4, "live": 5 },
            }],
            "loss": { "events_dropped": 0, "live_full": 0, "unmatched_ends": unmatched, "replaced": 0 },
        });
        let truth = Counts {
            spawned: 9,
            ended: 4,
            live: 5,
        };
        compare(truth, &report).unwrap()
    }

    #[test]
    fn only_equal_numbers_without_a_stray_end_are_exact() {
        assert!(matches!(
            verdict(9, 0, "attached"),
            Verdict::Exact {
                spawned: 9,
                reason: None,
                ..
            }
        ));
        assert!(matches!(
            verdict(9, 0, "partial"),
            Verdict::Exact { reason: Some(_), .. }
        ));
        assert!(matches!(verdict(8, 0, "attached"), Verdict::Inexact(_)));
        assert!(matches!(verdict(9, 1, "attached"), Verdict::Inexact(_)));
        assert!(matches!(verdict(9, 1, "partial"), Verdict::Partial { .. }));
        let empty = json!({ "targets": [] });
        assert!(compare(Counts::default(), &empty).is_err());
    }

    #[test]
    fn a_row_is_one_line_with_all_columns() {
        let combination = super::super::combinations::all().remove(0);
        for verdict in [
            verdict(9, 0, "attached"),
            verdict(8, 0, "partial"),
            Verdict::Refused("a | b\nc".to_owned()),
        ] {
            let outcome = Outcome {
                combination: combination.clone(),
                verdict,
            };
            let row = outcome.row();
            assert_eq!(row.lines().count(), 1, "{row}");
            assert_eq!(row.replace("\\|", "").matches('|').count(), 9, "{row}");
        }
    }
}
