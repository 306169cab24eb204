//! Processes with a root, mounts and numbers of their own, and numbers that are used again.

use super::{
    daemon::{Daemon, of_victim},
    host,
    truth::Report,
    victim::Victim,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A folder with a file system of its own, unmounted with all that is mounted below it.
struct Mounted {
    folder: tempfile::TempDir,
    mounts: Vec<PathBuf>,
}

impl Mounted {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut mounted = Self {
            folder,
            mounts: Vec::new(),
        };
        let path = mounted.path().to_owned();
        mounted.mount("tmpfs", &path, "");
        mounted
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn mount(&mut self, kind: &str, at: &Path, options: &str) {
        fs::create_dir_all(at).unwrap();
        mount(Some(kind), at, Some(kind), MsFlags::empty(), Some(options))
            .unwrap_or_else(|error| panic!("{kind} at {}: {error}", at.display()));
        self.mounts.push(at.to_owned());
    }

    /// An overlay of its own over a lower folder, as a container engine makes one.
    fn overlay(&mut self, lower: &Path, name: &str) -> PathBuf {
        let folder = |part: &str| {
            let path = self.path().join(format!("{name}-{part}"));
            fs::create_dir(&path).unwrap();
            path
        };
        let (upper, work) = (folder("upper"), folder("work"));
        let at = self.path().join(name);
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        self.mount("overlay", &at, &options);
        at
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for mount in self.mounts.iter().rev() {
            let _busy = umount2(mount, MntFlags::MNT_DETACH);
        }
    }
}

fn target(report: &Report, tgid: u32) -> Option<&Value> {
    report.0["targets"]
        .as_array()
        .unwrap()
        .iter()
        .find(|target| target["pid"] == tgid)
}

/// Runs a victim once, so that its image is watched from then on.
fn introduce(daemon: &Daemon, path: &Path) {
    let victim = Victim::start(path, &[]);
    let tgid = victim.tgid();
    daemon.await_report("the first process of an image", |report| {
        of_victim(report, tgid).is_some()
    });
    victim.kill();
    daemon.await_report("its end", |report| of_victim(report, tgid).is_none());
}

fn work(victim: &mut Victim) {
    victim.await_ready();
    victim.go_on();
    victim.await_ready();
    victim.go_on();
}

#[test]
fn two_mounts_of_one_image_count_each_process_once() {
    let test = "two_mounts_of_one_image_count_each_process_once";
    let Some(path) = host::victim_for(test, "leaky_registry") else {
        return;
    };
    let mut mounted = Mounted::new();
    let lower = mounted.path().join("lower");
    fs::create_dir(&lower).unwrap();
    fs::copy(&path, lower.join("app")).unwrap();
    let mounts = ["one", "two"].map(|name| mounted.overlay(&lower, name).join("app"));
    let daemon = Daemon::start(&["--include", &format!("exe={}/*", mounted.path().display())]);
    for path in &mounts {
        introduce(&daemon, path);
    }
    // A copy has the same build id and is another file all the same.
    let copy = mounted.path().join("copy");
    fs::copy(&path, &copy).unwrap();
    introduce(&daemon, &copy);

    let paths = [&mounts[0], &mounts[1], &copy];
    let mut victims = paths.map(|path| Victim::start(path, &[]));
    victims.iter_mut().for_each(work);
    for victim in &mut victims {
        let total = victim.truth().total();
        let report = daemon.await_report("each process counted once", |report| {
            of_victim(report, victim.tgid()) == Some(total)
        });
        assert_eq!(report.loss("replaced"), 0, "a second probe would see each birth twice");
    }
    let metrics = daemon.get("/metrics");
    assert!(metrics.contains("\nleakmon_images 2\n"), "{metrics}");
    daemon.stop();
}

/// Copies a program and the libraries that it is linked with below a root.
fn install(root: &Path, program: &Path, name: &str) {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let libraries = text.split_ascii_whitespace().filter(|word| word.starts_with('/'));
    for library in libraries {
        let to = root.join(&library[1..]);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(library, to).unwrap();
    }
    let to = root.join(name);
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(program, to).unwrap();
}

/// Starts a program below a root of its own, as the first process of its own PID and mount namespace.
fn contained(root: &Path, name: &str) -> Victim {
    let mut command = Command::new("unshare");
    // The victim looks up its own mappings.
    fs::create_dir_all(root.join("proc")).unwrap();
    command.args(["--mount", "--mount-proc", "--pid", "--fork", "--kill-child"]);
    command
        .arg(format!("--root={}", root.display()))
        .arg("--")
        .arg(format!("/{name}"));
    Victim::spawn(command.arg("--wait"))
}

#[test]
fn processes_in_their_own_namespaces_are_found_attached_and_named() {
    let test = "processes_in_their_own_namespaces_are_found_attached_and_named";
    let Some(program) = host::victim_for(test, "leaky_registry") else {
        return;
    };
    let mounted = Mounted::new();
    let root = mounted.path().join("root");
    let names = [
        format!("leakmon-test-{}/gone", std::process::id()),
        format!("leakmon-test-{}/with spaces and\na newline", std::process::id()),
    ];
    for name in &names {
        install(&root, &program, name);
    }
    let pattern = format!("command=/leakmon-test-{}/*", std::process::id());
    let mut victims = [0, 1].map(|index| contained(&root, &names[index]));
    for victim in &mut victims {
        victim.await_ready();
    }
    let mut victims = victims.map(Victim::into_child);
    fs::remove_file(root.join(&names[0])).unwrap();
    let daemon = Daemon::start(&["--include", &pattern]);
    daemon.await_report("both processes", |report| {
        victims.iter().all(|victim| target(report, victim.tgid()).is_some())
    });
    // The first phase is done after the attach, but for the runtime's own workers.
    for (victim, name) in victims.iter_mut().zip(&names) {
        victim.go_on();
        victim.await_ready();
        victim.go_on();
        let expected = victim.truth().without_workers();
        let report = daemon.await_report("the truth and its names", |report| {
            of_victim(report, victim.tgid()) == Some(expected) && {
                let callsites = report.callsites();
                let mine = callsites.iter().filter(|site| site["pid"] == victim.tgid());
                let mut types = mine.map(|site| site["task_type"].as_str().unwrap_or_default());
                types.any(|name| name.contains("::handle_conn::"))
            }
        });
        let target = target(&report, victim.tgid()).unwrap();
        let exe = target["exe"].as_str().unwrap();
        assert!(exe.ends_with(name.as_str()), "{exe:?}");
        assert_eq!(target["status"], "attached");
    }
    daemon.stop();
}

/// Has the next process get this number. Others may be faster.
fn next_number(tgid: u32) {
    fs::write("/proc/sys/kernel/ns_last_pid", (tgid - 1).to_string()).unwrap();
}

#[test]
fn a_number_that_is_used_again_and_an_exec_are_other_targets() {
    let test = "a_number_that_is_used_again_and_an_exec_are_other_targets";
    let (Some(first), Some(second)) = (
        host::victim_for(test, "leaky_registry"),
        host::victim_for(test, "every_spawn"),
    ) else {
        return;
    };
    let Some(third) = host::victim_for(test, "many_lives") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let copy = |path: PathBuf, name: &str| {
        let to = folder.path().join(name);
        fs::copy(path, &to).unwrap();
        to
    };
    let (first, second, third) = (copy(first, "first"), copy(second, "second"), copy(third, "third"));
    let daemon = Daemon::start(&["--include", &format!("exe={}/*", folder.path().display())]);
    for path in [&first, &second, &third] {
        introduce(&daemon, path);
    }

    // The number of a process that has just ended, at once given to one of another program.
    let mut again = (0..200).find_map(|_| {
        let mut before = Victim::start(&first, &[]);
        work(&mut before);
        before.truth();
        let tgid = before.tgid();
        before.kill();
        next_number(tgid);
        let after = Victim::start(&second, &[]);
        (after.tgid() == tgid).then_some(after)
    });
    let again = again.as_mut().expect("the number comes again within 200 tries");
    work(again);
    await_only(&daemon, again, &second);

    // One process that runs three programs, one after the other.
    let mut command = Command::new(&third);
    let mut victim = Victim::spawn(command.arg("--wait").env("VICTIM_NEXT", &first));
    work(&mut victim);
    work(&mut victim);
    await_only(&daemon, &mut victim, &first);
    daemon.stop();
}

/// The process is one target, of this program, with this program's tasks alone.
fn await_only(daemon: &Daemon, victim: &mut Victim, program: &Path) {
    let total = victim.truth().total();
    let tgid = victim.tgid();
    let report = daemon.await_report("the truth of the program that runs now", |report| {
        of_victim(report, tgid) == Some(total)
    });
    let targets = report.0["targets"].as_array().unwrap();
    let mine: Vec<&Value> = targets.iter().filter(|target| target["pid"] == tgid).collect();
    assert_eq!(mine.len(), 1, "{mine:#?}");
    assert_eq!(mine[0]["exe"].as_str(), program.to_str());
    let name = format!("{}::", program_name(program));
    let callsites = report.callsites();
    let mine = callsites.iter().filter(|site| site["pid"] == tgid);
    let others = mine.filter(|site| {
        let name_of_type = site["task_type"].as_str().unwrap_or_default();
        !name_of_type.contains(&name) && !name_of_type.contains("tokio::") && site["kind"] != "thread"
    });
    assert_eq!(others.count(), 0, "{:#?}", report.locations());
}

/// The crate of a copied victim.
fn program_name(program: &Path) -> &'static str {
    match program.file_name().unwrap().to_str().unwrap() {
        "first" => "leaky_registry",
        _ => "every_spawn",
    }
}
