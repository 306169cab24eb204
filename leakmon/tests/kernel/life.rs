//! Processes that end, exec and fork while they are watched.

use super::{
    host,
    observer::{Attach, Run, leakmon, signal},
    victim::Victim,
};
use nix::sys::signal::Signal;
use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

#[test]
fn what_is_alive_when_its_process_is_killed_stays_live_in_the_report() {
    let test = "what_is_alive_when_its_process_is_killed_stays_live_in_the_report";
    let Some(path) = host::victim_for(test, "leaky_registry") else {
        return;
    };
    let mut victim = Victim::start(&path, &[]);
    victim.await_ready();
    let attach = Attach::start(&["-p", &victim.tgid().to_string()]);
    victim.go_on();
    victim.await_ready();
    victim.go_on();
    let truth = victim.truth();
    signal(victim.tgid(), Signal::SIGKILL);
    // The observation ends by itself, since all its processes have.
    let report = attach.wait();
    // The runtime and its two workers were there before the attach.
    assert_eq!(report.task().live, truth.total().live - 2);
    assert_eq!(report.target()["exited"], true);
}

#[test]
fn run_follows_the_commands_exit_code_and_signals() {
    let test = "run_follows_the_commands_exit_code_and_signals";
    let Some(path) = host::victim_for(test, "leaky_registry") else {
        return;
    };
    let failing = Run::of(&[], &path, &["--nonsense", "1"]);
    assert_eq!(failing.output.status.code(), Some(1), "the victim's own refusal");

    let mut child = leakmon(&["run", "--"])
        .arg(&path)
        .arg("--wait")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    // Held until the end: the victim leaves by itself when it is closed, as waiting would do.
    let stdin = child.stdin.take();
    signal(child.id(), Signal::SIGTERM);
    // Passed on: the victim dies of it, and leakmon says so as a shell does.
    assert_eq!(child.wait().unwrap().code(), Some(128 + Signal::SIGTERM as i32));
    drop(stdin);
}

#[test]
fn an_executable_that_is_named_twice_is_counted_once() {
    let Some(path) = host::victim_for("an_executable_that_is_named_twice_is_counted_once", "leaky_registry") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("link");
    // A copy of its own, so that no other test's process is a target.
    let copy = folder.path().join("copy");
    std::fs::copy(&path, &copy).unwrap();
    std::os::unix::fs::symlink(&copy, &link).unwrap();
    let mut victim = Victim::start(&copy, &[]);
    victim.await_ready();
    victim.go_on();
    victim.await_ready();
    let attach = Attach::start(&["--exe", copy.to_str().unwrap(), "--exe", link.to_str().unwrap()]);
    victim.go_on();
    let truth = victim.truth();
    let report = attach.report();
    assert_eq!(report.task(), truth.second_phase());
    assert_eq!(report.loss("replaced"), 0);
}

#[test]
fn a_thread_is_refused_with_the_number_of_its_process() {
    let Some(path) = host::victim_for("a_thread_is_refused_with_the_number_of_its_process", "leaky_registry") else {
        return;
    };
    let mut victim = Victim::start(&path, &[]);
    victim.await_ready();
    let tgid = victim.tgid().to_string();
    let threads = std::fs::read_dir(format!("/proc/{tgid}/task")).unwrap();
    let names = threads.map(|thread| thread.unwrap().file_name().into_string().unwrap());
    let tid = names
        .into_iter()
        .find(|tid| *tid != tgid)
        .expect("the runtime has workers");
    let output = leakmon(&["attach", "--duration", "1s", "-p", &tid]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains(&format!("give -p {tgid}")), "{said}");
}
