//! The Debian package: made by cargo-deb, and tried in a clean root.
//!
//! In: the static program, its own manual pages and completions, the unit. Out: `target/deploy/leakmon.deb`. The check installs
//! it, runs what it brings, and removes it again; nothing may be left but configuration, and after purging nothing at all.

use super::{folder, program, root};
use crate::workspace::{self, Workspace};
use anyhow::{Context as _, Result, bail};
use std::{collections::BTreeSet, fs, path::PathBuf};

/// The target whose program goes into the package.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Runs in a mount name space of its own; `$1` is the root. What is listed is what dpkg and man-db write about packages.
const TRIAL: &str = r#"
set -eu
root=$1
list() { find "$root" -xdev \( -path "$root/proc" -o -path "$root/sys" -o -path "$root/var/lib/dpkg" -o -path "$root/var/cache" \
    -o -path "$root/var/log" -o -path "$root/run" -o -name leakmon.deb \) -prune -o -print | sort; }
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
list >"$2/before"
chroot "$root" dpkg --install /leakmon.deb
list >"$2/installed"
chroot "$root" leakmon doctor
chroot "$root" leakmon --version
MANPAGER=cat chroot "$root" man leakmon | head -4
chroot "$root" man -w leakmon-daemon leakmon-doctor
chroot "$root" bash -c 'source /usr/share/bash-completion/completions/leakmon && complete -p leakmon'
chroot "$root" systemd-analyze verify /usr/lib/systemd/system/leakmon.service
chroot "$root" systemctl enable leakmon
chroot "$root" dpkg --remove leakmon
list >"$2/removed"
chroot "$root" dpkg --purge leakmon
list >"$2/purged"
"#;

/// What the package must bring.
const BROUGHT: [&str; 9] = [
    "/usr/bin/leakmon",
    "/lib/systemd/system/leakmon.service",
    "/etc/leakmon/leakmon.toml",
    "/usr/share/man/man1/leakmon.1.gz",
    "/usr/share/man/man1/leakmon-daemon.1.gz",
    "/usr/share/bash-completion/completions/leakmon",
    "/usr/share/zsh/vendor-completions/_leakmon",
    "/usr/share/fish/vendor_completions.d/leakmon.fish",
    "/usr/share/doc/leakmon/copyright",
];

/// Has the program write its manual pages, completions and example configuration, and takes over the latter where it has changed.
pub(crate) fn files(workspace: &Workspace) -> Result<()> {
    let made = folder(workspace).join("files");
    let mut cargo = workspace.cargo();
    cargo.args([
        "run",
        "--quiet",
        "--locked",
        "--package",
        "leakmon",
        "--",
        "package-files",
    ]);
    workspace::run(cargo.arg(&made))?;
    let example = workspace.root.join("deploy/systemd/leakmon.toml");
    fs::copy(made.join("leakmon.toml"), &example)
        .with_context(|| format!("{}: can't be written", example.display()))?;
    Ok(())
}

/// Makes the package of the static program.
pub(super) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let made = folder(workspace).join("files");
    workspace::run(workspace.command(program(workspace)).arg("package-files").arg(&made))?;
    let package = folder(workspace).join("leakmon.deb");
    let mut cargo = workspace.cargo();
    cargo.args([
        "deb",
        "--quiet",
        "--locked",
        "--package",
        "leakmon",
        "--no-build",
        "--target",
        TARGET,
        "--output",
    ]);
    workspace::run(cargo.arg(&package))?;
    Ok(package)
}

pub(super) fn check(workspace: &Workspace) -> Result<()> {
    let package = build(workspace)?;
    let root = root::copy(workspace, "package-root")?;
    fs::copy(&package, root.join("leakmon.deb"))?;
    let lists = folder(workspace).join("package-lists");
    fs::create_dir_all(&lists)?;
    let mut trial = workspace.command("unshare");
    trial.args(["--mount", "--propagation", "private", "sh", "-c", TRIAL, "trial"]);
    workspace::run(trial.arg(&root).arg(&lists))?;

    let list = |name: &str| -> Result<BTreeSet<String>> {
        let text = fs::read_to_string(lists.join(name)).with_context(|| format!("no list {name}"))?;
        let root = root.to_string_lossy().into_owned();
        Ok(text.lines().map(|line| line.replacen(&root, "", 1)).collect())
    };
    let (before, installed, removed) = (list("before")?, list("installed")?, list("removed")?);
    // /lib is a link to /usr/lib.
    for file in BROUGHT {
        if !installed.contains(file) && !installed.contains(&format!("/usr{file}")) {
            bail!("the package does not bring {file}");
        }
    }
    let left: Vec<_> = removed
        .difference(&before)
        .filter(|path| !path.starts_with("/etc/leakmon"))
        .collect();
    if !left.is_empty() {
        bail!("removing the package leaves {left:?}");
    }
    if !removed.contains("/etc/leakmon/leakmon.toml") {
        bail!("removing the package took the configuration away");
    }
    let left: Vec<_> = list("purged")?.difference(&before).cloned().collect();
    if !left.is_empty() {
        bail!("purging the package leaves {left:?}");
    }
    fs::remove_dir_all(&root).with_context(|| format!("{}: can't be removed", root.display()))?;
    println!(
        "package: {} files, none left after removal but /etc/leakmon, none after purging",
        installed.len() - before.len()
    );
    Ok(())
}
