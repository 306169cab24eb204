//! Builds leakmon and the victims, runs victims, and reads what they know of themselves.
//!
//! In: names of the examples in `leakmon/examples/`. Out: paths of programs, and the truth that a victim printed. It
//! compares nothing.

use crate::{
    crowds,
    workspace::{self, Workspace},
};
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

/// Seconds that a run may take; the longest takes five.
const TIME_LIMIT: &str = "120";

/// How a victim is built. leakmon itself has one build only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// `cargo build --release`, nothing else: what people ship.
    Release,
    /// That, with `-C force-frame-pointers=yes`.
    FramePointers,
    /// Fat LTO, one codegen unit.
    Fat,
    /// That, with `opt-level = "z"`; panics unwind, since some of the victims' tasks panic.
    Z,
    /// `cargo build`.
    Dev,
}

impl Build {
    /// Those that the kernel tests compare with [`Build::Release`].
    pub(crate) const OTHERS: [Self; 4] = [Self::FramePointers, Self::Fat, Self::Z, Self::Dev];

    const fn profile(self) -> &'static str {
        match self {
            Self::Release | Self::FramePointers => "release",
            Self::Fat => "fat",
            Self::Z => "z",
            Self::Dev => "dev",
        }
    }

    fn target(self, workspace: &Workspace) -> PathBuf {
        match self {
            Self::Release => workspace.target(),
            Self::FramePointers => workspace.target().join("frame-pointers"),
            Self::Fat | Self::Z | Self::Dev => workspace.target().join("victims/target"),
        }
    }

    /// Where this build's example `name` is.
    pub(crate) fn example(self, workspace: &Workspace, name: &str) -> PathBuf {
        let folder = if self == Self::Dev { "debug" } else { self.profile() };
        self.target(workspace).join(folder).join("examples").join(name)
    }
}

/// Victims whose stacks are compared in every build.
const EVERYWHERE: [&str; 4] = ["crowd", "deep_stacks", "every_spawn", "leaky_registry"];

/// The victim that times itself; the benchmarks compare its builds.
pub(crate) const SPAWN_HEAVY: &str = "spawn_heavy";

/// What a package needs that has those victims only.
const MANIFEST: &str = r#"
# Written by `cargo xtask`; see xtask/src/victims.rs.
[package]
name = "victims"
version = "0.0.0"
edition = "2024"
publish = false

[dependencies]
nix = { version = "0.31", features = ["time"] }
serde_json = "1"
tokio = { version = "1", features = ["rt-multi-thread", "net", "io-util", "sync", "macros", "time"] }

[profile.fat]
inherits = "release"
lto = "fat"
codegen-units = 1

[profile.z]
inherits = "fat"
opt-level = "z"

[workspace]
"#;

/// Builds one example, or with `None` all of them.
pub(crate) fn build(workspace: &Workspace, build: Build, name: Option<&str>) -> Result<()> {
    let mut command = workspace.cargo();
    command.args(["build", "--profile", build.profile()]);
    match build {
        Build::Release => _ = command.args(["--locked", "--package", "leakmon"]),
        _ => _ = command.arg("--manifest-path").arg(write_package(workspace)?),
    }
    match (name, build) {
        (Some(name), _) => _ = command.args(["--example", name]),
        (None, Build::Release) => _ = command.arg("--examples"),
        (None, _) => EVERYWHERE.iter().for_each(|name| _ = command.args(["--example", name])),
    }
    command.arg("--target-dir").arg(build.target(workspace));
    if build == Build::FramePointers {
        command
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", "-C force-frame-pointers=yes");
    }
    workspace::run(&mut command)
}

/// Builds every victim in every way, and makes copies without symbols of those that people strip.
pub(crate) fn build_all(workspace: &Workspace) -> Result<()> {
    build(workspace, Build::Release, None)?;
    for other in Build::OTHERS {
        build(workspace, other, None)?;
    }
    for stripped in [Build::Release, Build::Fat] {
        let folder = workspace.target().join("victims/stripped").join(stripped.profile());
        fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        for name in EVERYWHERE {
            let mut strip = workspace.command("strip");
            strip.arg("-o").arg(folder.join(name));
            workspace::run(strip.arg(stripped.example(workspace, name)))?;
        }
    }
    let mut crowds = crowds::TESTED.iter().chain([&crowds::OLDER]);
    crowds.try_for_each(|crowd| crowd.build(workspace))
}

/// Writes a package that has the victims alone: with leakmon's dependencies each profile would take minutes, so it takes
/// seconds. The workspace's lock file gives the versions.
fn write_package(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.target().join("victims");
    let manifest = folder.join("Cargo.toml");
    let mut text = MANIFEST.to_owned();
    for name in EVERYWHERE.into_iter().chain([SPAWN_HEAVY]) {
        let path = workspace.root.join("leakmon/examples").join(name).with_extension("rs");
        text.push_str(&format!(
            "\n[[example]]\nname = {name:?}\npath = {:?}\n",
            path.display().to_string()
        ));
    }
    let write = || {
        fs::create_dir_all(folder.join("src"))?;
        fs::write(folder.join("src/lib.rs"), "")?;
        fs::write(&manifest, text)?;
        fs::copy(workspace.root.join("Cargo.lock"), folder.join("Cargo.lock"))
    };
    write().with_context(|| format!("can't write the victims' package in {}", folder.display()))?;
    Ok(manifest)
}

/// Builds leakmon as it is shipped, and says where it is.
pub(crate) fn build_leakmon(workspace: &Workspace) -> Result<PathBuf> {
    let mut command = workspace.cargo();
    command.args([
        "build",
        "--release",
        "--locked",
        "--package",
        "leakmon",
        "--bin",
        "leakmon",
    ]);
    workspace::run(command.arg("--target-dir").arg(workspace.target()))?;
    Ok(workspace.target().join("release/leakmon"))
}

/// A victim's own numbers.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Truth {
    /// One row a spawned function.
    pub(crate) truth: Vec<Row>,
    /// All rows together.
    pub(crate) total: Counts,
    /// Tasks of the runtime's own, which are not in the rows; they never end.
    pub(crate) runtime_tasks: u64,
    /// What a task cost, where the victim measured that.
    pub(crate) ns_per_task: Option<f64>,
}

/// One spawned function.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Row {
    /// Name of the function.
    pub(crate) site: String,
    /// Its tasks.
    #[serde(flatten)]
    pub(crate) counts: Counts,
}

/// Numbers of tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Counts {
    /// Born.
    pub(crate) spawned: u64,
    /// Of those, ended.
    pub(crate) ended: u64,
    /// Of those, alive at exit.
    pub(crate) live: u64,
}

impl Truth {
    /// Reads the last line of a victim's output that is not empty: who runs the victim may add some that are.
    pub(crate) fn parse(output: &str) -> Result<Self> {
        let line = output.lines().rfind(|line| !line.is_empty()).unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("the victim's last line is not its truth: {line:?}"))
    }

    /// The numbers of one function.
    pub(crate) fn site(&self, name: &str) -> Result<Counts> {
        match self.truth.iter().find(|row| row.site == name) {
            Some(row) => Ok(row.counts),
            None => bail!("the victim's truth has no site {name}"),
        }
    }
}

/// Runs a command whose standard output is a victim's, and reads the truth. What takes longer than [`TIME_LIMIT`] is ended.
pub(crate) fn run(command: &Command) -> Result<Truth> {
    // coreutils' timeout signals the whole process group, and continues what is stopped.
    let mut limited = Command::new("timeout");
    limited
        .args(["--kill-after=10", TIME_LIMIT])
        .arg(command.get_program())
        .args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        limited.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    Truth::parse(&workspace::output(limited.stdin(Stdio::null()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_keeps_its_environment() {
        let truth = |number: &str| {
            let script = "printf '{\"runtime_tasks\":%s,\"total\":{\"spawned\":0,\"ended\":0,\"live\":0},\"truth\":[]}' \"${NUMBER:-7}\"";
            let mut command = Command::new("sh");
            command.args(["-c", script]).env("NUMBER", number);
            run(&command).unwrap().runtime_tasks
        };
        assert_eq!(truth("5"), 5);
        assert_eq!(truth(""), 7);
    }

    #[test]
    fn the_last_line_is_the_truth() {
        let truth = Truth::parse(
            "ready\n{\"runtime_tasks\":2,\"total\":{\"spawned\":9,\"ended\":4,\"live\":5,\"phase2\":{}},\
             \"truth\":[{\"site\":\"a\",\"kind\":\"task\",\"spawned\":9,\"ended\":4,\"live\":5}]}\n",
        );
        let truth = truth.unwrap();
        let counts = Counts {
            spawned: 9,
            ended: 4,
            live: 5,
        };
        assert_eq!(truth.site("a").unwrap(), counts);
        assert_eq!(truth.total, counts);
        assert_eq!(truth.runtime_tasks, 2);
        assert!(truth.site("b").is_err());
        assert!(Truth::parse("").unwrap_err().to_string().contains("not its truth"));
    }
}
