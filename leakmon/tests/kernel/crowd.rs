//! A crowd of tasks that says how many of each type are in which state, and leakmon's numbers in the same form.

use super::{host::Build, observer::leakmon};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// Builds of the crowd: as people ship it, and what differs most from that, in allocator, tokio and linking.
pub(crate) const BUILDS: [Build; 5] = [
    Build::Release,
    Build::FatStripped,
    Build::Static,
    Build::JemallocOldTokio,
    Build::MimallocOldestTokio,
];

/// The states of a type's tasks that are compared.
const STATES: [&str; 6] = ["idle", "scheduled", "running", "unwakeable", "abortable", "held"];

/// Tasks of one type by state, in the order of [`STATES`].
pub(crate) type States = [u64; STATES.len()];

/// A running crowd. Ended when dropped.
pub(crate) struct Crowd {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    truth: Value,
}

impl Crowd {
    /// Starts one of about so many tasks, and waits until they are as they say.
    pub(crate) fn start(path: &Path, tasks: usize) -> Self {
        Self::start_with_remains(path, tasks, true)
    }

    /// As [`Self::start`]; where `disguised`, the memory of freed tasks is used again such that their state words look like
    /// those of living ones.
    pub(crate) fn start_with_remains(path: &Path, tasks: usize, disguised: bool) -> Self {
        let mut command = Command::new(path);
        command.args(["--tasks", &tasks.to_string()]);
        Self::start_as(if disguised {
            command.arg("--disguised")
        } else {
            &mut command
        })
    }

    pub(crate) fn start_as(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut crowd = Self {
            child,
            input,
            output,
            truth: Value::Null,
        };
        crowd.listen();
        crowd
    }

    pub(crate) fn tgid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it something, and waits until it is done.
    pub(crate) fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{line}").unwrap();
        input.flush().unwrap();
        self.listen();
    }

    fn listen(&mut self) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        self.truth = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
    }

    /// Its own numbers, sorted: each row is a type.
    pub(crate) fn states(&self) -> Vec<States> {
        let rows = self.truth["rows"].as_array().unwrap().iter();
        sorted(rows.map(|row| STATES.map(|state| row[state].as_u64().unwrap())))
    }

    /// The sum over the rows of these names.
    pub(crate) fn of(&self, names: &[&str]) -> States {
        let rows = self.truth["rows"].as_array().unwrap().iter();
        let mut sum = States::default();
        for row in rows.filter(|row| names.contains(&row["name"].as_str().unwrap())) {
            for (sum, state) in sum.iter_mut().zip(STATES) {
                *sum += row[state].as_u64().unwrap();
            }
        }
        sum
    }

    /// Tasks that were replaced since it was told to churn, when it was last asked.
    pub(crate) fn replaced(&self) -> u64 {
        self.truth["replaced"].as_u64().unwrap()
    }

    /// Ends it, and waits until it has ended.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Tasks that have not ended, the runtimes' workers included.
    pub(crate) fn alive(&self) -> u64 {
        self.states().iter().map(alive).sum::<u64>() + self.truth["workers"].as_u64().unwrap()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        drop(self.input.take());
        if std::thread::panicking() {
            let _gone = self.child.kill();
        }
        let _status = self.child.wait();
    }
}

/// Tasks that have not ended.
pub(crate) const fn alive([idle, scheduled, running, ..]: &States) -> u64 {
    *idle + *scheduled + *running
}

/// Rows without those that are in `others`; each of these takes one away, and must be there.
pub(crate) fn without(mut rows: Vec<States>, others: &[States]) -> Vec<States> {
    for other in others {
        let at = rows.iter().position(|row| row == other);
        let at = at.unwrap_or_else(|| panic!("{other:?} is not among {rows:?}"));
        rows.remove(at);
    }
    rows
}

/// A census of a process.
pub(crate) fn census(tgid: u32) -> Value {
    let output = leakmon(&["census", "--format", "json", "--confirm-interval", "20ms", "-p"])
        .arg(tgid.to_string())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["census"].take()
}

/// A census in the form of [`Crowd::states`]; the runtime's own tasks are left out.
pub(crate) fn states_of(census: &Value) -> Vec<States> {
    let rows = census["types"].as_array().unwrap().iter();
    let own = |row: &&Value| row["runtime_owned"] == false && row["task_type"] != Value::Null;
    let stripped = census["types"]
        .as_array()
        .unwrap()
        .iter()
        .all(|row| row["task_type"].is_null());
    let rows: Vec<&Value> = if stripped {
        without_workers(rows)
    } else {
        rows.filter(own).collect()
    };
    sorted(
        rows.into_iter()
            .map(|row| STATES.map(|state| row[state].as_u64().unwrap())),
    )
}

/// Without names the workers are known by their number: three blocking tasks that run, and nothing else of their type.
fn without_workers<'a>(rows: impl Iterator<Item = &'a Value>) -> Vec<&'a Value> {
    let is_workers = |row: &Value| row["kind"] == "blocking" && row["running"] == 3 && row["alive"] == 3;
    let rows: Vec<&Value> = rows.collect();
    let workers = rows.iter().filter(|row| is_workers(row)).count();
    assert_eq!(workers, 1, "{rows:#?}");
    rows.into_iter().filter(|row| !is_workers(row)).collect()
}

fn sorted(rows: impl Iterator<Item = States>) -> Vec<States> {
    let mut rows: Vec<States> = rows.collect();
    rows.sort_unstable();
    rows
}
