//! What a task costs more in every build of the program that only spawns: under leakmon, and under a bpftrace script.
//!
//! In: builds of that victim. Out: a table, one row a build. What bpftrace costs hangs on the first instruction of the functions
//! that it probes: a `push` the kernel emulates, a `sub` of an unoptimised build it steps over; and only with frame pointers are
//! its stacks whole. As in [`super::tasks`] the configurations take turns, and each is compared with what ran alone in its own
//! round.

use super::{
    Effort, remnants,
    rivals::{self, Runner},
    summary::Summary,
    tasks::{direct, under_leakmon},
};
use crate::{
    build_ebpf,
    victims::{self, Build, SPAWN_HEAVY},
    workspace::Workspace,
};
use anyhow::{Context as _, Result, bail};
use std::{fmt::Write as _, path::Path};

/// The builds, and what the table calls them.
const BUILDS: [(&str, Build); 5] = [
    ("release", Build::Release),
    ("release, frame pointers", Build::FramePointers),
    ("fat LTO, one unit", Build::Fat),
    ("fat LTO, `opt-level=\"z\"`", Build::Z),
    ("dev", Build::Dev),
];

/// Nanoseconds that a task costs more, by round.
#[derive(Debug, Default)]
struct Added {
    floor: Vec<f64>,
    leakmon: Vec<f64>,
    /// Empty where there is no bpftrace.
    bpftrace: Vec<f64>,
}

/// Measures each build and prints the table.
pub(super) fn run(workspace: &Workspace, effort: Effort) -> Result<String> {
    if effort.rounds == 0 {
        bail!("at least one round is needed");
    }
    build_ebpf::run(workspace, false)?;
    let leakmon = victims::build_leakmon(workspace)?;
    let mut rows = Vec::new();
    for (name, build) in BUILDS {
        victims::build(workspace, build, Some(SPAWN_HEAVY))?;
        println!("bench: {name}, {} rounds", effort.rounds);
        let victim = build.example(workspace, SPAWN_HEAVY);
        rows.push((name, measure(workspace, &leakmon, &victim, effort)?));
    }
    Ok(format!(
        "Added cost a task: {} tasks, {} rounds, nanoseconds of processor time in the watched program, medians; leakmon with full stacks\n\n{}",
        effort.tasks,
        effort.rounds,
        table(&rows)
    ))
}

fn measure(workspace: &Workspace, leakmon: &Path, victim: &Path, effort: Effort) -> Result<Added> {
    let alone = direct(victim.to_owned());
    let floor = under_leakmon(workspace, leakmon, victim, &["--empty-programs"]);
    let watched = under_leakmon(workspace, leakmon, victim, &[]);
    let bpftrace = match rivals::bpftrace(workspace, victim)? {
        Ok(runner) => Some(runner),
        Err(reason) => {
            println!("bench: no column for bpftrace: {reason}");
            None
        }
    };
    let tasks = effort.tasks.to_string();
    let cost = |runner: &Runner| -> Result<f64> {
        let command = runner(&["--tasks", &tasks]);
        let truth = victims::run(&command)?;
        remnants::await_end_of(&command)?;
        truth.ns_per_task.context("the victim did not time itself")
    };
    let mut added = Added::default();
    for _ in 0..effort.rounds {
        let base = cost(&alone)?;
        added.floor.push(cost(&floor)? - base);
        added.leakmon.push(cost(&watched)? - base);
        if let Some(bpftrace) = &bpftrace {
            added.bpftrace.push(cost(bpftrace)? - base);
        }
    }
    Ok(added)
}

fn table(rows: &[(&str, Added)]) -> String {
    let mut text =
        String::from("| build | floor | leakmon | bpftrace | leakmon, of the floor | leakmon, of bpftrace |\n");
    text.push_str("| --- | ---: | ---: | ---: | ---: | ---: |\n");
    let middle = |samples: &[f64]| {
        Summary::of(samples).map_or_else(|| "–".to_owned(), |summary| format!("{:.0}", summary.median))
    };
    let ratio = |samples: &[f64]| {
        Summary::of(samples).map_or_else(
            || "–".to_owned(),
            |Summary { median, low, high }| format!("{median:.2} ({low:.2} to {high:.2})"),
        )
    };
    for (name, added) in rows {
        let of = |others: &[f64]| -> Vec<f64> {
            let pairs = added.leakmon.iter().zip(others);
            pairs.map(|(own, other)| own / other).collect()
        };
        // Writing to a string can't fail.
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {} | {} |",
            middle(&added.floor),
            middle(&added.leakmon),
            middle(&added.bpftrace),
            ratio(&of(&added.floor)),
            ratio(&of(&added.bpftrace)),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_those_of_a_round() {
        // The machine is twice as slow in the second round, which changes no ratio; bpftrace alone was held up in it.
        let dev = Added {
            floor: vec![1000.0, 2000.0],
            leakmon: vec![1500.0, 3000.0],
            bpftrace: vec![6000.0, 15000.0],
        };
        let without_bpftrace = Added {
            floor: vec![1000.0],
            leakmon: vec![2500.0],
            ..Added::default()
        };
        let text = table(&[("dev", dev), ("z", without_bpftrace)]);
        assert!(
            text.contains("| dev | 1500 | 2250 | 10500 | 1.50 (1.50 to 1.50) | 0.23 (0.20 to 0.25) |"),
            "{text}"
        );
        assert!(
            text.contains("| z | 1000 | 2500 | – | 2.50 (2.50 to 2.50) | – |"),
            "{text}"
        );
    }
}
