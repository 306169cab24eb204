//! `cargo xtask build-ebpf`: compiles the BPF programs.
//!
//! In: the crate `leakmon-ebpf`. Out: `target/bpf/leakmon-ebpf` and beside it the hash of its sources, which
//! `leakmon/build.rs` embeds. It installs nothing: that is `setup`.

use crate::{
    source_hash::{self, BPF_RUSTFLAGS, HASH, OBJECT},
    workspace::{self, Workspace},
};
use anyhow::{Context as _, Result, bail};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

const BPF_TARGET: &str = "bpfel-unknown-none";
/// Where Debian's `rustc-web` puts it.
pub(crate) const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// The first that was tried with a prebuilt BPF `core`, and what aya-ebpf 0.2.1 is content with.
const DEBIAN_RUSTC_MINOR_MIN: u32 = 96;
/// `EM_BPF` of `elf.h`.
const ELF_MACHINE_BPF: u16 = 247;

/// Builds the object unless it fits the sources already.
pub(crate) fn run(workspace: &Workspace, force: bool) -> Result<()> {
    let directory = workspace.object_directory();
    let object = directory.join(OBJECT);
    let hash = source_hash::of_sources(&workspace.root).context("can't read the BPF crate's sources")?;
    let known = fs::read_to_string(directory.join(HASH)).unwrap_or_default();
    if !force && known.trim() == hash && object.is_file() {
        println!("build-ebpf: {} fits its sources", object.display());
        return Ok(());
    }
    let started = Instant::now();
    let linker = workspace::find_program("bpf-linker");
    let toolchain = choose(debian_toolchain(), nightly_toolchain(), linker.is_some())?;
    println!("build-ebpf: building with {}", toolchain.describe());
    let built = compile(workspace, toolchain, linker.as_deref())?;
    check_elf(&fs::read(&built).with_context(|| format!("can't read {}", built.display()))?)
        .with_context(|| format!("{} is no BPF object", built.display()))?;
    install(&built, &directory, &hash)?;
    println!(
        "build-ebpf: {} built in {:.1} s",
        object.display(),
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// A compiler that can make BPF programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Toolchain {
    /// Debian's rustc, which has a prebuilt `core`.
    Debian,
    /// rustup's nightly, which builds `core` from `rust-src`.
    Nightly,
}

impl Toolchain {
    fn describe(self) -> &'static str {
        match self {
            Self::Debian => "Debian's rustc and its prebuilt core",
            Self::Nightly => "rustup's nightly and its rust-src",
        }
    }
}

/// Takes the first toolchain that is whole; each argument says what is missing, where something is.
fn choose(debian: Result<(), String>, nightly: Result<(), String>, linker: bool) -> Result<Toolchain> {
    let toolchain = match (&debian, &nightly) {
        (Ok(()), _) => Some(Toolchain::Debian),
        (_, Ok(())) => Some(Toolchain::Nightly),
        _ => None,
    };
    if let (Some(toolchain), true) = (toolchain, linker) {
        return Ok(toolchain);
    }
    let mut message = String::from("can't build the BPF programs; `cargo xtask setup` installs what is missing:");
    if toolchain.is_none() {
        for missing in [debian, nightly].into_iter().filter_map(Result::err) {
            message.push_str("\n  ");
            message.push_str(&missing);
        }
    }
    if !linker {
        message.push_str("\n  bpf-linker is neither in cargo's bin folder nor in PATH");
    }
    bail!(message)
}

/// Whether there is a compiler for BPF, of either kind.
pub(crate) fn has_compiler() -> bool {
    debian_toolchain().is_ok() || nightly_toolchain().is_ok()
}

fn debian_toolchain() -> Result<(), String> {
    let version = printed(Command::new(DEBIAN_RUSTC).arg("--version"))
        .ok_or_else(|| format!("Debian: there is no {DEBIAN_RUSTC} (package rustc-web)"))?;
    match minor_version(&version) {
        Some(minor) if minor >= DEBIAN_RUSTC_MINOR_MIN => {}
        _ => {
            return Err(format!(
                "Debian: {DEBIAN_RUSTC} is `{version}`, 1.{DEBIAN_RUSTC_MINOR_MIN} or newer is needed (package rustc-web)"
            ));
        }
    }
    let libraries = printed(Command::new(DEBIAN_RUSTC).args(["--print", "target-libdir", "--target", BPF_TARGET]));
    let entries = libraries
        .and_then(|folder| fs::read_dir(folder).ok())
        .into_iter()
        .flatten()
        .flatten();
    let core = |name: &str| name.starts_with("libcore-") && name.ends_with(".rlib");
    if entries
        .into_iter()
        .any(|entry| core(&entry.file_name().to_string_lossy()))
    {
        return Ok(());
    }
    Err(format!(
        "Debian: {DEBIAN_RUSTC} has no core library for {BPF_TARGET} (package libstd-rust-web-dev-bpf)"
    ))
}

fn nightly_toolchain() -> Result<(), String> {
    let sysroot = printed(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))
        .ok_or("rustup: there is no toolchain `nightly`")?;
    if Path::new(&sysroot)
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .is_file()
    {
        return Ok(());
    }
    Err("rustup: `nightly` lacks its component rust-src (`rustup component add rust-src --toolchain nightly`)".into())
}

/// First line of a command's output, where it succeeds.
fn printed(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .next()
        .map(str::to_owned)
}

/// The 96 of `rustc 1.96.0 (…)`.
fn minor_version(version: &str) -> Option<u32> {
    version.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok()
}

fn compile(workspace: &Workspace, toolchain: Toolchain, linker: Option<&Path>) -> Result<PathBuf> {
    let target = workspace.target().join("bpf-build");
    let mut command = match toolchain {
        Toolchain::Debian => workspace.cargo(),
        Toolchain::Nightly => workspace.command("rustup"),
    };
    match toolchain {
        Toolchain::Debian => {
            command.args(["build", "--locked"]);
            // The programs use `asm_experimental_arch`, which this compiler allows to its own kind only.
            command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
        }
        Toolchain::Nightly => {
            command.args(["run", "nightly", "cargo", "build", "--locked", "-Z", "build-std=core"]);
            command.env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN");
        }
    }
    command
        .args([
            "--quiet",
            "--release",
            "--target",
            BPF_TARGET,
            "--package",
            "leakmon-ebpf",
            "--bin",
            OBJECT,
        ])
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTFLAGS", BPF_RUSTFLAGS)
        .env("PATH", path_with(linker)?);
    // What someone set for programs of the host would break or change these.
    for foreign in [
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_RUSTFLAGS",
        "RUSTC_WRAPPER",
        "CARGO_INCREMENTAL",
    ] {
        command.env_remove(foreign);
    }
    for (setting, value) in [
        ("DEBUG", "2"),
        ("STRIP", "none"),
        ("OPT_LEVEL", "3"),
        ("CODEGEN_UNITS", "1"),
    ] {
        command.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
    }
    workspace::run(&mut command)?;
    Ok(target.join(BPF_TARGET).join("release").join(OBJECT))
}

/// `PATH` with the linker's folder first: rustc calls `bpf-linker` by its name.
fn path_with(linker: Option<&Path>) -> Result<std::ffi::OsString> {
    let old = env::var_os("PATH").unwrap_or_default();
    let folder = linker.and_then(Path::parent).map(Path::to_owned);
    env::join_paths(folder.into_iter().chain(env::split_paths(&old))).context("PATH can't be extended")
}

/// Refuses what the loader could not use: not a little-endian 64-bit ELF file for BPF, or one without programs' types.
fn check_elf(bytes: &[u8]) -> Result<()> {
    let machine = bytes
        .get(18..20)
        .map_or(0, |field| u16::from_le_bytes([field[0], field[1]]));
    if bytes.get(..6) != Some(b"\x7fELF\x02\x01") || machine != ELF_MACHINE_BPF {
        bail!("it is not a little-endian 64-bit ELF file for BPF");
    }
    if !bytes.windows(5).any(|window| window == b".BTF\0") {
        bail!("it has no BTF, which `bpf_loop` callbacks need");
    }
    Ok(())
}

/// Object first, hash last: an interruption leaves a stale hash, never a wrong one.
fn install(built: &Path, directory: &Path, hash: &str) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))?;
    let hash_file = directory.join(HASH);
    let _ = fs::remove_file(&hash_file);
    let object = directory.join(OBJECT);
    fs::copy(built, &object).with_context(|| format!("can't write {}", object.display()))?;
    fs::write(&hash_file, format!("{hash}\n")).with_context(|| format!("can't write {}", hash_file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_toolchain_comes_first_and_one_is_enough() {
        let missing = |name: &str| Err(name.to_owned());
        assert_eq!(choose(Ok(()), Ok(()), true).unwrap(), Toolchain::Debian);
        assert_eq!(choose(Ok(()), missing("n"), true).unwrap(), Toolchain::Debian);
        assert_eq!(choose(missing("d"), Ok(()), true).unwrap(), Toolchain::Nightly);
    }

    #[test]
    fn what_is_missing_is_named() {
        let neither = choose(Err("no rustc-web".into()), Err("no rust-src".into()), false)
            .unwrap_err()
            .to_string();
        for word in ["no rustc-web", "no rust-src", "bpf-linker", "cargo xtask setup"] {
            assert!(neither.contains(word), "{neither}");
        }
        let linker = choose(Ok(()), Err("no rust-src".into()), false)
            .unwrap_err()
            .to_string();
        assert!(
            linker.contains("bpf-linker") && !linker.contains("rust-src"),
            "{linker}"
        );
    }

    #[test]
    fn versions_are_read() {
        for (version, minor) in [
            (
                "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)",
                Some(96),
            ),
            ("rustc 1.63.0", Some(63)),
            ("rustc 2.0.0", None),
            ("", None),
        ] {
            assert_eq!(minor_version(version), minor, "{version}");
        }
    }

    #[test]
    fn only_bpf_objects_with_btf_are_installed() {
        let mut object = vec![0; 64];
        assert!(check_elf(&object).is_err());
        object[..6].copy_from_slice(b"\x7fELF\x02\x01");
        object[18] = 62;
        assert!(check_elf(&object).is_err());
        object[18] = 247;
        assert!(check_elf(&object).unwrap_err().to_string().contains("BTF"));
        object.extend(b"\0.BTF\0");
        assert!(check_elf(&object).is_ok());
        assert!(check_elf(&object[..10]).is_err());
    }
}
