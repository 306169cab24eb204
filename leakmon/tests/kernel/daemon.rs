//! The daemon: what it serves while a victim runs and after it has gone.

use super::{
    host,
    observer::{leakmon, signal},
    truth::{Counts, Report},
    victim::Victim,
};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    time::{Duration, Instant},
};

/// What is awaited comes within a tick or two, but where probes have to be attached first: that takes a lock of the kernel's,
/// which is held for a grace period at each probe that another test takes away. Some kernels take half a second for that, and an
/// image has fifty.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) struct Daemon {
    child: Child,
    pub(super) address: String,
    messages: BufReader<ChildStderr>,
}

impl Daemon {
    pub(super) fn start(arguments: &[&str]) -> Self {
        Self::spawn(&mut leakmon(
            &[&["daemon", "--listen", "127.0.0.1:0"], arguments].concat(),
        ))
    }

    /// Starts it as the command says, which must listen, and waits until it serves.
    pub(super) fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut messages = BufReader::new(child.stderr.take().unwrap());
        let mut all = String::new();
        let address = loop {
            let mut line = String::new();
            assert_ne!(messages.read_line(&mut line).unwrap(), 0, "the daemon ended: {all}");
            if let Some((_, address)) = line.trim_end().split_once("http://") {
                break address.to_owned();
            }
            all.push_str(&line);
        };
        Self {
            child,
            address,
            messages,
        }
    }

    /// Where it serves.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn tgid(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it says.
    pub(super) fn says(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.messages.read_line(&mut line).unwrap(), 0, "the daemon ended");
        line
    }

    /// Ends it as nobody can prevent.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Body of a reply, which must be a good one.
    pub(super) fn get(&self, path: &str) -> String {
        let (status, body) = self.request(path);
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    pub(super) fn request(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: leakmon\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    pub(super) fn report(&self) -> Report {
        Report::parse(&self.get("/api/v1/report"))
    }

    /// Asks again and again until the report is as it should be.
    pub(super) fn await_report(&self, what: &str, test: impl FnMut(&Report) -> bool) -> Report {
        self.await_report_for(PATIENCE, what, test)
    }

    /// The same for so long.
    pub(super) fn await_report_for(
        &self,
        patience: Duration,
        what: &str,
        mut test: impl FnMut(&Report) -> bool,
    ) -> Report {
        let deadline = Instant::now() + patience;
        loop {
            let report = self.report();
            if test(&report) {
                return report;
            }
            assert!(Instant::now() < deadline, "{what} never came: {:#}", report.0);
        }
    }

    /// Ends it as systemd does.
    pub(super) fn stop(mut self) {
        signal(self.child.id(), nix::sys::signal::Signal::SIGTERM);
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A test that fails must not leave it behind; after `stop` there is nothing to kill.
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// The callsites of a process whose tasks are of the leaking type: their ids, and their counts together. More than one
/// where the machine is busy, since stacks are cut short until the process's unwind tables are loaded.
pub(super) fn leaking(report: &Report, tgid: u32) -> (Vec<String>, Counts) {
    let mut ids = Vec::new();
    let mut sum = Counts::default();
    for site in report.callsites().iter().filter(|site| site["pid"] == tgid) {
        if site["task_type"]
            .as_str()
            .is_some_and(|name| name.contains("::handle_conn::"))
        {
            ids.push(site["id"].as_str().unwrap().to_owned());
            sum.add(Counts::of(site));
        }
    }
    (ids, sum)
}

/// Counts of a process, where it is shown.
pub(super) fn of_victim(report: &Report, tgid: u32) -> Option<Counts> {
    let targets = report.0["targets"].as_array().unwrap();
    let target = targets.iter().find(|target| target["pid"] == tgid)?;
    Some(Counts::of(&target["task"]))
}

/// Value of the first sample of a metric whose labels contain all of these.
pub(super) fn sample(metrics: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let line = metrics
        .lines()
        .find(|line| line.starts_with(&format!("{name}{{")) && labels.iter().all(|label| line.contains(label)))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn check_with_promtool(metrics: &str) {
    let promtool = Path::new("/usr/bin/promtool");
    if !promtool.is_file() {
        return host::skip(
            "metrics_pass_promtool",
            "promtool is not installed: run `cargo xtask setup`",
        );
    }
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn the_daemon_serves_what_it_counts() {
    let Some(path) = host::victim_for("the_daemon_serves_what_it_counts", "leaky_registry") else {
        return;
    };
    let daemon = Daemon::start(&["--exe", path.to_str().unwrap()]);
    let mut victim = Victim::start(&path, &[]);
    victim.await_ready();
    daemon.await_report("the victim", |report| of_victim(report, victim.tgid()).is_some());
    victim.go_on();
    victim.await_ready();
    victim.go_on();
    let truth = victim.truth();
    let mine = format!("pid=\"{}\"", victim.tgid());
    let leak = truth
        .sites()
        .into_iter()
        .find(|site| site.name == "handle_conn")
        .unwrap()
        .counts;
    // Other tests' processes of the same executable are targets too, and names come a moment after counts.
    let report = daemon.await_report("the victim's truth with its leak", |report| {
        of_victim(report, victim.tgid()) == Some(truth.total()) && leaking(report, victim.tgid()).1 == leak
    });
    let (ids, _) = leaking(&report, victim.tgid());
    assert_eq!(daemon.request("/readyz").0, 200);
    assert_eq!(daemon.request("/livez").0, 200);
    assert_eq!(daemon.request("/nothing").0, 404);
    assert_eq!(daemon.request("/metrics?pid=x").0, 400);

    let metrics = daemon.get("/metrics");
    check_with_promtool(&metrics);
    for (name, expected) in [
        ("leakmon_tasks_live", leak.live),
        ("leakmon_tasks_spawned_total", leak.spawned),
        ("leakmon_tasks_ended_total", leak.ended),
    ] {
        let of_id = |id: &String| sample(&metrics, name, &[&mine, &format!("callsite=\"{}", &id[..8])]);
        let sum: Option<f64> = ids.iter().map(of_id).sum();
        assert_eq!(sum, Some(expected as f64), "{name} of {ids:?}: {metrics}");
    }
    assert!(daemon.get("/folded").contains("handle_conn"));

    let tgid = victim.tgid();
    drop(victim);
    daemon.await_report("the victim's end", |report| of_victim(report, tgid).is_none());
    let after = daemon.get("/metrics");
    assert_eq!(
        sample(&after, "leakmon_tasks_live", &[&mine]),
        None,
        "a process that has gone has no series"
    );
    daemon.stop();
}
