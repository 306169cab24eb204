//! The daemon as a service: its rights once it has started, what it tells systemd, reloading its configuration.

use super::{
    daemon::{Daemon, of_victim},
    host,
    observer::{leakmon, signal},
    victim::Victim,
};
use leakmon::privileges::PRIVILEGES;
use nix::{
    errno::Errno,
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// What is awaited comes within a second or two.
const PATIENCE: Duration = Duration::from_secs(30);

/// Value of a line of `/proc/PID/task/TID/status`.
fn field(status: &str, name: &str) -> String {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}"))
        .trim()
        .to_owned()
}

/// The `status` files of all threads.
fn threads(tgid: u32) -> Vec<String> {
    let folders = fs::read_dir(format!("/proc/{tgid}/task")).unwrap();
    folders
        .map(|thread| fs::read_to_string(thread.unwrap().path().join("status")).unwrap())
        .collect()
}

#[test]
fn after_its_start_the_daemon_holds_what_is_documented_and_nothing_else() {
    let Some(path) = host::victim_for("the_daemon_holds_what_is_documented", "leaky_registry") else {
        return;
    };
    let daemon = Daemon::start(&["--exe", path.to_str().unwrap()]);
    let documented: u64 = PRIVILEGES.iter().map(|privilege| 1 << privilege.bit).sum();
    let held: u64 =
        u64::from_str_radix(&field(&fs::read_to_string("/proc/self/status").unwrap(), "CapPrm"), 16).unwrap();
    let threads = threads(daemon.tgid());
    assert!(threads.len() > 2, "{threads:?}");
    for status in &threads {
        let set = |name| u64::from_str_radix(&field(status, name), 16).unwrap();
        let expected = if field(status, "Name") == "http" {
            0
        } else {
            held & documented
        };
        for name in ["CapEff", "CapPrm"] {
            assert_eq!(set(name), expected, "{name}: {status}");
        }
        assert_eq!((set("CapInh"), set("CapAmb")), (0, 0), "{status}");
        assert_eq!(set("CapBnd") & !documented, 0, "{status}");
        assert_eq!(field(status, "NoNewPrivs"), "1", "{status}");
        // SECCOMP_MODE_FILTER, `include/uapi/linux/seccomp.h`.
        assert_eq!(field(status, "Seccomp"), "2", "{status}");
    }
    let table = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md")).unwrap();
    for privilege in PRIVILEGES {
        let row = format!(
            "| `{}` | {} | {} |",
            privilege.name, privilege.purpose, privilege.without
        );
        assert!(table.contains(&row), "docs/security.md lacks {row}");
    }
    daemon.stop();
}

/// A process that the test holds and makes system calls in.
struct Traced(Pid);

impl Traced {
    fn hold(tgid: u32) -> Self {
        let pid = Pid::from_raw(tgid.cast_signed());
        ptrace::attach(pid).unwrap();
        assert!(matches!(
            waitpid(pid, None),
            Ok(WaitStatus::Stopped(_, Signal::SIGSTOP))
        ));
        Self(pid)
    }

    /// Lets the process make a system call; `text` is put below its stack and is the first argument. Gives what the kernel returns.
    fn call(&self, number: i64, text: &str) -> i64 {
        let before = ptrace::getregs(self.0).unwrap();
        let mut registers = before;
        // Below the red zone (System V ABI for x86-64, 3.2.2).
        let address = (before.rsp - 4096) & !7;
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(bytes.len() / 8 * 8 + 8, 0);
        for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let place = address as usize + index * 8;
            ptrace::write(self.0, place as ptrace::AddressType, i64::from_le_bytes(*word)).unwrap();
        }
        let code = before.rip as ptrace::AddressType;
        let instructions = ptrace::read(self.0, code).unwrap();
        // syscall; int3
        ptrace::write(self.0, code, (instructions & !0xff_ffff) | 0x00cc_050f).unwrap();
        registers.rax = number.cast_unsigned();
        // Else the kernel would restart the call that the stop interrupted.
        registers.orig_rax = u64::MAX;
        (registers.rdi, registers.rsi, registers.rdx) = (address, 0, 0);
        ptrace::setregs(self.0, registers).unwrap();
        ptrace::cont(self.0, None).unwrap();
        let stopped = waitpid(self.0, None).unwrap();
        assert!(
            matches!(stopped, WaitStatus::Stopped(_, Signal::SIGTRAP)),
            "{stopped:?}"
        );
        let result = ptrace::getregs(self.0).unwrap().rax.cast_signed();
        ptrace::write(self.0, code, instructions).unwrap();
        ptrace::setregs(self.0, before).unwrap();
        result
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _gone = ptrace::detach(self.0, None);
    }
}

#[test]
fn the_daemon_cannot_execute_anything() {
    let Some(path) = host::victim_for("the_daemon_cannot_execute_anything", "leaky_registry") else {
        return;
    };
    let daemon = Daemon::start(&["--exe", path.to_str().unwrap()]);
    let traced = Traced::hold(daemon.tgid());
    let refused = -i64::from(Errno::EPERM as i32);
    assert_eq!(traced.call(libc::SYS_execve, "/bin/true"), refused);
    assert_eq!(traced.call(libc::SYS_chroot, "/"), refused);
    // The same way of calling works where the filter allows it.
    assert_eq!(traced.call(libc::SYS_access, "/bin/true"), 0);
    drop(traced);
    assert_eq!(daemon.request("/livez").0, 200);
    daemon.stop();
}

/// systemd's end of the notification socket.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self {
            socket,
            path,
            _folder: folder,
        }
    }

    /// The next message, or `None` after this time.
    fn message(&self, within: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(within)).unwrap();
        let mut bytes = [0; 4096];
        let len = self.socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..len]).into_owned())
    }

    fn await_message(&self, word: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.message(PATIENCE).is_none_or(|message| !message.contains(word)) {
            assert!(Instant::now() < deadline, "{word} never came");
        }
    }
}

#[test]
fn systemd_is_told_ready_and_alive_by_the_event_loop_alone() {
    let Some(path) = host::victim_for("systemd_is_told_ready_and_alive", "leaky_registry") else {
        return;
    };
    let manager = Manager::new();
    let watchdog = Duration::from_secs(2);
    let daemon = Daemon::spawn(
        leakmon(&["daemon", "--listen", "127.0.0.1:0", "--exe"])
            .arg(&path)
            .env("NOTIFY_SOCKET", &manager.path)
            .env("WATCHDOG_USEC", watchdog.as_micros().to_string()),
    );
    let first = manager.message(PATIENCE).unwrap();
    assert!(
        first.contains("READY=1") && first.contains("STATUS=serving http://127.0.0.1:"),
        "{first}"
    );
    for _ in 0..3 {
        manager.await_message("WATCHDOG=1");
    }
    // The event loop alone is held: the other threads run on, and HTTP answers.
    let held = Traced::hold(daemon.tgid());
    while manager.message(Duration::from_millis(1)).is_some() {}
    assert!(daemon.get("/metrics").contains("leakmon_build_info"));
    assert_eq!(manager.message(watchdog), None);
    drop(held);
    manager.await_message("WATCHDOG=1");
    daemon.stop();
    manager.await_message("STOPPING=1");
}

#[test]
fn a_good_configuration_is_reloaded_and_a_bad_one_keeps_the_old() {
    let test = "a_good_configuration_is_reloaded";
    let (Some(first), Some(second)) = (
        host::victim_for(test, "wrappers"),
        host::victim_for(test, "leaky_registry"),
    ) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("leakmon.toml");
    let write = |exes: &[&Path], more: &str| {
        let text = format!("listen = \"127.0.0.1:0\"\nexes = {exes:?}\n{more}\n");
        fs::write(&file, text).unwrap();
    };
    write(&[&first], "");
    let manager = Manager::new();
    let mut daemon = Daemon::spawn(
        leakmon(&["daemon", "--config"])
            .arg(&file)
            .env("NOTIFY_SOCKET", &manager.path),
    );
    manager.await_message("READY=1");
    let victim = {
        let mut victim = Victim::start(&second, &[]);
        victim.await_ready();
        victim
    };
    let state = |daemon: &Daemon| sample_of(&daemon.get("/metrics"), "leakmon_config_last_reload_successful");
    assert_eq!(state(&daemon), 1.0);

    write(&[&first, &second], "interval = \"1ms\"");
    signal(daemon.tgid(), Signal::SIGHUP);
    let said = daemon.says();
    assert!(
        said.contains("not reloaded") && said.contains("`interval` must be"),
        "{said}"
    );
    manager.await_message("RELOADING=1");
    manager.await_message("READY=1");
    daemon.await_metric("leakmon_config_last_reload_successful", 0.0);
    assert!(of_victim(&daemon.report(), victim.tgid()).is_none());

    write(&[&first, &second], "interval = \"200ms\"\nstacks = false");
    signal(daemon.tgid(), Signal::SIGHUP);
    let said = daemon.says();
    assert!(said.contains("`stacks`") && said.contains("next start"), "{said}");
    assert!(daemon.says().contains("configuration reloaded"));
    daemon.await_metric("leakmon_config_last_reload_successful", 1.0);
    daemon.await_report("the victim", |report| of_victim(report, victim.tgid()).is_some());
    daemon.stop();
}

fn sample_of(metrics: &str, name: &str) -> f64 {
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {metrics}"))
        .parse()
        .unwrap()
}

impl Daemon {
    fn await_metric(&self, name: &str, value: f64) {
        let deadline = Instant::now() + PATIENCE;
        while sample_of(&self.get("/metrics"), name) != value {
            assert!(Instant::now() < deadline, "{name} never became {value}");
        }
    }
}
