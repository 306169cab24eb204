//! Whether this machine can run a kernel test, and the record of those that it can't.

use leakmon::kernel::host::{Finding, examine};
use std::{io::Write, path::PathBuf, sync::OnceLock};

/// File that names skipped tests, a line each, where the caller wants to count them.
const SKIPPED: &str = "LEAKMON_SKIPPED";

/// How a victim is built (`cargo xtask victims`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// `cargo build --release`: what people ship.
    Release,
    /// That without symbols.
    ReleaseStripped,
    /// Fat LTO, one codegen unit.
    Fat,
    /// That without symbols.
    FatStripped,
    /// `opt-level = "z"`, fat LTO.
    Z,
    /// `cargo build`.
    Dev,
    /// Release, with `-C force-frame-pointers=yes`.
    FramePointers,
    /// Release, with `-C target-feature=+crt-static`: the C library is in it. The crowd alone.
    Static,
    /// Release with tokio 1.38 and jemalloc. The crowd alone.
    JemallocOldTokio,
    /// Release with tokio 1.23 and mimalloc, without symbols. The crowd alone.
    MimallocOldestTokio,
    /// Release with tokio 1.22. Not the crowd, but a few tasks that wait.
    OlderTokio,
}

impl Build {
    /// Its folder of victims, below cargo's target folder.
    const fn folder(self) -> &'static str {
        match self {
            Self::Release => "release/examples",
            Self::ReleaseStripped => "victims/stripped/release",
            Self::Fat => "victims/target/fat/examples",
            Self::FatStripped => "victims/stripped/fat",
            Self::Z => "victims/target/z/examples",
            Self::Dev => "victims/target/debug/examples",
            Self::FramePointers => "frame-pointers/release/examples",
            Self::Static => "victims/crowds/static",
            Self::JemallocOldTokio => "victims/crowds/jemalloc-1.38",
            Self::MimallocOldestTokio => "victims/crowds/mimalloc-1.23-stripped",
            Self::OlderTokio => "victims/crowds/1.22",
        }
    }
}

/// The path of a victim's release build, or `None` after the test was recorded as skipped.
pub(crate) fn victim_for(test: &str, victim: &str) -> Option<PathBuf> {
    victim_built(test, Build::Release, victim)
}

/// The victim's path, or `None` after the test was recorded as skipped.
pub(crate) fn victim_built(test: &str, build: Build, victim: &str) -> Option<PathBuf> {
    can_probe(test).then(|| program_built(test, build, victim))?
}

/// As [`victim_built`], for what needs no probes.
pub(crate) fn program_built(test: &str, build: Build, victim: &str) -> Option<PathBuf> {
    let path = built(build, victim);
    if !path.is_file() {
        skip(
            test,
            &format!("{} is not built: run `cargo xtask victims`", path.display()),
        );
        return None;
    }
    Some(path)
}

/// Whether this machine lets leakmon probe; where not, the test was recorded as skipped.
pub(crate) fn can_probe(test: &str) -> bool {
    static REFUSAL: OnceLock<Option<String>> = OnceLock::new();
    let refusal = REFUSAL.get_or_init(|| {
        examine().into_iter().find_map(|check| match check.finding {
            Finding::Broken(sentence) => Some(format!("{}: {sentence}", check.subject)),
            Finding::Fine(_) | Finding::Lacking(_) => None,
        })
    });
    if let Some(reason) = refusal {
        skip(test, reason);
        return false;
    }
    true
}

fn built(build: Build, victim: &str) -> PathBuf {
    let mut path = PathBuf::from(env!("CARGO_BIN_EXE_leakmon"));
    // From `<target>/<profile>/leakmon`.
    path.pop();
    path.pop();
    path.extend([build.folder(), victim]);
    path
}

pub(crate) fn skip(test: &str, reason: &str) {
    eprintln!("SKIPPED {test}: {reason}");
    if let Some(file) = std::env::var_os(SKIPPED) {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(file)
            .unwrap();
        writeln!(file, "{test}: {reason}").unwrap();
    }
}
