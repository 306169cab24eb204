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
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Victim {
    pub(crate) fn start(path: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(path)
            .arg("--wait")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, input, output }
    }

    pub(crate) fn tgid(&self) -> u32 {
        self.child.id()
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
            let _gone = self.child.kill();
        }
        let _status = self.child.wait();
    }
}
