//! What a process's memory holds, against its own numbers.

use super::{
    crowd::{BUILDS, Crowd, alive, census, states_of, without},
    daemon::Daemon,
    discovery::{await_value, status_bytes},
    host,
    observer::Attach,
    storm::Storm,
    truth::Report,
};
use serde_json::Value;
use std::{
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// Runs that must all be exact.
const RUNS: usize = 20;
/// Tasks that churn, and how many of them are replaced in a second.
const CHURNING: u64 = 10_000;
/// Tasks whose census takes megabytes, and how much of that the daemon may keep.
const MANY: u64 = 100_000;
const KEPT_BYTES_MAX: u64 = 6 << 20;
/// A daemon takes a census every 30 seconds.
const NEXT_CENSUS: Duration = Duration::from_secs(90);
/// Nobody's user and group.
const NOBODY: u32 = 65534;

#[test]
fn a_census_counts_every_type_and_state_exactly_in_every_build() {
    for build in BUILDS {
        let test = "a_census_counts_every_type_and_state_exactly_in_every_build";
        let Some(path) = host::program_built(test, build, "crowd") else {
            continue;
        };
        for (tasks, runs) in [(10, 2), (1_000, RUNS), (100_000, 2)] {
            let crowd = Crowd::start(&path, tasks);
            for run in 0..runs {
                let census = census(crowd.tgid());
                assert_eq!(
                    states_of(&census),
                    crowd.states(),
                    "{build:?}, {tasks} tasks, run {run}"
                );
                assert_eq!(
                    census["tasks"]["alive"],
                    crowd.alive(),
                    "{build:?}, {tasks} tasks, run {run}"
                );
                assert_eq!(census["share"], 1.0);
            }
        }
    }
}

#[test]
fn a_type_that_churns_is_counted_within_one_percent_and_the_others_exactly() {
    for build in BUILDS {
        let test = "a_type_that_churns_is_counted_within_one_percent_and_the_others_exactly";
        let Some(path) = host::program_built(test, build, "crowd") else {
            continue;
        };
        let mut crowd = Crowd::start(&path, 1_000);
        let quiet = crowd.states();
        crowd.tell(&format!("churn {CHURNING} {CHURNING}"));
        let began = Instant::now();
        // Until each was replaced: then memory is in use that the allocator gives out again and again, as in a service that has
        // run.
        while crowd.replaced() < 2 * CHURNING {
            crowd.tell("count");
        }
        for run in 0..RUNS {
            let others = without(states_of(&census(crowd.tgid())), &quiet);
            let [churned] = others.as_slice() else {
                panic!("{build:?}, run {run}: {others:?}")
            };
            let error = alive(churned).abs_diff(CHURNING);
            assert!(error <= CHURNING / 100, "{build:?}, run {run}: {churned:?}");
        }
        let seconds = began.elapsed().as_secs();
        crowd.tell("count");
        // A machine with other work is slower, and must not be still.
        assert!(
            crowd.replaced() >= CHURNING * seconds / 10,
            "{} in {seconds} s",
            crowd.replaced()
        );
    }
}

#[test]
fn finished_tasks_that_are_held_are_named_until_they_are_drained() {
    let Some(path) = host::victim_for("finished_tasks_that_are_held_are_named_until_they_are_drained", "crowd") else {
        return;
    };
    let mut crowd = Crowd::start(&path, 17);
    let tgid = crowd.tgid().to_string();
    let attach = Attach::start(&["-p", &tgid, "--confirm-interval", "20ms"]);
    crowd.tell("hold 2000");
    let report = attach.report();
    let held = of_kind(&report, "held", "finishes_in_set");
    let [row] = held.as_slice() else { panic!("{held:#?}") };
    assert_eq!(row["live"], 2001, "one was there before");
    assert!(row["bytes"].as_u64().unwrap() >= 2001 * 256, "{row:#}");
    let function = row["location"]["function"].as_str().unwrap_or_default();
    assert!(function.contains("Crowd::hold"), "{row:#}");
    assert_eq!(
        report.target()["census"]["tasks"]["held"],
        2002,
        "and one whose handle is kept"
    );

    crowd.tell("drain");
    let report = Attach::start(&["-p", &tgid, "--confirm-interval", "20ms"]).report();
    assert_eq!(of_kind(&report, "held", "finishes_in_set"), Vec::<Value>::new());
    assert_eq!(report.target()["census"]["tasks"]["held"], 1);
}

#[test]
fn a_finished_task_whose_handle_is_about_to_be_awaited_is_not_held() {
    let test = "a_finished_task_whose_handle_is_about_to_be_awaited_is_not_held";
    let Some(path) = host::victim_for(test, "storm") else {
        return;
    };
    let mut storm = Storm::start(&path);
    storm.await_late();
    for run in 0..RUNS {
        assert_eq!(census(storm.tgid())["tasks"]["held"], 0, "run {run}");
    }
    storm.command("");
    storm.end();
}

#[test]
fn tasks_older_than_the_attach_end_and_their_number_reaches_zero() {
    let Some(path) = host::victim_for("tasks_older_than_the_attach_end_and_their_number_reaches_zero", "crowd") else {
        return;
    };
    let mut crowd = Crowd::start(&path, 1_000);
    let tgid = crowd.tgid().to_string();
    let ([waiting, ..], alive) = (crowd.of(&["waits"]), crowd.alive());
    let attach = Attach::start(&["-p", &tgid, "--confirm-interval", "20ms"]);
    crowd.tell("more 30");
    crowd.tell("end");
    let report = attach.report();
    let older = &report.target()["census"]["older"];
    assert_eq!(
        (&older["found"], &older["live"]),
        (&alive.into(), &(alive - waiting).into())
    );
    // Those that were born later have ended too, and so have the tasks that the crowd asks itself with.
    let task = report.task();
    assert_eq!((task.live, task.spawned), (0, task.ended));
    assert!(task.spawned >= 30);
    assert_eq!(report.loss("unmatched_ends"), waiting);
    let rows = of_kind(&report, "task", "::waits<");
    let older: Vec<&Value> = rows.iter().filter(|row| row["born_before_attach"] != 0).collect();
    assert_eq!(older.len(), 9, "{older:#?}");
    for row in older {
        assert_eq!(
            (&row["live"], &row["ended"]),
            (&0.into(), &row["born_before_attach"]),
            "{row:#}"
        );
    }
    let disagreement = &report.target()["census"]["disagreement"];
    assert_eq!(
        (&disagreement["unseen_births"], &disagreement["unseen_ends"]),
        (&0.into(), &0.into())
    );
}

fn of_kind(report: &Report, kind: &str, type_name: &str) -> Vec<Value> {
    let named = |row: &Value| row["task_type"].as_str().is_some_and(|name| name.contains(type_name));
    let rows = report.callsites();
    let wanted = rows.iter().filter(|row| row["kind"] == kind && named(row));
    wanted.map(|row| Value::clone(row)).collect()
}

#[test]
fn without_a_census_no_memory_is_read() {
    let Some(path) = host::victim_for("without_a_census_no_memory_is_read", "crowd") else {
        return;
    };
    let crowd = Crowd::start(&path, 17);
    let report = Attach::start(&["-p", &crowd.tgid().to_string(), "--no-census"]).report();
    assert_eq!(report.target()["census"], Value::Null);
    assert!(report.callsites().iter().all(|row| row["born_before_attach"] == 0));
}

/// A copy that everybody can execute.
fn copy(from: &Path, folder: &Path) -> std::path::PathBuf {
    let to = folder.join(from.file_name().unwrap());
    std::fs::copy(from, &to).unwrap();
    std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755)).unwrap();
    to
}

#[test]
fn a_census_needs_no_root_and_says_why_where_it_is_refused() {
    let Some(path) = host::victim_for("a_census_needs_no_root_and_says_why_where_it_is_refused", "crowd") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let victim = copy(&path, folder.path());
    let tool = copy(Path::new(env!("CARGO_BIN_EXE_leakmon")), folder.path());
    let census = |tgid: u32| {
        let mut command = Command::new(&tool);
        command.args([
            "census",
            "--format",
            "json",
            "--confirm-interval",
            "20ms",
            "-p",
            &tgid.to_string(),
        ]);
        command.current_dir("/").uid(NOBODY).gid(NOBODY).output().unwrap()
    };
    let crowd = Crowd::start_as(Command::new(&victim).current_dir("/").uid(NOBODY).gid(NOBODY));
    let output = census(crowd.tgid());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found = serde_json::from_slice::<Value>(&output.stdout).unwrap();
    assert_eq!(found["census"]["tasks"]["alive"], crowd.alive());

    let crowd = Crowd::start(&victim, 10);
    let output = census(crowd.tgid());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("not permitted") && said.lines().count() == 1, "{said}");
}

#[test]
fn the_memory_that_a_census_took_is_given_back() {
    let Some(path) = host::victim_for("the_memory_that_a_census_took_is_given_back", "crowd") else {
        return;
    };
    let mut crowd = Crowd::start(&path, 1_000);
    let daemon = Daemon::start(&["-p", &crowd.tgid().to_string()]);
    let await_census = |tasks: u64| {
        let alive = |report: &Report| report.0["targets"][0]["census"]["tasks"]["alive"].as_u64();
        daemon.await_report_for(NEXT_CENSUS, "a census", |report| {
            alive(report).is_some_and(|alive| alive >= tasks)
        })
    };
    await_census(1);
    let before = anonymous_bytes(daemon.tgid());
    crowd.tell(&format!("more {MANY}"));
    await_census(MANY);
    await_value("memory as before", &true, || {
        anonymous_bytes(daemon.tgid()) < before + KEPT_BYTES_MAX
    });
    daemon.stop();
}

/// Memory of a process that is not in files.
fn anonymous_bytes(tgid: u32) -> u64 {
    status_bytes(tgid, "RssAnon:")
}
