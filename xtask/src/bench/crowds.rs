//! `cargo xtask bench crowds`: the census of every build of the crowd, in three sizes, quiet and churning, against its own
//! numbers.
//!
//! In: the builds. Out: a row each: how many of the runs were exact, and within one percent for the type that churns. The kernel
//! tests look at some of these; this is the whole product, and takes minutes.

use super::{
    Effort,
    census::{Crowd, take},
};
use crate::{
    crowds::{MORE, PLAIN, TESTED},
    victims,
    workspace::Workspace,
};
use anyhow::{Result, bail};
use serde_json::Value;
use std::{fmt::Write as _, path::Path};

const SIZES: [usize; 3] = [10, 1_000, 100_000];
/// Tasks that churn, and how many of them are replaced in a second.
const CHURNING: u64 = 10_000;
const STATES: [&str; 6] = ["idle", "scheduled", "running", "unwakeable", "abortable", "held"];

/// Tasks of one type by state.
type States = [u64; STATES.len()];

/// Runs all of them; fails where one was not exact.
pub(super) fn run(workspace: &Workspace, effort: Effort) -> Result<String> {
    let leakmon = victims::build_leakmon(workspace)?;
    let mut table = "| build | tasks | quiet runs exact | churning runs within 1 % | worst % |\n\
                     | --- | ---: | ---: | ---: | ---: |\n"
        .to_owned();
    let mut failed = 0;
    for crowd in [PLAIN].iter().chain(&TESTED).chain(&MORE) {
        crowd.build(workspace)?;
        let (name, path) = (crowd.name, crowd.path(workspace));
        for tasks in SIZES {
            let (quiet, churning, worst) = run_one(&leakmon, &path, tasks, effort.rounds)?;
            let rounds = effort.rounds;
            println!("bench: {name}, {tasks} tasks: {quiet} and {churning} of {rounds}");
            // Writing to a string can't fail.
            let _ = writeln!(
                table,
                "| {name} | {tasks} | {quiet} of {rounds} | {churning} of {rounds} | {worst:.2} |"
            );
            failed += usize::from(quiet < rounds || churning < rounds);
        }
    }
    match failed {
        0 => Ok(table),
        failed => bail!("{failed} rows were not exact:\n{table}"),
    }
}

fn run_one(leakmon: &Path, path: &Path, tasks: usize, rounds: usize) -> Result<(usize, usize, f64)> {
    let mut crowd = Crowd::start(path, tasks)?;
    let quiet = truth(&crowd.tell("count")?);
    let (mut exact, mut near, mut worst) = (0, 0, 0.0_f64);
    for _ in 0..rounds {
        exact += usize::from(found(&take(leakmon, crowd.tgid())?.census) == quiet);
    }
    crowd.tell(&format!("churn {CHURNING} 10000"))?;
    for _ in 0..rounds {
        let mut rows = found(&take(leakmon, crowd.tgid())?.census);
        let mut others_exact = true;
        for row in &quiet {
            match rows.iter().position(|found| found == row) {
                Some(at) => drop(rows.remove(at)),
                None => others_exact = false,
            }
        }
        // What is left is the type that churns, unless another was not exact.
        let alive: u64 = rows.iter().flat_map(|states| &states[..3]).sum();
        let missed = alive.abs_diff(CHURNING) as f64 / CHURNING as f64 * 100.0;
        if others_exact {
            worst = worst.max(missed);
        }
        near += usize::from(missed <= 1.0 && others_exact && rows.len() == 1);
    }
    Ok((exact, near, worst))
}

fn truth(answer: &Value) -> Vec<States> {
    states(answer["rows"].as_array().into_iter().flatten())
}

/// What a census found, but for the runtimes' three workers.
fn found(census: &Value) -> Vec<States> {
    let is_workers = |row: &&Value| row["kind"] == "blocking" && row["alive"] == 3 && row["running"] == 3;
    states(
        census["types"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|row| !is_workers(row)),
    )
}

fn states<'a>(rows: impl Iterator<Item = &'a Value>) -> Vec<States> {
    let mut all: Vec<States> = rows
        .map(|row| STATES.map(|state| row[state].as_u64().unwrap_or(0)))
        .collect();
    all.sort_unstable();
    all
}
