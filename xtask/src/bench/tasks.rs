//! What a task costs more under leakmon, in a program that does nothing but spawn.
//!
//! In: the victim `spawn_heavy`, which times itself, and what else could watch it ([`super::rivals`]). Out: a table. The floor is
//! leakmon's probes with programs that do nothing: what any tool pays that probes these instructions. The configurations take
//! turns, round by round, and each is compared with what ran alone in its own round, so that a machine that slows down slows
//! both; the middle of the rounds counts. More tables are of a program that leaks: beside [`HELD`] tasks that never end.

use super::{
    Effort, remnants,
    rivals::{self, Runner},
    summary::Summary,
};
use crate::{
    build_ebpf,
    victims::{self, Build, SPAWN_HEAVY},
    workspace::Workspace,
};
use anyhow::{Context as _, Result, bail};
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

/// One way to run the victim; the command takes the victim's own arguments.
struct Configuration {
    name: String,
    command: Runner,
}

/// The first is what the others are compared with, the second the floor.
const ALONE: usize = 0;
const FLOOR: usize = 1;

/// leakmon's rows: name and options.
const OWN: [(&str, &[&str]); 4] = [
    ("two empty programs: the floor", &["--empty-programs"]),
    ("leakmon, full stacks", &[]),
    ("leakmon, full stacks, each walked anew", &["--no-memo"]),
    ("leakmon --no-stacks", &["--no-stacks"]),
];

/// How many of the first configurations are measured again beside tasks that stay: alone, the floor, leakmon with full stacks.
const LEAKING: usize = 3;

/// Tasks that stay. A task that is born beside the first has its place taken, with a chance of 19 in 20, and goes to the first of
/// two hashes; beside the second that one is full as well, and it goes to the second (leakmon-ebpf/src/abi/live.rs).
const HELD: [usize; 2] = [50_000, 100_000];

/// Runs the rounds and prints the tables.
pub(super) fn run(workspace: &Workspace, Effort { rounds, tasks, .. }: Effort) -> Result<String> {
    if rounds == 0 {
        bail!("at least one round is needed");
    }
    build_ebpf::run(workspace, false)?;
    let configurations = configurations(workspace)?;
    let number = tasks.to_string();
    let mut text = format!(
        "Added cost a task: {tasks} tasks, {rounds} rounds, nanoseconds of processor time in the watched program, medians\n\n{}",
        measure(&configurations, rounds, &["--tasks", &number])?
    );
    for held in HELD {
        let arguments = ["--tasks", &number, "--held", &held.to_string()];
        let table = measure(&configurations[..LEAKING], rounds, &arguments)?;
        // Writing to a string can't fail.
        let _ = write!(text, "\nThe same beside {held} tasks that never end\n\n{table}");
    }
    Ok(text)
}

/// Runs each configuration with these arguments of the victim, in turns, and gives the table.
fn measure(configurations: &[Configuration], rounds: usize, arguments: &[&str]) -> Result<String> {
    let mut samples: Vec<Vec<f64>> = configurations.iter().map(|_| Vec::new()).collect();
    for round in 1..=rounds {
        println!("bench: round {round} of {rounds}");
        for (configuration, samples) in configurations.iter().zip(&mut samples) {
            let command = (configuration.command)(arguments);
            let truth = victims::run(&command).with_context(|| configuration.name.clone())?;
            remnants::await_end_of(&command)?;
            samples.push(truth.ns_per_task.context("the victim did not time itself")?);
        }
    }
    let names: Vec<&str> = configurations.iter().map(|known| known.name.as_str()).collect();
    Ok(table(&names, &samples))
}

fn configurations(workspace: &Workspace) -> Result<Vec<Configuration>> {
    let leakmon = victims::build_leakmon(workspace)?;
    victims::build(workspace, Build::Release, Some(SPAWN_HEAVY))?;
    let victim = Build::Release.example(workspace, SPAWN_HEAVY);
    let mut configurations = vec![Configuration {
        name: "alone".to_owned(),
        command: direct(victim.clone()),
    }];
    for (name, options) in OWN {
        configurations.push(Configuration {
            name: name.to_owned(),
            command: under_leakmon(workspace, &leakmon, &victim, options),
        });
    }
    let console = rivals::build_console(workspace)?;
    configurations.push(Configuration {
        name: "console-subscriber compiled in".to_owned(),
        command: direct(console.clone()),
    });
    configurations.push(Configuration {
        name: "the same, told to forget ended tasks after a second".to_owned(),
        command: rivals::forgetful(console),
    });
    match rivals::bpftrace(workspace, &victim)? {
        Ok(command) => configurations.push(Configuration {
            name: "a bpftrace script on function entries".to_owned(),
            command,
        }),
        Err(reason) => println!("bench: no row for bpftrace: {reason}"),
    }
    Ok(configurations)
}

/// Runs the victim under `leakmon run` with these options.
pub(super) fn under_leakmon(
    workspace: &Workspace,
    leakmon: &Path,
    victim: &Path,
    options: &'static [&'static str],
) -> Runner {
    let (leakmon, victim) = (leakmon.to_owned(), victim.to_owned());
    let report = workspace.target().join("bench-report");
    Box::new(move |arguments| {
        let mut command = Command::new(&leakmon);
        command.args(["run", "-o"]).arg(&report).args(options);
        command.arg("--").arg(&victim).args(arguments);
        command
    })
}

/// Runs the victim alone.
pub(super) fn direct(program: PathBuf) -> Runner {
    Box::new(move |arguments| {
        let mut command = Command::new(&program);
        command.args(arguments);
        command
    })
}

/// One row a configuration; `samples` holds nanoseconds a task, by round, in the order of `names`.
fn table(names: &[&str], samples: &[Vec<f64>]) -> String {
    let mut text = String::from("| configuration | ns a task | added | lowest | highest | added, of the floor |\n");
    text.push_str("| --- | ---: | ---: | ---: | ---: | ---: |\n");
    let added = |index: usize| -> Vec<f64> {
        let pairs = samples[index].iter().zip(&samples[ALONE]);
        pairs.map(|(with, alone)| with - alone).collect()
    };
    for (index, name) in names.iter().enumerate() {
        let (Some(whole), Some(cost)) = (Summary::of(&samples[index]), Summary::of(&added(index))) else {
            continue;
        };
        // Writing to a string can't fail.
        let _ = if index == ALONE {
            writeln!(
                text,
                "| {name} | {:.0} | – | {:.0} | {:.0} | – |",
                whole.median, whole.low, whole.high
            )
        } else {
            let ratios: Vec<f64> = added(index)
                .iter()
                .zip(added(FLOOR))
                .map(|(cost, floor)| cost / floor)
                .collect();
            let ratio = Summary::of(&ratios).map_or(f64::NAN, |ratio| ratio.median);
            writeln!(
                text,
                "| {name} | {:.0} | {:.0} | {:.0} | {:.0} | {ratio:.2} |",
                whole.median, cost.median, cost.low, cost.high
            )
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_compared_with_the_floor_of_its_own_round() {
        // The machine slows down by 500 in the second round, which changes nothing.
        let samples = [
            vec![500.0, 1000.0],
            vec![1500.0, 2000.0],
            vec![2000.0, 2700.0],
            vec![1800.0, 2300.0],
        ];
        let text = table(&["alone", "floor", "leakmon", "without stacks"], &samples);
        assert!(text.contains("| alone | 750 | – | 500 | 1000 | – |"), "{text}");
        assert!(text.contains("| floor | 1750 | 1000 | 1000 | 1000 | 1.00 |"), "{text}");
        assert!(
            text.contains("| leakmon | 2350 | 1600 | 1500 | 1700 | 1.60 |"),
            "{text}"
        );
        assert!(
            text.contains("| without stacks | 2050 | 1300 | 1300 | 1300 | 1.30 |"),
            "{text}"
        );
    }
}
