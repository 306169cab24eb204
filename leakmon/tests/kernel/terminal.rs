//! A terminal: tmux stands in for one, keeps its screen, and takes keys.

use super::host;
use std::{
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

/// What is awaited comes within two seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// A tmux server of its own, with one terminal.
pub(crate) struct Tmux(String);

impl Tmux {
    /// Runs a shell command in a terminal of this size; `None` where there is no tmux, after the test was recorded as skipped.
    pub(crate) fn start(test: &str, width: u16, height: u16, command: &str) -> Option<Self> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let tmux = Self(format!("leakmon-test-{}-{number}", std::process::id()));
        if Command::new("tmux").arg("-V").output().is_err() {
            host::skip(test, "tmux is not installed: run `cargo xtask setup`");
            return None;
        }
        let size = [width.to_string(), height.to_string()];
        tmux.run(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            &size[0],
            "-y",
            &size[1],
            command,
        ]);
        Some(tmux)
    }

    /// Runs a command of tmux, and gives its output.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux")
            .env("LC_ALL", "C.UTF-8")
            .args(["-u", "-L", &self.0])
            .args(arguments)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the terminal shows.
    pub(crate) fn screen(&self) -> String {
        self.run(&["capture-pane", "-p"])
    }

    /// Presses keys.
    pub(crate) fn keys(&self, keys: &[&str]) {
        self.run(&[&["send-keys"], keys].concat());
    }

    /// Waits for a screen of which this is true.
    pub(crate) fn await_screen(&self, what: &str, holds: impl Fn(&str) -> bool) -> String {
        let begin = Instant::now();
        loop {
            let screen = self.screen();
            if holds(&screen) {
                return screen;
            }
            assert!(begin.elapsed() < PATIENCE, "{what}, but there is:\n{screen}");
            // tidy: a terminal does not tell when it changes
            sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _gone = Command::new("tmux").args(["-L", &self.0, "kill-server"]).output();
    }
}
