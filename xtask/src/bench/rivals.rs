//! What a user would pick instead of leakmon, on the same victim.
//!
//! In: the victim's source, and its release build. Out: the victim with console-subscriber compiled in, and a command that runs it
//! under a bpftrace script. It measures nothing.

use crate::{
    victims::SPAWN_HEAVY,
    workspace::{self, Workspace},
};
use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSymbol as _};
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The victim's package with console-subscriber. Its own workspace: `tokio_unstable` is for nobody else.
const MANIFEST: &str = r#"# Written by `cargo xtask bench`; see xtask/src/bench/rivals.rs.
[package]
name = "console-victim"
version = "0.0.0"
edition = "2024"
publish = false

[dependencies]
console-subscriber = "=0.5.0"
nix = { version = "0.31", features = ["time"] }
serde_json = "1"
tokio = { version = "1", features = ["rt-multi-thread", "net", "io-util", "sync", "macros", "time", "tracing"] }

[workspace]
"#;

/// Builds the victim as console-subscriber's documentation asks, and says where it is.
pub(super) fn build_console(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.target().join("bench/console");
    let source = workspace
        .root
        .join("leakmon/examples")
        .join(SPAWN_HEAVY)
        .with_extension("rs");
    let main = format!(
        "#[path = {:?}]\nmod victim_program;\n\nfn main() -> std::io::Result<()> {{\n    console_subscriber::init();\n    \
         victim_program::main()\n}}\n",
        source.display().to_string()
    );
    let write = || {
        fs::create_dir_all(folder.join("src"))?;
        fs::write(folder.join("Cargo.toml"), MANIFEST)?;
        fs::write(folder.join("src/main.rs"), main)
    };
    write().with_context(|| format!("can't write the package in {}", folder.display()))?;
    let mut command = workspace.cargo();
    command
        .args(["build", "--release", "--quiet", "--manifest-path"])
        .arg(folder.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(folder.join("target"))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "--cfg tokio_unstable");
    workspace::run(&mut command)?;
    Ok(folder.join("target/release/console-victim"))
}

/// Runs that victim with a retention of one second instead of an hour (console-subscriber 0.5.0, `Builder::with_default_env`).
pub(super) fn forgetful(program: PathBuf) -> Runner {
    Box::new(move |arguments| {
        let mut command = Command::new(&program);
        command.args(arguments).env("TOKIO_CONSOLE_RETENTION", "1s");
        command
    })
}

/// A way to run a program.
pub(super) type Runner = Box<dyn Fn(&[&str]) -> Command>;

/// Runs the victim under a script that keeps each live task's stack and birth, and counts births and ends by stack, as a user would
/// write it: probes on the entries of the functions that bind and complete a task. The reason where that can't be done here.
pub(super) fn bpftrace(workspace: &Workspace, victim: &Path) -> Result<std::result::Result<Runner, String>> {
    let Some(program) = workspace::find_program("bpftrace") else {
        return Ok(Err("it is not installed".to_owned()));
    };
    let script = workspace.target().join("bench/tasks.bt");
    let text = script_for(victim)?;
    fs::write(&script, text).with_context(|| format!("can't write {}", script.display()))?;
    let folder = workspace.target().join("bench");
    let victim = victim.to_owned();
    Ok(Ok(Box::new(move |arguments| {
        let mut command = Command::new("sh");
        // It complains about each probe that it can't detach where tracefs is not mounted.
        command
            .args(["-c", "exec \"$@\" 2> \"$0\""])
            .arg(folder.join("tasks.errors"));
        let watched = format!("{} {}", victim.display(), arguments.join(" "));
        command.arg(&program).arg("-o").arg(folder.join("tasks.out"));
        command.args(["-c", &watched]).arg(&script);
        command
    })))
}

/// Whether a mangled name has these parts and is no closure's, whose first argument is another.
fn is_function(name: &str, parts: &[&str]) -> bool {
    parts.iter().all(|part| name.contains(part)) && !name.contains("closure")
}

fn script_for(victim: &Path) -> Result<String> {
    let bytes = fs::read(victim).with_context(|| format!("can't read {}", victim.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("{}: no object file", victim.display()))?;
    let probes = |parts: &[&str]| {
        let names = file
            .symbols()
            .filter_map(|symbol| symbol.name().ok().map(str::to_owned));
        let wanted = names.filter(|name| is_function(name, parts));
        let probes = wanted.map(|name| format!("uprobe:{}:\"{name}\"", victim.display()));
        probes.collect::<Vec<_>>().join(",\n")
    };
    // Header in rsi, and in rdi (tokio 1.54.1, `runtime/task/list.rs` and `runtime/task/harness.rs`).
    let births = probes(&["OwnedTasks", "bind_inner"]);
    let ends = probes(&["7harness", "Harness", "8complete"]);
    if births.is_empty() || ends.is_empty() {
        bail!("{}: no symbols of tokio's spawn and complete", victim.display());
    }
    let mut script = String::new();
    // Writing to a string can't fail.
    // Each mention of `ustack` walks the stack; once is enough.
    let _ = writeln!(
        script,
        "{births}\n{{ @task[arg1] = (ustack, nsecs); @spawned[@task[arg1].0]++; }}"
    );
    let _ = writeln!(script, "{ends}\n{{ @ended[@task[arg0].0]++; delete(@task[arg0]); }}");
    Ok(script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closures_within_a_function_are_not_it() {
        let complete = "_ZN5tokio7runtime4task7harness20Harness$LT$T$C$S$GT$8complete17h4519179142834803E";
        let closure =
            "_ZN5tokio7runtime4task7harness20Harness$LT$T$C$S$GT$8complete28_$u7b$$u7b$closure$u7d$$u7d$17h03c3E";
        let parts = ["7harness", "Harness", "8complete"];
        assert!(is_function(complete, &parts));
        assert!(!is_function(closure, &parts));
        assert!(!is_function(complete, &["OwnedTasks", "bind_inner"]));
    }
}
