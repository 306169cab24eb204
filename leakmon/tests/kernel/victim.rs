//! A victim that is told when to go on.

use super::truth::Truth;
use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// A running victim (`--wait`): it says when it is ready and waits to be told. Ended when dropped.
pub(crate) struct Victim {
    child: Child,
    /// The victim itself, where `child` is what started it.
    tgid: u32,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Victim {
    pub(crate) fn start(path: &Path, arguments: &[&str]) -> Self {
        Self::spawn(Command::new(path).arg("--wait").args(arguments))
    }

    /// Starts a command that is a victim with `--wait`, or becomes one.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            tgid: child.id(),
            child,
            input,
            output,
        }
    }

    /// The victim is the only child of what was started. It must have said that it is ready.
    pub(crate) fn into_child(mut self) -> Self {
        let parent = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
        self.tgid = children.trim().parse().unwrap();
        self
    }

    pub(crate) fn tgid(&self) -> u32 {
        self.tgid
    }

    /// Ends it as it is.
    pub(crate) fn kill(mut self) {
        super::observer::signal(self.tgid, nix::sys::signal::Signal::SIGKILL);
        drop(self.input.take());
        let _status = self.child.wait();
    }

    /// Waits until the victim is ready for its next phase.
    pub(crate) fn await_ready(&mut self) {
        assert_eq!(self.line(), "ready");
    }

    /// Lets it go on with its next phase.
    pub(crate) fn go_on(&mut self) {
        let input = self.input.as_mut().unwrap();
        input.write_all(b"\n").unwrap();
        input.flush().unwrap();
    }

    /// Waits for its record; everything has been settled by then, and stays until the victim is dropped.
    pub(crate) fn truth(&mut self) -> Truth {
        Truth::parse(&self.line())
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It exits at the end of its input; killed where it is in the middle of something.
        drop(self.input.take());
        if std::thread::panicking() {
            let tgid = nix::unistd::Pid::from_raw(self.tgid.try_into().unwrap());
            let _gone = nix::sys::signal::kill(tgid, nix::sys::signal::Signal::SIGKILL);
        }
        let _status = self.child.wait();
    }
}
