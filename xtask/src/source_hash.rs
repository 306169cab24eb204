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

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str =
        "[[package]]\nname = \"aya-ebpf\"\nversion = \"0.2.1\"\n\n[[package]]\nname = \"tokio\"\nversion = \"1.0.0\"\n";

    /// A workspace of these files, and its hash.
    fn hash_of(files: &[(&str, &str)]) -> io::Result<String> {
        let root = tempfile::tempdir()?;
        for (path, text) in files {
            let file = root.path().join(path);
            fs::create_dir_all(file.parent().unwrap())?;
            fs::write(file, text)?;
        }
        of_sources(root.path())
    }

    fn files<'a>(main: &'a str, lock: &'a str) -> Vec<(&'a str, &'a str)> {
        vec![
            ("leakmon-ebpf/src/main.rs", main),
            ("leakmon-ebpf/Cargo.toml", "[package]\n"),
            ("Cargo.lock", lock),
        ]
    }

    #[test]
    fn what_the_object_is_made_from_changes_the_hash() {
        let first = hash_of(&files("a", LOCK)).unwrap();
        assert_eq!(first.len(), 16);
        assert_eq!(hash_of(&files("a", LOCK)).unwrap(), first);
        let mut more = files("a", LOCK);
        more.push(("leakmon-ebpf/src/maps/ring.rs", ""));
        let mut renamed = files("a", LOCK);
        renamed[0].0 = "leakmon-ebpf/src/lib.rs";
        let mut manifest = files("a", LOCK);
        manifest[1].1 = "[package]\n[lib]\n";
        let newer = LOCK.replace("0.2.1", "0.2.2");
        for changed in [files("b", LOCK), files("a", &newer), more, renamed, manifest] {
            assert_ne!(hash_of(&changed).unwrap(), first, "{changed:?}");
        }
    }

    #[test]
    fn what_does_not_matter_leaves_the_hash() {
        let mut other = files("a", LOCK);
        other.push(("leakmon-ebpf/src/notes.md", "x"));
        let newer = LOCK.replace("1.0.0", "1.1.0");
        for same in [other, files("a", &newer)] {
            assert_eq!(hash_of(&same).unwrap(), hash_of(&files("a", LOCK)).unwrap(), "{same:?}");
        }
    }

    #[test]
    fn a_missing_file_is_named_and_too_many_are_refused() {
        let error = hash_of(&files("a", LOCK)[..2]).unwrap_err().to_string();
        assert!(error.contains("Cargo.lock"), "{error}");
        let names: Vec<String> = (1..FILES_MAX)
            .map(|number| format!("leakmon-ebpf/src/m{number}.rs"))
            .collect();
        let mut many = files("a", LOCK);
        many.extend(names.iter().map(|name| (name.as_str(), "")));
        assert!(hash_of(&many).is_ok());
        many.push(("leakmon-ebpf/src/one_more.rs", ""));
        assert!(hash_of(&many).unwrap_err().to_string().contains("more than 256 files"));
    }

    #[test]
    fn the_object_is_where_cargo_builds() {
        let root = Path::new("/w");
        for (target, folder) in [
            (None, "/w/target/bpf"),
            (Some("out"), "/w/out/bpf"),
            (Some("/t"), "/t/bpf"),
        ] {
            assert_eq!(object_directory(root, target.map(Path::new)), Path::new(folder));
        }
    }
}
