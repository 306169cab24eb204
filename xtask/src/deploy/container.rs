//! The container, without a container engine: the image's files under `runc`, with the security context of the manifests.
//!
//! In: the image's files, and the capabilities that the DaemonSet names. Out: a daemon that watches a victim on the host with
//! exactly those, and counts what the victim says. `runc` is what containerd and CRI-O start containers with.

use super::{folder, image, victim::Victim};
use crate::workspace::{self, Workspace};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The manifests that name a security context.
const MANIFESTS: [&str; 2] = [
    "deploy/kubernetes/base/daemonset.yaml",
    "deploy/kubernetes/chart/templates/daemonset.yaml",
];
/// What is awaited takes a second or two.
const PATIENCE: Duration = Duration::from_secs(60);

/// Names of capabilities that all manifests add, which must be the same ones.
fn capabilities(workspace: &Workspace) -> Result<Vec<String>> {
    let mut found: Vec<Vec<String>> = Vec::new();
    for manifest in MANIFESTS {
        let text = fs::read_to_string(workspace.root.join(manifest))?;
        let line = text.lines().find_map(|line| line.trim().strip_prefix("add: ["));
        let line = line.with_context(|| format!("{manifest} adds no capabilities"))?;
        let names = line.split('"').skip(1).step_by(2).map(|name| format!("CAP_{name}"));
        found.push(names.collect());
        for needed in [
            "drop: [\"ALL\"]",
            "privileged: false",
            "readOnlyRootFilesystem: true",
            "hostPID: true",
        ] {
            if !text.contains(needed) {
                bail!("{manifest} has no `{needed}`");
            }
        }
    }
    if found.iter().any(|names| *names != found[0]) {
        bail!("the manifests name different capabilities: {found:?}");
    }
    Ok(found.swap_remove(0))
}

/// A container as the kubelet would ask for it: the host's processes and network, its own mounts, a read-only root. Paths are
/// masked as Kubernetes masks them (`pkg/securitycontext/util.go`).
fn specification(root: &Path, capabilities: &[String], arguments: &[&str]) -> Value {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    let command = [&["/usr/bin/leakmon"], arguments].concat();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": command,
            "env": ["PATH=/usr/bin"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "noNewPrivileges": false
        },
        "root": { "path": root, "readonly": true },
        "mounts": [
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/bpf", "bind", "/sys/fs/bpf", &["rbind", "rw"]),
            mount("/tmp", "tmpfs", "tmpfs", &["nosuid", "nodev", "size=16m"])
        ],
        "linux": {
            "namespaces": [{ "type": "mount" }, { "type": "ipc" }, { "type": "uts" }],
            "maskedPaths": ["/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

/// A running container, ended when dropped.
struct Container {
    name: String,
    child: Child,
    address: String,
}

impl Container {
    fn start(workspace: &Workspace, specification: &Value) -> Result<Self> {
        let bundle = folder(workspace).join("bundle");
        fs::create_dir_all(&bundle)?;
        fs::write(bundle.join("config.json"), specification.to_string())?;
        let name = format!("leakmon-check-{}", std::process::id());
        let mut runc = workspace.command("runc");
        runc.args(["run", "--bundle"])
            .arg(&bundle)
            .arg(&name)
            .stderr(Stdio::piped());
        let mut child = runc.spawn().context("can't start runc: run `cargo xtask setup`")?;
        let said = child.stderr.take().context("runc has no stderr")?;
        let mut container = Self {
            name,
            child,
            address: String::new(),
        };
        let mut all = String::new();
        let mut lines = BufReader::new(said);
        loop {
            let start = all.len();
            if lines.read_line(&mut all)? == 0 {
                bail!("the container ended: {all}");
            }
            if let Some((_, address)) = all[start..].trim_end().split_once("http://") {
                address.clone_into(&mut container.address);
                return Ok(container);
            }
        }
    }

    /// The daemon's number on the host.
    fn tgid(&self) -> Result<u64> {
        let state = workspace::output(Command::new("runc").args(["state", &self.name]))?;
        let state: Value = serde_json::from_str(&state)?;
        state["pid"].as_u64().context("runc names no process")
    }

    fn report(&self) -> Result<Value> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.write_all(b"GET /api/v1/report HTTP/1.0\r\n\r\n")?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        let (_, body) = reply.split_once("\r\n\r\n").context("no reply")?;
        Ok(serde_json::from_str(body)?)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _gone = Command::new("runc").args(["delete", "--force", &self.name]).status();
        let _status = self.child.wait();
    }
}

pub(super) fn check(workspace: &Workspace) -> Result<()> {
    let capabilities = capabilities(workspace)?;
    let mut victim = Victim::start(&workspace.target().join("release/examples/leaky_registry"))?;
    victim.await_ready()?;
    let tgid = victim.tgid();
    let arguments = ["daemon", "--listen", "127.0.0.1:0", "--pid", &tgid.to_string()];
    let container = Container::start(workspace, &specification(&image(workspace), &capabilities, &arguments))?;

    let status = fs::read_to_string(format!("/proc/{}/status", container.tgid()?))?;
    let held = |name: &str| {
        status
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default()
            .to_owned()
    };
    println!(
        "container: {} and {}, {}",
        held("CapEff"),
        held("CapBnd"),
        capabilities.join(" ")
    );

    victim.go_on()?;
    victim.await_ready()?;
    victim.go_on()?;
    let truth = victim.truth()?.total;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let report = container.report()?;
        let task = &report["targets"][0]["task"];
        let seen = (task["spawned"].as_u64(), task["ended"].as_u64(), task["live"].as_u64());
        if seen == (Some(truth.spawned), Some(truth.ended), Some(truth.live)) {
            println!("container: counted what the victim on the host says: {seen:?}");
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the container counts {seen:?}, the victim {truth:?}");
        }
        // The daemon reads the kernel's counters once a second.
        thread::sleep(Duration::from_millis(200));
    }
}
