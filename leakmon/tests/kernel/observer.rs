//! leakmon as a user runs it.

use super::truth::{Report, Truth};
use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, ChildStderr, Command, Output, Stdio},
};

/// The command under test.
pub(crate) fn leakmon(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leakmon"));
    let (name, options) = arguments.split_first().unwrap();
    command.arg(name);
    // Daemons of tests that run at once must not meet; those of restart have a directory of their own.
    if *name == "daemon" && !options.iter().any(|option| option.contains("--pin")) {
        command.arg("--no-pin");
    }
    command.args(options);
    command
}

/// A finished `leakmon run` with a JSON report.
pub(crate) struct Run {
    pub(crate) output: Output,
    pub(crate) report: Report,
}

impl Run {
    /// Runs a victim to its end.
    pub(crate) fn of(options: &[&str], victim: &Path, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let report = folder.path().join("report.json");
        let output = leakmon(&["run", "--format", "json", "-o"])
            .arg(&report)
            .args(options)
            .arg("--")
            .arg(victim)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = std::fs::read_to_string(&report)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        Self {
            output,
            report: Report::parse(&text),
        }
    }

    /// The victim's own record, the last line of its output.
    pub(crate) fn truth(&self) -> Truth {
        let text = String::from_utf8(self.output.stdout.clone()).unwrap();
        Truth::parse(text.lines().last().unwrap())
    }
}

/// A `leakmon attach` that is observing.
pub(crate) struct Attach {
    child: Child,
    messages: BufReader<ChildStderr>,
}

impl Attach {
    /// Starts it and waits until its probes are attached.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut child = leakmon(&["-v", "attach", "--format", "json"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let messages = BufReader::new(child.stderr.take().unwrap());
        let mut attach = Self { child, messages };
        let mut all = String::new();
        loop {
            let mut line = String::new();
            let read = attach.messages.read_line(&mut line).unwrap();
            assert_ne!(read, 0, "leakmon ended: {all}");
            if line.contains("attached") {
                return attach;
            }
            all.push_str(&line);
        }
    }

    /// Ends the observation as Ctrl-C does.
    pub(crate) fn report(self) -> Report {
        signal(self.child.id(), nix::sys::signal::Signal::SIGINT);
        self.wait()
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait(mut self) -> Report {
        let mut text = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        let mut messages = String::new();
        self.messages.read_to_string(&mut messages).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {messages}");
        Report::parse(&text)
    }
}

impl Drop for Attach {
    fn drop(&mut self) {
        // A test that fails must not leave it behind.
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Sends a signal to a process that this test started.
pub(crate) fn signal(tgid: u32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(tgid.try_into().unwrap()), signal).unwrap();
}
