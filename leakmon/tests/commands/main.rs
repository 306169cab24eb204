//! The command line against bad input: a clear sentence, the right exit code, and no hang.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use assert_cmd::Command;
use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

/// Far beyond what a refusal takes, so that only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Exit code where a host or target can't be probed.
const UNPROBEABLE: i32 = 4;
const USAGE: i32 = 2;

fn leakmon() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leakmon"));
    command.timeout(PATIENCE);
    command
}

/// Runs it and checks that it refuses with this code and one sentence on stderr that has all of `words`.
fn refuses(arguments: &[&str], code: i32, words: &[&str]) {
    let output = leakmon().args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(
        output.stdout.is_empty(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    for word in words {
        assert!(said.contains(word), "{arguments:?}: no {word:?} in {said:?}");
    }
    if code == UNPROBEABLE {
        assert_eq!(said.trim_end().lines().count(), 1, "{arguments:?}: {said}");
        assert!(said.starts_with("leakmon: "), "{arguments:?}: {said}");
    }
}

/// A small ELF file, as bytes to spoil.
fn small_image() -> Vec<u8> {
    fs::read("/bin/true").unwrap()
}

/// leakmon itself, which runs tokio.
fn own_image() -> Vec<u8> {
    fs::read(env!("CARGO_BIN_EXE_leakmon")).unwrap()
}

fn written(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn files_that_are_no_image_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let image = small_image();
    let mut other = image.clone();
    // `e_machine` of the ELF header: EM_AARCH64.
    other[18] = 183;
    let mut narrow = image.clone();
    // `e_ident[EI_CLASS]`: ELFCLASS32.
    narrow[4] = 1;
    let cases: [(PathBuf, &[&str]); 8] = [
        (folder.path().join("nothing"), &["nothing"]),
        (folder.path().to_owned(), &["regular file"]),
        (fifo, &["fifo", "regular file"]),
        (written(folder.path(), "text", b"echo hello\n"), &["text", "ELF"]),
        (written(folder.path(), "empty", b""), &["empty", "ELF"]),
        (written(folder.path(), "header", &image[..40]), &["header"]),
        (written(folder.path(), "arm", &other), &["arm", "aarch64"]),
        (written(folder.path(), "narrow", &narrow), &["narrow", "32"]),
    ];
    for (path, words) in cases {
        let path = path.to_str().unwrap();
        refuses(&["probes", path], UNPROBEABLE, words);
        refuses(&["run", "--", path], UNPROBEABLE, words);
        refuses(&["attach", "--duration", "1s", "--exe", path], UNPROBEABLE, words);
    }
}

#[test]
fn a_truncated_image_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let image = small_image();
    for part in [2, 3, 10] {
        let path = written(folder.path(), "truncated", &image[..image.len() / part]);
        refuses(&["probes", path.to_str().unwrap()], UNPROBEABLE, &["truncated"]);
    }
}

#[test]
fn a_program_without_a_runtime_is_refused() {
    refuses(&["probes", "/bin/true"], UNPROBEABLE, &["/bin/true", "tokio"]);
}

#[test]
fn a_command_that_cannot_be_executed_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path(), "plain", &small_image());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    refuses(
        &["run", "--", path.to_str().unwrap()],
        UNPROBEABLE,
        &["plain", "execut"],
    );
    refuses(
        &["run", "--", "no-such-command-here"],
        UNPROBEABLE,
        &["no-such-command-here", "PATH"],
    );
}

#[test]
fn a_process_that_has_just_died_is_refused() {
    let mut child = std::process::Command::new("true").stdin(Stdio::null()).spawn().unwrap();
    let dead = child.id().to_string();
    child.wait().unwrap();
    refuses(&["attach", "-p", &dead, "--duration", "1s"], UNPROBEABLE, &[&dead]);
}

#[test]
fn without_root_the_missing_capability_is_named() {
    if !nix::unistd::geteuid().is_root() {
        return refuses(&["attach", "-p", "1"], UNPROBEABLE, &["CAP_SYS_ADMIN", "root"]);
    }
    // Nobody: the number that Debian and the kernel use. The program is copied to where that user may execute it.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = written(folder.path(), "leakmon", &own_image());
    let output = std::process::Command::new(&program)
        .args(["attach", "-p", "1", "--duration", "1s"])
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(UNPROBEABLE), "{said}");
    assert!(said.contains("CAP_SYS_ADMIN") && said.contains("root"), "{said}");
    // Looking at a binary needs no rights at all.
    let probes = std::process::Command::new(&program)
        .arg("probes")
        .arg(&program)
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert!(probes.status.success(), "{}", String::from_utf8_lossy(&probes.stderr));
}

#[test]
fn a_report_that_cannot_be_written_is_refused_before_the_command_starts() {
    let folder = tempfile::tempdir().unwrap();
    let (report, proof) = (folder.path().join("nowhere/report"), folder.path().join("proof"));
    let arguments = [
        "run",
        "-o",
        report.to_str().unwrap(),
        "--",
        "touch",
        proof.to_str().unwrap(),
    ];
    refuses(&arguments, 1, &["nowhere/report", "can't be written"]);
    assert!(!proof.exists());
}

#[test]
fn usage_errors_are_not_probing_errors() {
    refuses(&["attach"], USAGE, &["--pid"]);
    refuses(&["run"], USAGE, &["CMD"]);
    refuses(
        &["daemon", "--config", "/nonexistent.toml"],
        USAGE,
        &["/nonexistent.toml", "--config"],
    );
    refuses(
        &["attach", "-p", "1", "--hide", "*"],
        USAGE,
        &["pattern", "name a crate"],
    );
    let folder = tempfile::tempdir().unwrap();
    let config = written(folder.path(), "bad.toml", b"pids = [1]\ncolour = 1\n");
    refuses(
        &["daemon", "--config", config.to_str().unwrap()],
        USAGE,
        &["bad.toml", "colour"],
    );
}

#[test]
fn results_go_to_stdout_and_a_closed_reader_is_no_failure() {
    let help = leakmon().arg("--help").output().unwrap();
    assert!(help.status.success() && help.stderr.is_empty());
    let script = leakmon().args(["completions", "bash"]).output().unwrap();
    assert!(script.status.success() && String::from_utf8_lossy(&script.stdout).contains("_leakmon"));
    // The reader goes before anything is written.
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_leakmon"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}
