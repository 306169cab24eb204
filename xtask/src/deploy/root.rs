//! A clean Debian root, for packages to be installed into and guests to boot from.
//!
//! In: Debian's mirror, through debootstrap. Out: `target/deploy/root`, made once, and copies of it. It is never changed.

use super::folder;
use crate::workspace::{self, Workspace};
use anyhow::{Context as _, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Debian 12: its kernel is 6.1 and its systemd 252, the oldest that are tested.
const RELEASE: &str = "bookworm";
/// Beside what Debian calls essential.
const PACKAGES: &str = "systemd,systemd-sysv,man-db,procps";

/// Makes the root where it is not there yet.
pub(crate) fn prepare(workspace: &Workspace) -> Result<PathBuf> {
    let root = folder(workspace).join("root");
    if root.is_dir() {
        return Ok(root);
    }
    println!("deploy: making a clean Debian root, which takes a minute or two");
    // Renamed when it is whole: half a root is none.
    let unfinished = folder(workspace).join("root.unfinished");
    fs::create_dir_all(folder(workspace))?;
    let _ = fs::remove_dir_all(&unfinished);
    let mut debootstrap = workspace.command("debootstrap");
    debootstrap
        .args(["--variant=minbase", &format!("--include={PACKAGES}"), RELEASE])
        .arg(&unfinished)
        .stdout(std::process::Stdio::null());
    workspace::run(&mut debootstrap)?;
    fs::rename(&unfinished, &root).with_context(|| format!("{}: can't be renamed", unfinished.display()))?;
    Ok(root)
}

/// A copy to change.
pub(super) fn copy(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let root = prepare(workspace)?;
    let copy = folder(workspace).join(name);
    remove(&copy)?;
    workspace::run(Command::new("cp").args(["-a", "--reflink=auto"]).args([&root, &copy]))?;
    Ok(copy)
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("{}: can't be removed", folder.display()))?;
    }
    Ok(())
}
