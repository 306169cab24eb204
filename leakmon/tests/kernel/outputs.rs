//! What other programs make of leakmon's outputs, and what it says of a leak and of its repair.

use super::{
    host,
    observer::{Run, leakmon},
    truth::Report,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs a victim with a report of this format.
fn report_of(victim: &Path, format: &str, folder: &Path) -> PathBuf {
    let report = folder.join(format!("report.{format}"));
    let output = leakmon(&["run", "--format", format, "-o"])
        .arg(&report)
        .arg("--")
        .arg(victim)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    report
}

#[test]
fn a_leak_fails_the_run_and_its_repair_does_not() {
    const TEST: &str = "a_leak_fails_the_run_and_its_repair_does_not";
    let (Some(leaky), Some(fixed)) = (
        host::victim_for(TEST, "leaky_registry"),
        host::victim_for(TEST, "fixed_registry"),
    ) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old.json"), folder.path().join("new.json"));
    for (victim, report, code) in [(&leaky, &old, 3), (&fixed, &new, 0)] {
        let output = leakmon(&["run", "--fail-on-leak", "--format", "json", "-o"])
            .arg(report)
            .arg("--")
            .arg(victim)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(complaint.contains("handle_conn"), code == 3, "{complaint}");
    }
    let diff = |old: &Path, new: &Path| leakmon(&["diff"]).arg(old).arg(new).output().unwrap();
    let repaired = diff(&old, &new);
    assert_eq!(repaired.status.code(), Some(0), "{}", said(&repaired));
    let table = String::from_utf8(repaired.stdout).unwrap();
    let fixed_line = table.lines().find(|line| line.starts_with("fixed")).unwrap();
    assert!(
        fixed_line.contains("handle_conn") && fixed_line.contains(" 43 "),
        "{table}"
    );
    let broken = diff(&new, &old);
    assert_eq!(broken.status.code(), Some(3), "{}", said(&broken));
    assert!(
        said(&broken)
            .lines()
            .any(|line| line.starts_with("grew") && line.contains("handle_conn"))
    );
}

#[test]
fn what_the_user_allows_does_not_fail_the_run() {
    const TEST: &str = "what_the_user_allows_does_not_fail_the_run";
    let Some(leaky) = host::victim_for(TEST, "leaky_registry") else {
        return;
    };
    // By the task's type, by the function that spawns, and by neither.
    for (pattern, code, verdict) in [
        ("leaky_registry::registry::handle_conn::*", 0, "steady"),
        ("leaky_registry::registry::accept_loop::*", 0, "steady"),
        ("leaky_registry::registry::heartbeat::*", 3, "suspect"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let report = folder.path().join("report.json");
        let output = leakmon(&["run", "--fail-on-leak", "--allow", pattern, "--format", "json", "-o"])
            .arg(&report)
            .arg("--")
            .arg(&leaky)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{pattern}: {}", said(&output));
        let report = Report::parse(&fs::read_to_string(report).unwrap());
        let callsites = report.callsites();
        let leak = callsites
            .iter()
            .find(|site| {
                site["task_type"]
                    .as_str()
                    .is_some_and(|name| name.contains("handle_conn"))
            })
            .unwrap();
        assert_eq!(
            (&leak["verdict"], &leak["live"]),
            (&verdict.into(), &43.into()),
            "{leak:#}"
        );
        let allowed = leak["evidence"].as_str().unwrap().starts_with("Allowed by a pattern.");
        assert_eq!(allowed, code == 0, "{leak:#}");
    }
}

#[test]
fn a_command_that_fails_keeps_its_code() {
    let Some(leaky) = host::victim_for("a_command_that_fails_keeps_its_code", "leaky_registry") else {
        return;
    };
    let output = leakmon(&["run", "--fail-on-leak", "--"])
        .arg(leaky)
        .arg("--no-such-option")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
}

#[test]
fn pprof_shows_the_leaking_function_first() {
    const TEST: &str = "pprof_shows_the_leaking_function_first";
    let Some(leaky) = host::victim_for(TEST, "leaky_registry") else {
        return;
    };
    let mut pprof = PathBuf::from(env!("CARGO_BIN_EXE_leakmon"));
    // From `<target>/<profile>/leakmon`.
    pprof.pop();
    pprof.pop();
    pprof.extend(["tools", "pprof"]);
    if !pprof.is_file() {
        return host::skip(TEST, "pprof is not there: run `cargo xtask setup`");
    }
    let folder = tempfile::tempdir().unwrap();
    let profile = report_of(&leaky, "pprof", folder.path());
    for index in ["live", "spawned", "oldest"] {
        let output = Command::new(&pprof)
            .args(["-top", &format!("-sample_index={index}")])
            .arg(&profile)
            .env("PPROF_TMPDIR", folder.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", said(&output));
        assert!(
            text.contains(&format!("Type: {index}\n")) && text.contains("Build ID: "),
            "{text}"
        );
        if index == "live" {
            let mut rows = text.lines().skip_while(|line| !line.trim_start().starts_with("flat"));
            let row = rows.nth(1).unwrap();
            assert_eq!(row.split_whitespace().next(), Some("43"), "{text}");
            assert!(row.contains("::handle_conn::"), "{text}");
        }
    }
}

#[test]
fn folded_stacks_load_in_inferno() {
    let Some(leaky) = host::victim_for("folded_stacks_load_in_inferno", "leaky_registry") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let folded = fs::read_to_string(report_of(&leaky, "folded", folder.path())).unwrap();
    let mut svg = Vec::new();
    inferno::flamegraph::from_lines(&mut Default::default(), folded.lines(), &mut svg).unwrap();
    let svg = String::from_utf8(svg).unwrap();
    // 43 handlers, three servers, two workers; the main thread and the workers' threads.
    assert!(svg.contains("all (51 samples, 100%)"), "{folded}");
    assert!(svg.contains("handle_conn::{{closure}}] (43 samples"));
}

#[test]
fn a_trace_has_every_birth_and_end() {
    let Some(leaky) = host::victim_for("a_trace_has_every_birth_and_end", "leaky_registry") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.json");
    let run = Run::of(&["--trace", path.to_str().unwrap()], &leaky, &[]);
    let truth = run.truth().total();
    let trace: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let is_task = |event: &&serde_json::Value| event["cat"] == "task";
    let of_phase = |phase: &str| {
        events
            .iter()
            .filter(is_task)
            .filter(|event| event["ph"] == phase)
            .count() as u64
    };
    assert_eq!(trace["otherData"]["lost_events"], 0);
    assert_eq!((of_phase("b"), of_phase("e")), (truth.spawned, truth.ended));
    let of_leak =
        |event: &&serde_json::Value| event["ph"] == "C" && event["name"].as_str().unwrap().contains("handle_conn::");
    let leak = events.iter().rfind(of_leak).unwrap();
    assert_eq!(leak["args"]["live"], 43);
}
