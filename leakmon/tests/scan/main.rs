//! The memory that the scan of a large program takes. Alone in its process, whose peak it reads; how long a scan takes is for
//! `cargo xtask matrix`, which has a release build.

use leakmon::targets::{AnalyseError, analyse_bytes, plan::ImageId};
use std::{fs, path::Path, process::Command};

/// Of the whole process, the file's bytes included.
const PEAK_KB_MAX: u64 = 200 << 10;

#[test]
fn cargo_has_no_tokio_and_its_scan_takes_little_memory() {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().unwrap();
    let cargo = Path::new(String::from_utf8(sysroot.stdout).unwrap().trim()).join("bin/cargo");
    let bytes = fs::read(&cargo).unwrap();
    assert!(bytes.len() > 20 << 20, "{} bytes are no large program", bytes.len());
    let id = ImageId {
        device: 1,
        inode: 2,
        build_id: String::new(),
    };
    let outcome = analyse_bytes(&bytes, &cargo, id);
    assert!(matches!(outcome, Err(AnalyseError::NoRuntime { .. })), "{outcome:?}");
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kb: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kb < PEAK_KB_MAX, "{peak_kb} KB");
    // The file's bytes are in there: a scan that was left out would show.
    assert!(peak_kb > bytes.len() as u64 >> 10, "{peak_kb} KB");
}
