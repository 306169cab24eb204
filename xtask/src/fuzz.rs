//! `cargo xtask fuzz`: whether the daemon lives, whatever a target's files say.
//!
//! In: seconds for each target, and the seeds in `fuzz/seeds`. Out: new inputs in `fuzz/corpus`, and in
//! `fuzz/artifacts` the input that ended a target, which is an error. It is no part of `cargo xtask test`: it takes as
//! long as it is told, and a nightly compiler.

use crate::workspace::{self, Workspace};
use anyhow::{Context as _, Result, bail};
use std::{fs, process::Command};

/// The targets, in the order in which a file of a watched process meets them.
const TARGETS: [&str; 3] = ["image_scanner", "unwind_tables", "names"];
/// Bounds of libFuzzer: memory of the whole process, time of one input, size of one input. Every seed is smaller.
const LIMITS: [&str; 3] = ["-rss_limit_mb=512", "-timeout=10", "-max_len=65536"];
/// Has it say at its end what it needed: `stat::peak_rss_mb` among others.
const STATISTICS: &str = "-print_final_stats=1";
const CARGO_FUZZ_VERSION: &str = "0.13.2";

/// Fuzzes each target for so many seconds, one after the other.
pub(crate) fn run(workspace: &Workspace, seconds: u32) -> Result<()> {
    install(workspace)?;
    for target in TARGETS {
        let corpus = workspace.root.join("fuzz/corpus").join(target);
        fs::create_dir_all(&corpus).with_context(|| format!("can't make {}", corpus.display()))?;
        println!("fuzz: {target}, {seconds} s");
        workspace::run(&mut command(workspace, target, seconds))
            .with_context(|| format!("the input that ended `{target}` is in fuzz/artifacts/{target}"))?;
    }
    println!("fuzz: {} targets, nothing found", TARGETS.len());
    Ok(())
}

/// What libFuzzer finds goes into the first folder; the second is only read.
fn command(workspace: &Workspace, target: &str, seconds: u32) -> Command {
    let mut command = nightly(workspace);
    command
        // leakmon's own code is safe, and AddressSanitizer's memory would count against the limit.
        .args(["fuzz", "run", "--sanitizer", "none", target])
        .args([format!("corpus/{target}"), format!("seeds/{target}"), "--".to_owned()])
        .args(LIMITS)
        .arg(STATISTICS)
        .arg(format!("-max_total_time={seconds}"))
        .current_dir(workspace.root.join("fuzz"));
    command
}

/// cargo of rustup's nightly toolchain. Cargo names its own toolchain in the environment, which would win.
fn nightly(workspace: &Workspace) -> Command {
    let mut command = workspace.command("rustup");
    command
        .args(["run", "nightly", "cargo"])
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO");
    command
}

fn install(workspace: &Workspace) -> Result<()> {
    let works = |mut command: Command| command.output().is_ok_and(|output| output.status.success());
    let mut compiler = nightly(workspace);
    compiler.arg("--version");
    if !works(compiler) {
        bail!("libFuzzer needs a nightly compiler: `rustup toolchain install nightly --profile minimal`");
    }
    let mut tool = workspace.cargo();
    tool.args(["fuzz", "--version"]);
    if works(tool) {
        return Ok(());
    }
    println!("fuzz: compiling cargo-fuzz {CARGO_FUZZ_VERSION}, which takes a minute");
    let mut install = workspace.cargo();
    install
        .args(["install", "cargo-fuzz", "--version", CARGO_FUZZ_VERSION, "--locked"])
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS");
    workspace::run(&mut install)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_program_and_small_seeds() {
        let fuzz = Workspace::here().root.join("fuzz");
        let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
        for target in TARGETS {
            assert!(manifest.contains(&format!("name = \"{target}\"")));
            let seeds: Vec<_> = fs::read_dir(fuzz.join("seeds").join(target)).unwrap().collect();
            assert!(!seeds.is_empty(), "{target}");
            for seed in seeds {
                let bytes = fs::read(seed.unwrap().path()).unwrap();
                assert!(bytes.len() <= 1 << 16);
                for place in [&b"/home/"[..], b"/root/", b"/tmp/"] {
                    assert!(
                        !bytes.windows(place.len()).any(|window| window == place),
                        "a path of a machine"
                    );
                }
            }
        }
    }

    #[test]
    fn the_command_line_bounds_time_and_memory() {
        let shown = workspace::shown(&command(&Workspace::here(), "names", 7));
        assert!(shown.ends_with(
            "cargo fuzz run --sanitizer none names corpus/names seeds/names -- \
             -rss_limit_mb=512 -timeout=10 -max_len=65536 -print_final_stats=1 -max_total_time=7`"
        ));
    }
}
