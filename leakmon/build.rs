//! Embeds the BPF object that `cargo xtask build-ebpf` made, with a word about whether it fits these sources.
//!
//! In: the object's folder and the BPF crate's sources. Out: `bpf_object.rs` in `OUT_DIR`, included by
//! `src/kernel/object.rs`. An absent or stale object is no build failure: the program says so when it needs one.

#[allow(dead_code, reason = "xtask uses the rest of this file")]
#[path = "../xtask/src/source_hash.rs"]
mod source_hash;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

fn main() -> io::Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo sets OUT_DIR"))?);
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let root = package.parent().unwrap_or(&package);
    let target_override = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let directory = source_hash::object_directory(root, target_override.as_deref());
    // Cargo runs this again each time while a watched path is missing, so the folder is made; that it can't be is no harm.
    let _ = fs::create_dir_all(&directory);
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    for watched in source_hash::inputs(root).iter().chain([&directory]) {
        println!("cargo::rerun-if-changed={}", watched.display());
    }

    // A copy, since the original may be replaced while rustc reads it.
    let object = out.join("leakmon-ebpf.o");
    let bytes = match fs::copy(directory.join(source_hash::OBJECT), &object) {
        Ok(_) => format!("Some(aya::include_bytes_aligned!({object:?}))"),
        Err(_) => "None".to_owned(),
    };
    let generated = format!(
        "static OBJECT: Option<&[u8]> = {bytes};\n\
         const BUILT_FROM: Option<&str> = {:?};\n\
         const SOURCES: Option<&str> = {:?};\n",
        built_from(&directory),
        source_hash::of_sources(root).ok(),
    );
    fs::write(out.join("bpf_object.rs"), generated)
}

fn built_from(directory: &Path) -> Option<String> {
    let hash = fs::read_to_string(directory.join(source_hash::HASH)).ok()?;
    Some(hash.trim().to_owned())
}
