//! The files under `deploy/` against the tools that will read them: systemd, promtool, kubernetes-validate, helm, kubectl.
//!
//! The tools come with `cargo xtask setup`. Where one is missing its test is skipped by name and counted, which CI does not allow.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod dashboard;
mod manifests;

use serde_json::Value;
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

/// A file below `deploy/`.
pub(crate) fn deployed(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

/// A program of `cargo xtask setup`, or `None` after the test was recorded as skipped.
pub(crate) fn tool(test: &str, path: &str) -> Option<PathBuf> {
    let path = match path.strip_prefix('/') {
        Some(_) => PathBuf::from(path),
        // From `<target>/<profile>/leakmon`.
        None => Path::new(env!("CARGO_BIN_EXE_leakmon"))
            .ancestors()
            .nth(2)
            .unwrap()
            .join("deploy/tools")
            .join(path),
    };
    if path.is_file() {
        return Some(path);
    }
    let reason = format!("{} is not there: run `cargo xtask setup`", path.display());
    eprintln!("SKIPPED {test}: {reason}");
    if let Some(file) = std::env::var_os("LEAKMON_SKIPPED") {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(file).unwrap();
        writeln!(file, "{test}: {reason}").unwrap();
    }
    None
}

/// Runs a command, which must succeed, and gives its output.
pub(crate) fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

/// Worst exposure that the unit may have, from 0 to 10.
const EXPOSURE_MAX: f64 = 3.5;

/// The unit with a program that exists, as after the installation.
fn unit() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(deployed("systemd/leakmon.service")).unwrap();
    let text = text.replace("/usr/bin/leakmon", env!("CARGO_BIN_EXE_leakmon"));
    let file = folder.path().join("leakmon.service");
    fs::write(&file, text).unwrap();
    (folder, file)
}

#[test]
fn the_unit_is_understood_by_systemd() {
    let Some(analyze) = tool("the_unit_is_understood_by_systemd", "/usr/bin/systemd-analyze") else {
        return;
    };
    let (_folder, file) = unit();
    let said = succeeds(Command::new(analyze).args(["verify", "--man=no"]).arg(file));
    assert!(said.is_empty(), "{said}");
}

#[test]
fn the_unit_forbids_what_it_can_and_explains_the_rest() {
    let Some(analyze) = tool("the_unit_forbids_what_it_can", "/usr/bin/systemd-analyze") else {
        return;
    };
    let (_folder, file) = unit();
    let mut command = Command::new(analyze);
    command.args(["security", "--offline=true", "--no-pager"]).arg(&file);
    let said = succeeds(&mut command);
    let overall = said
        .lines()
        .find_map(|line| line.split_once("leakmon.service: "))
        .unwrap()
        .1;
    let exposure: f64 = overall.split(' ').next().unwrap().parse().unwrap();
    assert!(exposure <= EXPOSURE_MAX, "{said}");
    let rows: Vec<Value> = serde_json::from_str(&succeeds(command.arg("--json=short"))).unwrap();
    let comments: String = fs::read_to_string(file)
        .unwrap()
        .lines()
        .filter(|line| line.starts_with('#'))
        .collect();
    let mut explained = 0;
    for row in rows {
        let points: f64 = row["exposure"]
            .as_str()
            .and_then(|points| points.parse().ok())
            .unwrap_or(0.0);
        if row["set"] == false && points > 0.0 {
            // `User=/DynamicUser=`, `CapabilityBoundingSet=~CAP_BPF`: the setting, and the part of it that counts.
            let name = row["name"].as_str().unwrap();
            let (setting, part) = name.split_once('=').unwrap();
            assert!(comments.contains(setting), "no comment on {name}");
            let capability = part
                .strip_prefix("~")
                .filter(|part| part.starts_with("CAP_") && !part.contains('('));
            assert!(
                capability.is_none_or(|name| comments.contains(name)),
                "no comment on {name}"
            );
            explained += 1;
        }
    }
    assert!(explained > 5, "systemd-analyze no longer says what counts");
    println!("exposure {exposure}, {explained} points explained");
}

#[test]
fn the_rules_are_right() {
    let Some(promtool) = tool("the_rules_are_right", "/usr/bin/promtool") else {
        return;
    };
    let prometheus = deployed("prometheus");
    for arguments in [
        ["check", "rules", "leakmon.rules.yml"],
        ["test", "rules", "leakmon.rules.test.yml"],
        ["check", "config", "prometheus.yml"],
    ] {
        succeeds(Command::new(&promtool).args(arguments).current_dir(&prometheus));
    }
    // Each alert has a case in which it fires.
    let rules = fs::read_to_string(prometheus.join("leakmon.rules.yml")).unwrap();
    let cases = fs::read_to_string(prometheus.join("leakmon.rules.test.yml")).unwrap();
    let alerts: Vec<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(!alerts.is_empty());
    for alert in alerts {
        let fires = cases
            .split("alertname: ")
            .any(|case| case.starts_with(&format!("{alert}\n")) && case.contains("- exp_labels:"));
        assert!(fires, "{alert} has no case in which it fires");
    }
}
