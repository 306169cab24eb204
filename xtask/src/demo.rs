//! `cargo xtask demo`: leakmon finds the leak of the leaky victim, and its number is the victim's own.
//!
//! In: the victim `leaky_registry` in two builds. Out: the full stacks of the build with frame pointers, then the table of
//! the default release build; an error that names both numbers where they differ. As root, or through sudo.

use crate::{
    build_ebpf,
    setup::{self, Purpose},
    victims::{self, Build, Counts, Truth},
    workspace::{self, Workspace},
};
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::{fs, path::Path, process::Command, time::Instant};

const VICTIM: &str = "leaky_registry";
/// The victim's function whose tasks leak.
const LEAKING: &str = "handle_conn";
/// Between two connections, so that the tasks' ages differ as in a real service: 38 × 40 ms.
const PACE_MS: &str = "40";
/// Frames that are shown of a stack.
const FRAMES_SHOWN: usize = 24;

/// What is read of leakmon's JSON report.
#[derive(Debug, Deserialize)]
struct Report {
    targets: Vec<Target>,
    callsites: Vec<Callsite>,
}

#[derive(Debug, Deserialize)]
struct Target {
    task: Counts,
}

#[derive(Debug, Deserialize)]
struct Callsite {
    #[serde(flatten)]
    counts: Counts,
    task_type: Option<String>,
    location: Frame,
    stacks: Vec<Stack>,
}

#[derive(Debug, Deserialize)]
struct Stack {
    frames: Vec<Frame>,
}

#[derive(Debug, Deserialize)]
struct Frame {
    function: Option<String>,
    image: Option<String>,
    offset: Option<u64>,
}

/// Installs, builds, runs, compares.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let started = Instant::now();
    setup::run(workspace, Purpose::Build)?;
    build_ebpf::run(workspace, false)?;
    println!("demo: building leakmon and the victim, which cargo does as for any release");
    let leakmon = victims::build_leakmon(workspace)?;
    for build in [Build::Release, Build::FramePointers] {
        victims::build(workspace, build, Some(VICTIM))?;
    }
    let folder = workspace.target().join("demo");
    fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;

    let watch = |build: Build, format: &str| -> Result<(Truth, String)> {
        let file = folder.join(format!("report.{format}"));
        let mut command = elevated(workspace, &leakmon);
        command.args(["run", "--format", format, "-o"]).arg(&file).arg("--");
        command
            .arg(build.example(workspace, VICTIM))
            .args(["--pace-ms", PACE_MS]);
        println!("demo: {}", workspace::shown(&command));
        let truth = victims::run(&command)?;
        let report = fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))?;
        Ok((truth, report))
    };

    println!("\n== a build with -C force-frame-pointers=yes: the whole stack of the leaking task");
    let (truth, report) = watch(Build::FramePointers, "json")?;
    let report = read_report(&report)?;
    compare(&truth, &report)?;
    print_stack(&report);

    println!("\n== the default release build");
    let (truth, report) = watch(Build::Release, "json")?;
    let seen = compare(&truth, &read_report(&report)?)?;
    let (truth, table) = watch(Build::Release, "table")?;
    println!("\n{}", table.trim_end());
    let own = truth.site(LEAKING)?;
    check_table(&table, own)?;
    println!(
        "\ndemo: the victim says that {} of its {} {LEAKING} tasks are alive, leakmon counted {}; {:.0} s in all",
        own.live,
        own.spawned,
        seen.live,
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// A command as root; sudo asks for its password on the terminal itself.
fn elevated(workspace: &Workspace, program: &Path) -> Command {
    if setup::is_root() {
        return workspace.command(program);
    }
    let mut command = workspace.command("sudo");
    command.arg("--").arg(program);
    command
}

fn read_report(report: &str) -> Result<Report> {
    serde_json::from_str(report).context("leakmon's report is not the JSON that DESIGN promises")
}

/// The leaking callsite must be first, and every number the victim's own. Gives what leakmon counted there.
fn compare(truth: &Truth, report: &Report) -> Result<Counts> {
    let own = truth.site(LEAKING)?;
    let Some(first) = report.callsites.first() else {
        bail!("leakmon reports no callsite")
    };
    let named = |name: &Option<String>| name.as_ref().is_some_and(|name| name.contains(LEAKING));
    if !named(&first.task_type) {
        bail!(
            "the first callsite is {:?} at {:?}, not {LEAKING}",
            first.task_type,
            first.location.function
        );
    }
    equal(LEAKING, first.counts, own)?;
    let [target] = report.targets.as_slice() else {
        bail!("leakmon reports {} targets, not 1", report.targets.len())
    };
    let runtimes = truth.runtime_tasks;
    let all = Counts {
        spawned: truth.total.spawned + runtimes,
        live: truth.total.live + runtimes,
        ..truth.total
    };
    equal("all tasks, the runtime's own included,", target.task, all)?;
    Ok(first.counts)
}

fn equal(what: &str, seen: Counts, own: Counts) -> Result<()> {
    for (number, seen, own) in [
        ("live", seen.live, own.live),
        ("spawned", seen.spawned, own.spawned),
        ("ended", seen.ended, own.ended),
    ] {
        if seen != own {
            bail!("{what} {number}: leakmon counted {seen}, the victim says {own}");
        }
    }
    Ok(())
}

/// The table's first row must have the name, and the number in its column `LIVE`.
fn check_table(table: &str, own: Counts) -> Result<()> {
    let mut lines = table
        .lines()
        .skip_while(|line| !line.split_whitespace().any(|word| word == "LIVE"));
    let (Some(heading), Some(row)) = (lines.next(), lines.next()) else {
        bail!("the table has no rows");
    };
    if !row.contains(LEAKING) {
        bail!("the table's first row does not name {LEAKING}: {row}");
    }
    let column = heading.split_whitespace().position(|word| word == "LIVE");
    let cell = column
        .and_then(|column| row.split_whitespace().nth(column))
        .unwrap_or_default();
    if cell != own.live.to_string() {
        bail!("{LEAKING} live: the table says {cell:?}, the victim {}", own.live);
    }
    Ok(())
}

fn print_stack(report: &Report) {
    let Some(stack) = report.callsites.first().and_then(|callsite| callsite.stacks.first()) else {
        return;
    };
    println!("\n{} frames, innermost first:", stack.frames.len());
    for frame in stack.frames.iter().take(FRAMES_SHOWN) {
        let image = frame.image.as_deref().unwrap_or("?");
        match &frame.function {
            Some(function) => println!("  {function}"),
            None => println!("  {image}+{:#x}", frame.offset.unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUTH: &str = r#"{"runtime_tasks":2,"total":{"spawned":123,"ended":77,"live":46},
        "truth":[{"site":"handle_conn","spawned":60,"ended":17,"live":43}]}"#;

    fn report(task_type: &str, live: u64, total: u64) -> Report {
        let text = format!(
            r#"{{"targets":[{{"task":{{"spawned":125,"ended":77,"live":{total}}}}}],
            "callsites":[{{"live":{live},"spawned":60,"ended":17,"task_type":"{task_type}","location":{{}},"stacks":[]}}]}}"#
        );
        read_report(&text).unwrap()
    }

    #[test]
    fn numbers_must_be_the_victims_own() {
        let truth = Truth::parse(&TRUTH.replace('\n', "")).unwrap();
        let right = report("app::handle_conn::{{closure}}", 43, 48);
        assert_eq!(compare(&truth, &right).unwrap().live, 43);
        for (wrong, words) in [
            (report("app::handle_conn", 42, 48), ["42", "43"]),
            (report("app::handle_conn", 43, 46), ["46", "48"]),
            (report("app::other", 43, 48), ["app::other", "handle_conn"]),
        ] {
            let error = compare(&truth, &wrong).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn the_table_has_the_number_in_the_first_row() {
        let own = Counts {
            spawned: 60,
            ended: 17,
            live: 43,
        };
        let table = |row: &str| {
            format!("app (PID 43), attached\n\n  PID  LIVE  SPAWNED  WHERE\n{row}\n   43    43       43  other\n")
        };
        assert!(check_table(&table("   17    43       60  app::handle_conn"), own).is_ok());
        for wrong in [
            "   43    17       60  app::handle_conn",
            "   17    43       60  app::other",
            "   43",
        ] {
            assert!(check_table(&table(wrong), own).is_err(), "{wrong}");
        }
        assert!(check_table("", own).is_err());
    }
}
