//! Builds the matrix's programs, once each.
//!
//! In: a combination. Out: the path of its program in `target/matrix/programs`. Packages of one version share a folder, and all
//! share cargo's target folder, so that what does not depend on tokio is built once a profile; those for musl, which another
//! compiler builds, have one of their own. One job at a time, and nice.

use super::{
    combinations::{Combination, SECOND, Variant},
    musl,
};
use crate::workspace::{self, Workspace};
use anyhow::{Context as _, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// `JoinSet` is in tokio since 1.21.
const JOIN_SET_MINOR: u32 = 21;
/// What decides whether a way of building shares its files: rustc's target.
const TARGET: &str = "x86_64-unknown-linux-gnu";

const PACKAGE: &str = r#"
# Written by `cargo xtask matrix`; see xtask/src/matrix/building.rs.
[package]
name = "victim"
version = "0.0.0"
edition = "2021"

[features]
join_set = []
task_builder = []
library = []
second = []
jemalloc = []
mimalloc = []

[profile.thin]
inherits = "release"
lto = "thin"

[profile.fat]
inherits = "release"
lto = "fat"
codegen-units = 1

[profile.z]
inherits = "fat"
opt-level = "z"
panic = "abort"

[workspace]
"#;

/// Flags, features and dependencies of a way of building.
struct Recipe {
    flags: &'static str,
    features: &'static [&'static str],
    dependencies: &'static str,
}

fn recipe(variant: Variant) -> Recipe {
    let flags = |flags| Recipe {
        flags,
        features: &[],
        dependencies: "",
    };
    match variant {
        Variant::Plain | Variant::Musl => flags(""),
        Variant::NonPie => flags("-C relocation-model=static"),
        Variant::StaticPie => flags("-C target-feature=+crt-static"),
        Variant::V0 => flags("-C symbol-mangling-version=v0"),
        Variant::Native => flags("-C target-cpu=native"),
        Variant::Relr => flags("-C link-arg=-Wl,-z,pack-relative-relocs"),
        Variant::Bfd => flags("-C linker-features=-lld"),
        Variant::Unstable => Recipe {
            features: &["task_builder"],
            ..flags("--cfg tokio_unstable")
        },
        Variant::Library => Recipe {
            features: &["library"],
            ..flags("")
        },
        Variant::TwoVersions => Recipe {
            features: &["second"],
            // The copy is a path dependency, whose warnings cargo shows.
            ..flags("--cap-lints=allow")
        },
        Variant::Jemalloc => Recipe {
            features: &["jemalloc"],
            dependencies: "tikv-jemallocator = \"0.6\"\n",
            ..flags("")
        },
        Variant::Mimalloc => Recipe {
            features: &["mimalloc"],
            dependencies: "mimalloc = { version = \"0.1\", default-features = false }\n",
            ..flags("")
        },
    }
}

/// Whether a combination's program is there, or can be made by removing symbols from one.
pub(super) fn is_built(workspace: &Workspace, combination: &Combination) -> bool {
    let program = |combination: &Combination| folder(workspace).join(&combination.name);
    program(combination).is_file() || program(&combination.unstripped()).is_file()
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.target().join("matrix/programs")
}

/// The program of a combination, built where it is not there yet.
pub(super) fn program(workspace: &Workspace, combination: &Combination) -> Result<PathBuf> {
    let folder = folder(workspace);
    fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
    let program = folder.join(&combination.name);
    if program.is_file() {
        return Ok(program);
    }
    // Under another name until it is whole.
    let partial = folder.join("unfinished");
    if combination.stripped {
        let whole = self::program(workspace, &combination.unstripped())?;
        workspace::run(workspace.command("strip").arg("-o").arg(&partial).arg(whole))?;
    } else {
        let built = build(workspace, combination)?;
        fs::copy(&built, &partial).with_context(|| format!("can't copy {}", built.display()))?;
    }
    fs::rename(&partial, &program).with_context(|| format!("can't rename to {}", program.display()))?;
    Ok(program)
}

fn build(workspace: &Workspace, combination: &Combination) -> Result<PathBuf> {
    let recipe = recipe(combination.variant);
    let package = write_package(workspace, combination, &recipe)?;
    let musl = match combination.variant {
        Variant::Musl => Some(musl::toolchain(workspace)?),
        _ => None,
    };
    let (triple, folder) = match musl {
        Some(_) => (musl::TARGET, "matrix/musl-target"),
        None => (TARGET, "matrix/target"),
    };
    let target = workspace.target().join(folder);
    let mut features = recipe.features.join(",");
    if combination.minor() >= JOIN_SET_MINOR {
        features.push_str(",join_set");
    }
    let mut command = workspace.command("nice");
    command
        .args(["-n", "19", "cargo", "build", "--quiet", "--jobs", "1"])
        .args(["--profile", combination.profile.name(), "--features", &features])
        // With a target, flags don't reach build scripts, which must run here.
        .args(["--target", triple])
        .arg("--manifest-path")
        .arg(package.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", recipe.flags);
    if let Some(musl) = musl {
        // Encoded, since the path may have a space.
        let mut flags = vec![format!("--sysroot={}", musl.sysroot.display())];
        flags.extend(recipe.flags.split_whitespace().map(str::to_owned));
        command
            .env_remove("RUSTFLAGS")
            .env("RUSTC", musl.rustc)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    }
    workspace::run(&mut command)?;
    let profile = match combination.profile.name() {
        "dev" => "debug",
        name => name,
    };
    let file = match combination.variant {
        Variant::Library => "libvictim.so",
        _ => "victim",
    };
    Ok(target.join(triple).join(profile).join(file))
}

/// Writes the package of a version. What no feature can choose depends on the way of building.
fn write_package(workspace: &Workspace, combination: &Combination, recipe: &Recipe) -> Result<PathBuf> {
    let name = match combination.variant {
        Variant::Plain => combination.tokio,
        _ => &combination.name,
    };
    let package = workspace.target().join("matrix/packages").join(name);
    let sources = workspace.root.join("xtask/matrix");
    let mut manifest = format!("{PACKAGE}\n[dependencies]\n{}", recipe.dependencies);
    let tracing = match combination.variant {
        // `task::Builder` needs it.
        Variant::Unstable => ", \"tracing\"",
        _ => "",
    };
    let features = format!("default-features = false, features = [\"rt-multi-thread\", \"sync\", \"fs\"{tracing}]");
    manifest.push_str(&format!(
        "tokio = {{ version = \"={}\", {features} }}\n",
        combination.tokio
    ));
    if combination.variant == Variant::TwoVersions {
        let copy = copy_of_second(workspace, &package)?;
        manifest.push_str(&format!(
            "second = {{ package = \"tokio\", path = {:?}, {features} }}\n",
            copy.display().to_string()
        ));
    }
    if combination.variant == Variant::Library {
        manifest.push_str("\n[lib]\ncrate-type = [\"cdylib\"]\npath = \"src/main.rs\"\n");
    }
    let write = || {
        fs::create_dir_all(package.join("src"))?;
        let tasks = fs::read_to_string(sources.join("tasks.rs"))?;
        fs::copy(sources.join("main.rs"), package.join("src/main.rs"))?;
        fs::write(package.join("src/second.rs"), tasks.replace("tokio::", "second::"))?;
        fs::write(package.join("src/first.rs"), tasks)?;
        fs::write(package.join("Cargo.toml"), manifest)
    };
    write().with_context(|| format!("can't write {}", package.display()))?;
    Ok(package)
}

/// Cargo takes two versions of one crate with the same major number only from different sources: this one is a folder.
fn copy_of_second(workspace: &Workspace, package: &Path) -> Result<PathBuf> {
    let fetching = package.join("second");
    let write = || {
        fs::create_dir_all(fetching.join("src"))?;
        fs::write(fetching.join("src/lib.rs"), "")?;
        fs::write(
            fetching.join("Cargo.toml"),
            format!("[package]\nname = \"fetching\"\n[dependencies]\ntokio = \"={SECOND}\"\n[workspace]\n"),
        )
    };
    write().with_context(|| format!("can't write {}", fetching.display()))?;
    let vendored = package.join("vendored");
    let mut command = workspace.cargo();
    command
        .args(["vendor", "--quiet", "--manifest-path"])
        .arg(fetching.join("Cargo.toml"))
        .arg(&vendored);
    workspace::output(&mut command)?;
    Ok(vendored.join("tokio"))
}
