//! The victim `storm`: it spawns by command and tells its truth after each.

use super::{
    daemon::{Daemon, of_victim},
    truth::{Counts, Report, Truth},
};
use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// The function that [`warm_up`] has spawn.
const WARMING: &str = "descend";

/// Rounds of [`warm_up`]; two or three are usual.
const WARM_UPS_MAX: usize = 200;

/// A running storm. Ended when dropped.
pub(crate) struct Storm {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Storm {
    pub(crate) fn start(path: &Path) -> Self {
        let mut child = Command::new(path)
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

    /// Has a command done, and its truth when all has settled.
    pub(crate) fn command(&mut self, command: &str) -> Truth {
        Truth::parse(&self.answer(command))
    }

    /// Has it spawn until the next command.
    pub(crate) fn load(&mut self) {
        assert_eq!(self.answer("load"), "loading");
    }

    /// Has it spawn until the next command, and await each handle some time after its task has finished.
    pub(crate) fn await_late(&mut self) {
        assert_eq!(self.answer("late"), "loading");
    }

    fn answer(&mut self, command: &str) -> String {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Ends it: nothing was wrong with it.
    pub(crate) fn end(mut self) {
        drop(self.input.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Has tasks spawned until their stacks are whole, which takes until the process's unwind tables are loaded. Returns the truth as
/// of then. Only `descend` has spawned anything.
pub(crate) fn warm_up(daemon: &Daemon, storm: &mut Storm) -> Truth {
    let mut named = 0;
    for _ in 0..WARM_UPS_MAX {
        let truth = storm.command("stacks 1");
        let mut now = 0;
        daemon.await_report("a warming storm", |report| {
            now = of_spawner(report, storm.tgid(), WARMING).spawned;
            of_victim(report, storm.tgid()) == Some(truth.total()) && all_named(report, storm.tgid(), &truth)
        });
        if now > named && named > 0 {
            return truth;
        }
        named = now;
    }
    panic!("the stacks never became whole");
}

/// Whether callsites have all that the target's totals have: names come a moment later.
fn all_named(report: &Report, tgid: u32, truth: &Truth) -> bool {
    let mine = report.callsites().into_iter().filter(|site| site["pid"] == tgid);
    mine.map(|site| Counts::of(site).spawned).sum::<u64>() == truth.total().spawned
}

/// Counts of a process's tasks by the function that spawned them, as reported. Only functions that the victim's truth names, and
/// not the one that is used to warm up: its first stacks may be cut short.
pub(crate) fn by_spawner(report: &Report, tgid: u32, truth: &Truth) -> Vec<(String, Counts)> {
    let spawners = truth.sites().into_iter().map(|site| site.spawned_by);
    spawners
        .filter(is_steady)
        .map(|spawner| (spawner.clone(), of_spawner(report, tgid, &spawner)))
        .collect()
}

fn of_spawner(report: &Report, tgid: u32, spawner: &str) -> Counts {
    let mut sum = Counts::default();
    for callsite in report.callsites().into_iter().filter(|site| site["pid"] == tgid) {
        let function = callsite["location"]["function"].as_str().unwrap_or_default();
        if function == format!("storm::{spawner}") {
            sum.add(Counts::of(callsite));
        }
    }
    sum
}

/// The same as the victim knows it.
pub(crate) fn truth_by_spawner(truth: &Truth) -> Vec<(String, Counts)> {
    let sites = truth.sites().into_iter().filter(|site| is_steady(&site.spawned_by));
    sites.map(|site| (site.spawned_by, site.counts)).collect()
}

/// All but the one that is used to warm up.
fn is_steady(spawner: &String) -> bool {
    spawner != WARMING
}
