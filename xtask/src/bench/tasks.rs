//! What a task costs more under leakmon, in a program that does nothing but spawn.
//!
//! In: the victim `spawn_heavy`, which times itself. Out: a table on standard output. The floor is the same probes with
//! programs that do nothing: what any tool pays that probes these instructions. The configurations take turns, round by
//! round, so that a machine that slows down slows all of them; the middle of the rounds counts.

use super::{Effort, summary::Summary};
use crate::{
    build_ebpf,
    victims::{self, Build},
    workspace::Workspace,
};
use anyhow::{Context as _, Result, bail};
use std::{fmt::Write as _, path::Path, process::Command};

const VICTIM: &str = "spawn_heavy";

/// One way to run the victim.
struct Configuration {
    name: &'static str,
    /// leakmon's options; `None` runs the victim alone.
    options: Option<&'static [&'static str]>,
}

/// The first is what the others are compared with, the second the floor.
const CONFIGURATIONS: [Configuration; 5] = [
    Configuration {
        name: "alone",
        options: None,
    },
    Configuration {
        name: "two empty programs",
        options: Some(&["--empty-programs"]),
    },
    Configuration {
        name: "leakmon",
        options: Some(&[]),
    },
    Configuration {
        name: "leakmon, each stack walked anew",
        options: Some(&["--no-memo"]),
    },
    Configuration {
        name: "leakmon --no-stacks",
        options: Some(&["--no-stacks"]),
    },
];

/// Runs the rounds and prints the table.
pub(super) fn run(workspace: &Workspace, Effort { rounds, tasks }: Effort) -> Result<()> {
    build_ebpf::run(workspace, false)?;
    let leakmon = victims::build_leakmon(workspace)?;
    victims::build(workspace, Build::Release, Some(VICTIM))?;
    let victim = Build::Release.example(workspace, VICTIM);
    let tasks_text = tasks.to_string();
    let mut samples: Vec<Vec<f64>> = CONFIGURATIONS.iter().map(|_| Vec::new()).collect();
    for round in 1..=rounds {
        println!("bench: round {round} of {rounds}");
        for (configuration, samples) in CONFIGURATIONS.iter().zip(&mut samples) {
            let mut command = command(workspace, &leakmon, &victim, configuration);
            command.args(["--tasks", &tasks_text]);
            let truth = victims::run(&command).with_context(|| configuration.name.to_owned())?;
            samples.push(truth.ns_per_task.context("the victim did not time itself")?);
        }
    }
    let summaries = samples
        .iter()
        .map(|samples| Summary::of(samples))
        .collect::<Option<Vec<_>>>();
    let Some(summaries) = summaries else {
        bail!("at least one round is needed")
    };
    println!(
        "\nAdded cost a task: {tasks} tasks, {rounds} rounds, nanoseconds\n\n{}",
        table(&summaries)
    );
    Ok(())
}

fn command(workspace: &Workspace, leakmon: &Path, victim: &Path, configuration: &Configuration) -> Command {
    let Some(options) = configuration.options else {
        return workspace.command(victim);
    };
    let mut command = workspace.command(leakmon);
    command
        .args(["run", "-o"])
        .arg(workspace.target().join("bench-report"))
        .args(options)
        .arg("--")
        .arg(victim);
    command
}

/// Rows in the order of [`CONFIGURATIONS`].
fn table(summaries: &[Summary]) -> String {
    let mut text = String::from("| configuration | ns a task | lowest | highest | added | added, of the floor |\n");
    text.push_str("| --- | ---: | ---: | ---: | ---: | ---: |\n");
    let alone = summaries.first().map_or(0.0, |summary| summary.median);
    let floor = summaries.get(1).map_or(0.0, |summary| summary.median - alone);
    for (configuration, Summary { median, low, high }) in CONFIGURATIONS.iter().zip(summaries) {
        let added = median - alone;
        let ratio = if floor > 0.0 {
            format!("{:.2}", added / floor)
        } else {
            "–".to_owned()
        };
        // Writing to a string can't fail.
        let _ = writeln!(
            text,
            "| {} | {median:.0} | {low:.0} | {high:.0} | {added:.0} | {ratio} |",
            configuration.name
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_compared_with_the_floor() {
        let flat = |median| Summary {
            median,
            low: median,
            high: median,
        };
        let text = table(&[flat(500.0), flat(1500.0), flat(2000.0), flat(1800.0)]);
        assert!(
            text.contains("| two empty programs | 1500 | 1500 | 1500 | 1000 | 1.00 |"),
            "{text}"
        );
        assert!(
            text.contains("| leakmon | 2000 | 2000 | 2000 | 1500 | 1.50 |"),
            "{text}"
        );
        assert!(table(&[flat(500.0), flat(500.0)]).contains("–"));
    }
}
