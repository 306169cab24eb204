//! `cargo xtask matrix`: leakmon against programs of every tokio version, build profile and way of linking that people ship.
//!
//! In: a pattern. Out: one line a combination: whether its counts were the victim's own, its sites, those that are slow; and
//! `docs/matrix.md` where all have run. Programs are kept in `target/matrix/programs`, so a run that was interrupted goes on
//! where it ended. It is an error where one combination is inexact, or is refused and should not be.

mod building;
mod combinations;
pub(crate) mod musl;
mod outcome;
mod strangers;

use crate::{
    build_ebpf, victims,
    workspace::{self, Workspace},
};
use anyhow::{Context as _, Result, bail};
use combinations::Combination;
use outcome::{Outcome, Verdict};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Combinations that `cargo xtask test` runs: one of each shape of tokio's tables, and the ways of linking that differ most.
const SMALL: [&str; 7] = [
    "1.54.1-release",
    "1.54.1-nonpie",
    "1.54.1-library",
    "1.54.1-two-versions",
    "1.22.0-release-stripped",
    "1.20.6-release-stripped",
    "1.10.1-release-stripped",
];

/// What is run, and with which leakmon.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// Only names that contain this.
    pub(crate) only: Option<String>,
    /// Only programs that are there already.
    pub(crate) built: bool,
    /// A leakmon that is there already.
    pub(crate) leakmon: Option<PathBuf>,
}

/// Runs the selected combinations; without a pattern the document is written.
pub(crate) fn run(workspace: &Workspace, selection: Selection) -> Result<()> {
    let only = selection.only.as_deref();
    let chosen = |combination: &Combination| {
        only.is_none_or(|only| combination.name.contains(only))
            && (!selection.built || building::is_built(workspace, combination))
    };
    let combinations: Vec<Combination> = combinations::all().into_iter().filter(chosen).collect();
    if combinations.is_empty() {
        bail!(
            "there is no combination with {:?} in its name",
            only.unwrap_or_default()
        );
    }
    let leakmon = match selection.leakmon {
        Some(leakmon) => leakmon,
        None => {
            build_ebpf::run(workspace, false)?;
            victims::build_leakmon(workspace)?
        }
    };
    let outcomes = run_all(workspace, &leakmon, combinations);
    if only.is_none() {
        let path = workspace.root.join("docs/matrix.md");
        fs::write(&path, document(&outcomes)?).with_context(|| format!("can't write {}", path.display()))?;
    }
    check(&outcomes)
}

/// Runs the small set, and looks at programs without tokio.
pub(crate) fn run_small(workspace: &Workspace) -> Result<()> {
    let leakmon = victims::build_leakmon(workspace)?;
    let small = |combination: &Combination| SMALL.contains(&combination.name.as_str());
    let combinations: Vec<Combination> = combinations::all().into_iter().filter(small).collect();
    if combinations.len() != SMALL.len() {
        bail!("{} of {} small combinations exist", combinations.len(), SMALL.len());
    }
    check(&run_all(workspace, &leakmon, combinations))?;
    strangers::check(workspace, &leakmon)
}

fn run_all(workspace: &Workspace, leakmon: &Path, combinations: Vec<Combination>) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for combination in combinations {
        let verdict = building::program(workspace, &combination)
            .and_then(|program| outcome::observe(workspace, leakmon, &combination, &program))
            .unwrap_or_else(|error| Verdict::Unbuilt(format!("{error:#}")));
        let outcome = Outcome { combination, verdict };
        println!("{}", outcome.line());
        outcomes.push(outcome);
    }
    outcomes
}

fn check(outcomes: &[Outcome]) -> Result<()> {
    let exact = outcomes.iter().filter(|outcome| outcome.is_exact()).count();
    println!("matrix: {exact} of {} combinations are exact", outcomes.len());
    let wrong: Vec<&str> = outcomes
        .iter()
        .filter(|outcome| !outcome.is_as_expected())
        .map(|outcome| outcome.combination.name.as_str())
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("not as they should be: {}", wrong.join(", "))
}

/// The table of a full run.
fn document(outcomes: &[Outcome]) -> Result<String> {
    let date = workspace::output(std::process::Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let kernel = workspace::output(std::process::Command::new("uname").arg("-sr"))?;
    let rustc = workspace::output(std::process::Command::new("rustc").arg("--version"))?;
    let exact = outcomes.iter().filter(|outcome| outcome.is_exact()).count();
    let built = outcomes.iter().filter(|outcome| outcome.is_built()).count();
    let all = combinations::all().len();
    let mut text = format!(
        "# What leakmon follows exactly\n\n\
         Written by `cargo xtask matrix` on {}, {}, {}.\n\n\
         Each program spawns some 3,000 tasks in every way that its tokio has (`xtask/matrix/tasks.rs`), and knows how many were born, \
         ended and lived. *exact*: leakmon counted the same, and paired each end with its birth. *partial*: it says that it misses \
         something, and what. *refused*: it says why it can't follow the program. {exact} of {built} programs are exact, of {all} that the \
         matrix has. Those with musl need `cargo xtask setup --musl`.\n\n\
         | program | tokio | outcome | births | birth sites | end sites | slow sites | says |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        date.trim(),
        kernel.trim(),
        rustc.trim(),
    );
    for outcome in outcomes {
        text.push_str(&outcome.row());
    }
    Ok(text)
}
