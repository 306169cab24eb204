//! What is deployed, and whether it works: the static program, the Debian package, the container, a guest that boots.
//!
//! In: the workspace. Out: `target/deploy/`: the image's files, the package, a clean Debian root, the guest's disk. Each check
//! says what it saw. Files under `deploy/` that need no build are checked by `leakmon/tests/deploy`.

mod container;
mod package;
pub(crate) mod root;
pub(crate) mod tools;
mod victim;
pub(crate) mod vm;

use crate::{
    stage::Stages,
    workspace::{self, Workspace},
};
use anyhow::Result;
use std::path::PathBuf;

pub(crate) use package::files;

/// Folder of everything that this makes.
fn folder(workspace: &Workspace) -> PathBuf {
    workspace.target().join("deploy")
}

/// The container image's files.
fn image(workspace: &Workspace) -> PathBuf {
    folder(workspace).join("image")
}

/// The static program.
fn program(workspace: &Workspace) -> PathBuf {
    image(workspace).join("usr/bin/leakmon")
}

/// Builds the static program by the script that the Dockerfile runs.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    let mut script = workspace.command("deploy/docker/build.sh");
    workspace::run(script.arg(image(workspace)))
}

/// Builds the static program, the package and the image's files, and tries both.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let mut stages = Stages::new();
    stages.run("static program", || build(workspace));
    stages.run("Debian package", || package::check(workspace));
    stages.run("container", || container::check(workspace));
    stages.finish()
}
