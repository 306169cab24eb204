//! `cargo xtask test`: formatting, lints, documentation, every test, tidiness, licences.
//!
//! In: the workspace. Out: each stage's minutes, the names of the kernel tests that could not run here, and one line of
//! totals. It installs nothing: that is `setup`.
//!
//! A kernel test that can't run on this machine appends a line `NAME: REASON` to the file named by `LEAKMON_SKIPPED` and
//! returns. libtest counts it as passed; here it is counted as skipped, and with `CI=true` that is a failure.

use crate::{
    build_ebpf, matrix,
    stage::Stages,
    tidy, victims,
    workspace::{self, Workspace},
};
use anyhow::{Context as _, Result, bail};
use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

/// Environment variable that names the file of skipped tests.
const SKIPPED: &str = "LEAKMON_SKIPPED";

/// Runs every stage, whatever the others say.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let mut stages = Stages::new();
    let mut tally = Tally::default();
    let cargo = |arguments: &[&str]| workspace::run(workspace.cargo().args(arguments));
    stages.run("BPF programs", || build_ebpf::run(workspace, false));
    stages.run("formatting", || cargo(&["fmt", "--all", "--check", "--", "-l"]));
    stages.run("lints", || {
        cargo(&[
            "clippy",
            "--locked",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ])
    });
    stages.run("documentation", || {
        let mut command = workspace.cargo();
        command.args([
            "doc",
            "--locked",
            "--workspace",
            "--no-deps",
            "--document-private-items",
            "--quiet",
        ]);
        workspace::run(command.env("RUSTDOCFLAGS", "-D warnings"))
    });
    stages.run("victims", || victims::build_all(workspace));
    stages.run("tests", || run_tests(workspace, &mut tally));
    stages.run("matrix", || matrix::run_small(workspace));
    stages.run("tidy", || tidy::run(workspace));
    // Advisories change by the day and need a database from elsewhere; what is checked here holds for a commit.
    stages.run("licences", || {
        cargo(&["deny", "--locked", "check", "bans", "licenses", "sources"])
    });

    println!("\nall stages took {}", stages.elapsed());
    for (name, reason) in &tally.skipped {
        println!("skipped: {name}: {reason}");
    }
    println!("{}", tally.line());
    stages.finish()
}

fn run_tests(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    let skipped_file = workspace.target().join("skipped-tests");
    let _ = fs::remove_file(&skipped_file);
    let mut command = workspace.cargo();
    command
        .args(["test", "--locked", "--workspace", "--no-fail-fast"])
        .env(SKIPPED, &skipped_file);
    let succeeded = watch(&mut command, |line| tally.read(line))?;
    tally.skipped = read_skipped(&skipped_file)?;
    if !succeeded {
        bail!("{} tests failed", tally.failed);
    }
    if tally.passed == 0 {
        bail!("no test ran");
    }
    let in_ci = env::var("CI").is_ok_and(|value| value == "true");
    if in_ci && !tally.skipped.is_empty() {
        bail!(
            "{} kernel tests were skipped, which CI does not allow",
            tally.skipped.len()
        );
    }
    Ok(())
}

/// Runs a command, passes its standard output on line by line, and says whether it succeeded.
fn watch(command: &mut Command, mut seen: impl FnMut(&str)) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("can't start cargo")?;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            seen(&line);
        }
    }
    Ok(child.wait()?.success())
}

fn read_skipped(file: &Path) -> Result<BTreeMap<String, String>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(parse_skipped(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error).with_context(|| format!("can't read {}", file.display())),
    }
}

fn parse_skipped(text: &str) -> BTreeMap<String, String> {
    let rows = text.lines().filter(|line| !line.trim().is_empty());
    rows.map(|line| line.split_once(": ").unwrap_or((line, "no reason given")))
        .map(|(name, reason)| (name.trim().to_owned(), reason.trim().to_owned()))
        .collect()
}

/// What the test harnesses said, all together.
#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    failed: usize,
    ignored: usize,
    /// Names and reasons.
    skipped: BTreeMap<String, String>,
}

impl Tally {
    /// Adds a harness's closing line: `test result: ok. 5 passed; 0 failed; 1 ignored; …`.
    fn read(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        for part in result.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(word)) = (words.next().and_then(|word| word.parse::<usize>().ok()), words.next())
            else {
                continue;
            };
            match word {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    fn line(&self) -> String {
        let skipped = self.skipped.len();
        let passed = self.passed.saturating_sub(skipped);
        format!(
            "{passed} passed, {} failed, {} skipped",
            self.failed,
            skipped + self.ignored
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harnesses_are_added_up_and_skips_are_no_passes() {
        let mut tally = Tally::default();
        for line in [
            "running 12 tests",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.52s",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.05s",
            "a test result: ok. 99 passed",
        ] {
            tally.read(line);
        }
        tally.skipped = parse_skipped("attach: no CAP_BPF\n\nattach: no CAP_BPF\nrun counts exactly\n");
        assert_eq!(tally.skipped.len(), 2);
        assert_eq!(tally.skipped["attach"], "no CAP_BPF");
        assert_eq!(tally.line(), "13 passed, 2 failed, 3 skipped");
    }

    #[test]
    fn output_is_passed_on_and_the_exit_code_is_seen() {
        for (script, lines, succeeded) in [("echo a; echo b", 2, true), ("echo a; exit 3", 1, false)] {
            let mut seen = Vec::new();
            let result = watch(Command::new("sh").args(["-c", script]), |line| {
                seen.push(line.to_owned());
            });
            assert_eq!(result.unwrap(), succeeded);
            assert_eq!(seen.len(), lines);
        }
    }
}
