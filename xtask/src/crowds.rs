//! Builds the victim `crowd` with other allocators, other versions of tokio, and a C library that is linked in.
//!
//! In: which of these. Out: programs in `target/victims/crowds`. Each combination is built in a package of its own, so that each
//! has its own lock file.

use crate::workspace::{self, Workspace};
use anyhow::{Context as _, Result};
use std::{fs, path::PathBuf};

/// One build of the crowd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crowd {
    /// Name of its folder.
    pub(crate) name: &'static str,
    /// `system`, `jemalloc` or `mimalloc`.
    allocator: &'static str,
    /// Version requirement.
    tokio: &'static str,
    /// Its source, below `leakmon/examples`.
    source: &'static str,
    /// Cargo's profile.
    profile: &'static str,
    /// Whether the C library is linked in.
    is_static: bool,
    /// Whether its symbols are taken away.
    stripped: bool,
}

const fn crowd(name: &'static str, allocator: &'static str, tokio: &'static str, profile: &'static str) -> Crowd {
    Crowd {
        name,
        allocator,
        tokio,
        source: "crowd.rs",
        profile,
        is_static: false,
        stripped: false,
    }
}

/// Those that the kernel tests look at beside the common builds of all victims.
pub(crate) const TESTED: [Crowd; 3] = [
    Crowd {
        is_static: true,
        ..crowd("static", "system", "1", "release")
    },
    crowd("jemalloc-1.38", "jemalloc", "=1.38.0", "release"),
    Crowd {
        stripped: true,
        ..crowd("mimalloc-1.23-stripped", "mimalloc", "=1.23.1", "release")
    },
];

/// A tokio whose tasks can't be found in memory, and which has too little for a crowd.
pub(crate) const OLDER: Crowd = Crowd {
    source: "crowd/older.rs",
    ..crowd("1.22", "system", "=1.22.0", "release")
};

/// As people ship it.
pub(crate) const PLAIN: Crowd = crowd("release", "system", "1", "release");

/// Beside these, those that `cargo xtask bench crowds` looks at.
pub(crate) const MORE: [Crowd; 7] = [
    Crowd {
        stripped: true,
        ..crowd("fat-stripped", "system", "1", "fat")
    },
    crowd("jemalloc", "jemalloc", "1", "release"),
    crowd("mimalloc", "mimalloc", "1", "release"),
    crowd("1.38", "system", "=1.38.0", "release"),
    crowd("1.23", "system", "=1.23.1", "release"),
    Crowd {
        stripped: true,
        ..crowd("jemalloc-1.23-fat-stripped", "jemalloc", "=1.23.1", "fat")
    },
    Crowd {
        stripped: true,
        is_static: true,
        ..crowd("mimalloc-1.38-fat-static-stripped", "mimalloc", "=1.38.0", "fat")
    },
];

impl Crowd {
    /// Where the program is.
    pub(crate) fn path(&self, workspace: &Workspace) -> PathBuf {
        workspace.target().join("victims/crowds").join(self.name).join("crowd")
    }

    fn manifest(&self) -> String {
        let (crate_name, version) = match self.allocator {
            "jemalloc" => ("tikv-jemallocator", "0.6"),
            "mimalloc" => ("mimalloc", "0.1"),
            _ => ("", ""),
        };
        let allocator = match crate_name {
            "" => String::new(),
            name => format!("{name} = \"{version}\"\n"),
        };
        format!(
            "# Written by `cargo xtask`; see xtask/src/crowds.rs.\n[package]\nname = \"crowd\"\nversion = \"0.0.0\"\n\
             edition = \"2024\"\npublish = false\n\n[dependencies]\n{allocator}tokio = {{ version = \"{}\", features = \
             [\"rt-multi-thread\", \"sync\", \"time\", \"macros\"] }}\n\n[profile.fat]\ninherits = \"release\"\nlto = \"fat\"\n\
             codegen-units = 1\n\n[workspace]\n",
            self.tokio
        )
    }

    fn main(&self, workspace: &Workspace) -> String {
        let allocator = match self.allocator {
            "jemalloc" => {
                "#[global_allocator]\nstatic ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;\n"
            }
            "mimalloc" => "#[global_allocator]\nstatic ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;\n",
            _ => "",
        };
        let source = workspace
            .root
            .join("leakmon/examples")
            .join(self.source)
            .display()
            .to_string();
        format!(
            "#[path = {source:?}]\nmod crowd;\n\n{allocator}\nfn main() -> std::io::Result<()> {{\n    crowd::main()\n}}\n"
        )
    }

    /// Builds it; nothing is done where it is up to date.
    pub(crate) fn build(&self, workspace: &Workspace) -> Result<()> {
        let folder = workspace.target().join("victims/crowds").join(self.name);
        let write = || {
            fs::create_dir_all(folder.join("src"))?;
            write_new(&folder.join("Cargo.toml"), &self.manifest())?;
            write_new(&folder.join("src/main.rs"), &self.main(workspace))
        };
        write().with_context(|| format!("can't write the package in {}", folder.display()))?;
        let mut command = workspace.cargo();
        // Combinations share what they have in common.
        let target = workspace
            .target()
            .join("victims/crowds/target")
            .join(if self.is_static { "static" } else { "dynamic" });
        command
            .args(["build", "--profile", self.profile, "--manifest-path"])
            .arg(folder.join("Cargo.toml"));
        command.arg("--target-dir").arg(&target);
        if self.is_static {
            // With --target the flags are not those of build scripts and procedural macros.
            command.env_remove("CARGO_ENCODED_RUSTFLAGS");
            command.env("RUSTFLAGS", "-C target-feature=+crt-static");
            command.args(["--target", "x86_64-unknown-linux-gnu"]);
        }
        workspace::run(&mut command)?;
        let triple = if self.is_static { "x86_64-unknown-linux-gnu" } else { "" };
        let built = target.join(triple).join(self.profile).join("crowd");
        let mut place = workspace.command(if self.stripped { "strip" } else { "cp" });
        if self.stripped {
            place.arg(&built).arg("-o").arg(self.path(workspace));
        } else {
            place.arg(&built).arg(self.path(workspace));
        }
        workspace::run(&mut place)
    }
}

/// Leaves a file alone that says the same, so that cargo builds nothing anew.
fn write_new(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text)
}
