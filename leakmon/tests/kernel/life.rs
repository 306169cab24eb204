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
    signal(child.id(), Signal::SIGTERM);
    // Passed on: the victim dies of it, and leakmon says so as a shell does.
    assert_eq!(child.wait().unwrap().code(), Some(128 + Signal::SIGTERM as i32));
}
