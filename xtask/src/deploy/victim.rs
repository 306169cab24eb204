//! A victim that waits to be watched, and its own record.

use crate::victims::Truth;
use anyhow::{Context as _, Result, bail};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// A running victim (`--wait`), ended when dropped.
pub(super) struct Victim {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Victim {
    pub(super) fn start(path: &Path) -> Result<Self> {
        let mut command = Command::new(path);
        command.arg("--wait").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("{}: can't be started", path.display()))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the victim has no pipes");
        };
        Ok(Self {
            child,
            input,
            output: BufReader::new(output),
        })
    }

    pub(super) fn tgid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn await_ready(&mut self) -> Result<()> {
        match self.line()?.as_str() {
            "ready" => Ok(()),
            line => bail!("the victim said {line:?} instead of `ready`"),
        }
    }

    /// Lets it go on with its next phase.
    pub(super) fn go_on(&mut self) -> Result<()> {
        self.input.write_all(b"\n")?;
        Ok(self.input.flush()?)
    }

    /// Its record at the end of the second phase.
    pub(super) fn truth(&mut self) -> Result<Truth> {
        Ok(serde_json::from_str(&self.line()?)?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}
