//! Which sources a BPF object was built from: one hash, and where the object lies.
//!
//! In: the workspace's files. Out: the hash and the paths. This file is compiled twice, into `xtask`, which writes the
//! hash beside the object, and into `leakmon/build.rs`, which compares it: so both always agree. It builds nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// File name of the object in [`object_directory`].
pub(crate) const OBJECT: &str = "leakmon-ebpf";
/// File name of the hash beside it.
pub(crate) const HASH: &str = "leakmon-ebpf.hash";

/// What rustc is told when it compiles the BPF crate. Aya relocates the callback of `bpf_loop` by BTF, and bpf-linker
/// makes BTF from debug information only.
pub(crate) const BPF_RUSTFLAGS: &str = "-C link-arg=--btf -C debuginfo=2";

/// Packages of `Cargo.lock` whose code ends up in the object.
const LOCKED_PREFIXES: [&str; 3] = ["aya-ebpf", "aya-log-ebpf", "aya-log-common"];

/// Source files that are read at most; the BPF crate has about ten.
const FILES_MAX: usize = 256;

/// The folder of the object: `bpf` in cargo's target folder.
///
/// `target_override` is the value of `CARGO_TARGET_DIR`, relative to the workspace's root unless it is absolute. A
/// `--target-dir` on a command line does not move it.
pub(crate) fn object_directory(root: &Path, target_override: Option<&Path>) -> PathBuf {
    root.join(target_override.unwrap_or_else(|| Path::new("target")))
        .join("bpf")
}

/// Folders and files that the hash is made from, for cargo to watch.
pub(crate) fn inputs(root: &Path) -> [PathBuf; 3] {
    let package = root.join("leakmon-ebpf");
    [package.join("src"), package.join("Cargo.toml"), root.join("Cargo.lock")]
}

/// The hash of everything that decides what the object is, sixteen hexadecimal digits.
///
/// Fails where a file can't be read, or where there are more than [`FILES_MAX`].
pub(crate) fn of_sources(root: &Path) -> io::Result<String> {
    let [sources, manifest, lock] = inputs(root);
    let mut files = Vec::new();
    collect(&sources, &mut files)?;
    files.sort();
    let mut hash = Fnv::new();
    hash.field(BPF_RUSTFLAGS.as_bytes());
    for file in files {
        let name = file
            .strip_prefix(&sources)
            .unwrap_or(&file)
            .to_string_lossy()
            .into_owned();
        hash.field(name.as_bytes());
        hash.field(&read(&file)?);
    }
    hash.field(&read(&manifest)?);
    for package in locked_packages(&String::from_utf8_lossy(&read(&lock)?)) {
        hash.field(package.as_bytes());
    }
    Ok(format!("{:016x}", hash.0))
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    fs::read(file).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
        if files.len() > FILES_MAX {
            return Err(io::Error::other(format!(
                "{}: more than {FILES_MAX} files",
                directory.display()
            )));
        }
    }
    Ok(())
}

/// `name version` of the locked packages that the BPF crate is made with.
fn locked_packages(lock: &str) -> Vec<String> {
    let value = |line: &str, key: &str| line.strip_prefix(key).map(|rest| rest.trim_matches('"').to_owned());
    let mut packages = Vec::new();
    let mut lines = lock.lines();
    while let Some(line) = lines.next() {
        let Some(name) = value(line, "name = ") else { continue };
        if LOCKED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            let version = lines
                .next()
                .and_then(|line| value(line, "version = "))
                .unwrap_or_default();
            packages.push(format!("{name} {version}"));
        }
    }
    packages
}

/// FNV-1a with 64 bits (draft-eastlake-fnv, section 5): it tells old sources from new ones, and guards against nobody.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds bytes behind their length, so that no two lists of fields run into each other.
    fn field(&mut self, bytes: &[u8]) {
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
