//! Progress on a terminal, and silence in a pipe.

use super::{host, observer::leakmon, terminal::Tmux, victim::Victim};

#[test]
fn a_terminal_sees_progress_that_leaves_no_trace_and_a_pipe_sees_none() {
    const NAME: &str = "a_terminal_sees_progress_that_leaves_no_trace_and_a_pipe_sees_none";
    let Some(path) = host::victim_for(NAME, "leaky_registry") else {
        return;
    };
    let mut victim = Victim::start(&path, &[]);
    victim.await_ready();
    let tgid = victim.tgid().to_string();
    let command = format!(
        "{} attach -p {tgid} --duration 4s; exec cat",
        env!("CARGO_BIN_EXE_leakmon")
    );
    let Some(tmux) = Tmux::start(NAME, 80, 24, &command) else {
        return;
    };
    tmux.await_screen("the seconds are counted", |screen| {
        screen.contains("watching; Ctrl-C prints the report") && screen.contains("1/4 s")
    });
    let screen = tmux.await_screen("the report has come", |screen| screen.contains("LIVE  SPAWNED"));
    assert!(!screen.contains("watching") && !screen.contains("/4 s"), "{screen}");
    assert!(screen.starts_with(&format!("leaky_registry (PID {tgid})")), "{screen}");

    let output = leakmon(&["attach", "-p", &tgid, "--duration", "2s"]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(!report.contains('\u{1b}') && !report.contains('\r'), "{report:?}");
}
