//! Whether this machine can run a kernel test, and the record of those that it can't.

use leakmon::kernel::host::{Finding, examine};
use std::{io::Write, path::PathBuf, sync::OnceLock};

/// File that names skipped tests, a line each, where the caller wants to count them.
const SKIPPED: &str = "LEAKMON_SKIPPED";

/// The victim's path, or `None` after the test was recorded as skipped.
pub(crate) fn victim_for(test: &str, victim: &str) -> Option<PathBuf> {
    static REFUSAL: OnceLock<Option<String>> = OnceLock::new();
    let refusal = REFUSAL.get_or_init(|| {
        examine().into_iter().find_map(|check| match check.finding {
            Finding::Broken(sentence) => Some(format!("{}: {sentence}", check.subject)),
            Finding::Fine(_) | Finding::Lacking(_) => None,
        })
    });
    if let Some(reason) = refusal {
        skip(test, reason);
        return None;
    }
    let path = built(victim);
    if !path.is_file() {
        skip(
            test,
            &format!("{} is not built: run `cargo xtask test`", path.display()),
        );
        return None;
    }
    Some(path)
}

/// Where cargo puts a victim's release build.
fn built(victim: &str) -> PathBuf {
    let mut path = PathBuf::from(env!("CARGO_BIN_EXE_leakmon"));
    // From `<target>/<profile>/leakmon`.
    path.pop();
    path.pop();
    path.extend(["release", "examples", victim]);
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
