//! The most memory that this process had since a point in time.

/// A point in time.
pub(crate) struct Peak;

impl Peak {
    /// Forgets what was before (proc(5), `clear_refs`).
    pub(crate) fn begin() -> Self {
        std::fs::write("/proc/self/clear_refs", "5").expect("a process may forget its own peak");
        Self
    }

    /// Bytes, of all tests that ran meanwhile.
    pub(crate) fn bytes(&self) -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("a process has a status");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kilobytes.expect("a process has a peak") << 10
    }
}
