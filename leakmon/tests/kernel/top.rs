//! `leakmon top` in a terminal.

use super::{
    host,
    terminal::{PATIENCE, Tmux},
    victim::Victim,
};
use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

/// The first row of callsites: the line below the heading.
fn first_row(screen: &str) -> &str {
    let mut lines = screen.lines().skip_while(|line| !line.starts_with("VERDICT"));
    lines.nth(1).unwrap_or_default()
}

#[test]
fn top_ends_when_its_terminal_goes() {
    const NAME: &str = "top_ends_when_its_terminal_goes";
    let Some(path) = host::victim_for(NAME, "leaky_registry") else {
        return;
    };
    let mut victim = Victim::start(&path, &[]);
    victim.await_ready();
    let leakmon = env!("CARGO_BIN_EXE_leakmon");
    let command = format!("exec {leakmon} top -p {}", victim.tgid());
    let Some(tmux) = Tmux::start(NAME, 60, 15, &command) else {
        return;
    };
    tmux.await_screen("probes are attached", |screen| screen.contains("attached: 0 live"));
    let tgid = tmux.run(&["display-message", "-p", "#{pane_pid}"]);
    let process = Path::new("/proc").join(tgid.trim());
    assert!(process.is_dir());
    drop(tmux);
    let deadline = Instant::now() + PATIENCE;
    while process.is_dir() {
        assert!(Instant::now() < deadline, "it runs without a terminal");
        // tidy: its end is told to its parent alone
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn top_shows_the_leak_and_leaves_the_terminal_as_it_was() {
    const NAME: &str = "top_shows_the_leak_and_leaves_the_terminal_as_it_was";
    let Some(path) = host::victim_for(NAME, "leaky_registry") else {
        return;
    };
    let mut victim = Victim::start(&path, &[]);
    victim.await_ready();
    let leakmon = env!("CARGO_BIN_EXE_leakmon");
    let command = format!(
        "stty -g; {leakmon} top -p {}; echo code $?; stty -g; exec cat",
        victim.tgid()
    );
    let Some(tmux) = Tmux::start(NAME, 60, 15, &command) else {
        return;
    };
    tmux.await_screen("probes are attached", |screen| screen.contains("attached: 0 live"));
    victim.go_on();
    victim.await_ready();
    victim.go_on();
    let _truth = victim.truth();
    // 43 handlers are left for ever, and they stand first.
    let screen = tmux.await_screen("the leak is first", |screen| {
        let row = first_row(screen);
        row.contains("handle_conn") && row.contains(" 43 ")
    });
    assert!(screen.contains("accept_loop"), "its stack:\n{screen}");
    assert!(screen.lines().count() <= 15 && screen.contains("q quit"), "{screen}");

    // Another row, and back again; the filter; the pause.
    tmux.keys(&["Down"]);
    tmux.await_screen("another one is selected", |screen| {
        !screen.contains("43 live with this stack")
    });
    tmux.keys(&["Up"]);
    tmux.await_screen("the leak is selected", |screen| {
        screen.contains("43 live with this stack")
    });
    tmux.keys(&["/", "heartbeat", "Enter"]);
    tmux.await_screen("the filter narrows", |screen| first_row(screen).contains("heartbeat"));
    tmux.keys(&["Escape"]);
    tmux.await_screen("all are back", |screen| first_row(screen).contains("handle_conn"));
    tmux.keys(&["p"]);
    tmux.await_screen("it is paused", |screen| screen.contains("PAUSED"));
    tmux.run(&["resize-window", "-x", "120", "-y", "40"]);
    tmux.await_screen("it fills the larger screen", |screen| screen.contains("TREND"));

    tmux.keys(&["q"]);
    let screen = tmux.await_screen("it has quit", |screen| {
        screen.contains("code 0") && screen.trim_end().lines().last().is_some_and(|line| line.contains(':'))
    });
    let settings: Vec<&str> = screen.lines().filter(|line| line.matches(':').count() > 20).collect();
    assert!(
        settings.len() == 2 && settings[0] == settings[1],
        "the terminal's settings:\n{screen}"
    );
    let flags = tmux.run(&[
        "display-message",
        "-p",
        "#{alternate_on} #{cursor_flag} #{mouse_any_flag}",
    ]);
    assert_eq!(flags.trim(), "0 1 0");
}
