//! A Rust toolchain for static musl programs, out of what Debian has: its rustc, its sources of std, musl, LLVM's unwinder.
//!
//! In: the packages in [`PACKAGES`]. Out: a sysroot that is laid out as rustup's own for this target is, so that rustc links the
//! same objects in the same way: static-pie, `rcrt1.o`, `libc.a`, `libunwind.a`. It installs no package: that is `cargo xtask
//! setup --musl`.

use crate::{
    build_ebpf::DEBIAN_RUSTC,
    workspace::{self, Workspace},
};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// rustc's name of it.
pub(super) const TARGET: &str = "x86_64-unknown-linux-musl";
/// The compiler with its sources, and what is linked with them; rustc-web is what BPF programs are compiled with too.
pub(crate) const PACKAGES: [&str; 4] = ["rustc-web", "rust-web-src", "musl-tools", "libunwind-22-dev"];

/// Where `rust-web-src` puts std's workspace.
const LIBRARY: &str = "/usr/lib/rustlib/src/rust/library";
/// Where `musl-dev` puts what is linked.
const MUSL: &str = "/usr/lib/x86_64-linux-musl";
/// LLVM's unwinder, which rustup's target has too. GCC's calls `_dl_find_object`, which only glibc has.
const UNWINDER: &str = "/usr/lib/llvm-22/lib/libunwind.a";
/// What rustc looks for in a sysroot's folder `self-contained`: of musl, and of gcc.
const OF_MUSL: [&str; 6] = ["crt1.o", "Scrt1.o", "rcrt1.o", "crti.o", "crtn.o", "libc.a"];
const OF_GCC: [&str; 4] = ["crtbegin.o", "crtbeginS.o", "crtend.o", "crtendS.o"];

/// A compiler and where its std is.
pub(super) struct Toolchain {
    pub(super) rustc: &'static str,
    pub(super) sysroot: PathBuf,
}

/// Gives the toolchain, and builds std where it is not there or is another compiler's.
pub(super) fn toolchain(workspace: &Workspace) -> Result<Toolchain> {
    for needed in [DEBIAN_RUSTC, LIBRARY, MUSL, "/usr/bin/musl-gcc", UNWINDER] {
        if !Path::new(needed).exists() {
            bail!(
                "there is no {needed}; it needs Debian's {}, which `cargo xtask setup --musl` installs",
                PACKAGES.join(", ")
            );
        }
    }
    let folder = workspace.target().join("matrix/musl");
    let sysroot = folder.join("sysroot");
    let version = workspace::output(workspace.command(DEBIAN_RUSTC).arg("-vV"))?;
    // Written last: it tells that the rest is whole.
    let compiler = folder.join("compiler");
    if fs::read_to_string(&compiler).is_ok_and(|known| known == version) {
        return Ok(Toolchain {
            rustc: DEBIAN_RUSTC,
            sysroot,
        });
    }
    println!("matrix: building std for {TARGET}, which takes a few minutes");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("can't remove {}", folder.display()))?;
    }
    let libraries = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    let objects = libraries.join("self-contained");
    fs::create_dir_all(&objects).with_context(|| format!("can't make {}", objects.display()))?;
    let built = build_std(workspace, &folder, &version)?;
    for file in fs::read_dir(&built).with_context(|| format!("can't read {}", built.display()))? {
        let path = file?.path();
        if let (Some("rlib"), Some(name)) = (path.extension().and_then(|end| end.to_str()), path.file_name()) {
            copy(&path, &libraries.join(name))?;
        }
    }
    add_objects(workspace, &objects)?;
    fs::write(&compiler, &version).with_context(|| format!("can't write {}", compiler.display()))?;
    Ok(Toolchain {
        rustc: DEBIAN_RUSTC,
        sysroot,
    })
}

/// Builds std as it is built for distribution; gives the folder with its libraries.
fn build_std(workspace: &Workspace, folder: &Path, version: &str) -> Result<PathBuf> {
    let commit = version.lines().find_map(|line| line.strip_prefix("commit-hash: "));
    let library = fs::canonicalize(LIBRARY).with_context(|| format!("can't find {LIBRARY}"))?;
    // Without the first, user code could name std's own dependencies; paths are those in every distributed std.
    let flags = format!(
        "-Zforce-unstable-if-unmarked --remap-path-prefix={}=/rustc/{}/library",
        library.display(),
        commit.unwrap_or("unknown")
    );
    let target = folder.join("std");
    let mut command = workspace.command("nice");
    command
        .args(["-n", "19", "cargo", "build", "--quiet", "--locked", "--jobs", "1"])
        .args(["--profile", "dist", "--target", TARGET, "--package", "std"])
        .args(["--features", "std/panic-unwind,std/backtrace", "--manifest-path"])
        .arg(library.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTC", DEBIAN_RUSTC)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", flags);
    workspace::run(&mut command)?;
    Ok(target.join(TARGET).join("dist/deps"))
}

/// What rustc links beside Rust's libraries.
fn add_objects(workspace: &Workspace, objects: &Path) -> Result<()> {
    for name in OF_MUSL {
        copy(&Path::new(MUSL).join(name), &objects.join(name))?;
    }
    for name in OF_GCC {
        let path = workspace::output(workspace.command("cc").arg(format!("-print-file-name={name}")))?;
        copy(Path::new(path.trim()), &objects.join(name))?;
    }
    let unwinder = objects.join("libunwind.a");
    copy(Path::new(UNWINDER), &unwinder)?;
    let source = workspace.root.join("xtask/matrix/fortified.c");
    let object = objects.join("fortified.o");
    workspace::run(
        workspace
            .command("musl-gcc")
            .args(["-O2", "-fPIC", "-c", "-o"])
            .arg(&object)
            .arg(source),
    )?;
    workspace::run(workspace.command("ar").arg("r").arg(&unwinder).arg(&object))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("can't copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
