//! What leakmon says about itself: events, losses, table fill, targets, probe sites, analyses.
//!
//! In: numbers that `daemon.rs` reads from `kernel`. Out: plain data that `export/metrics.rs` prints. It reads nothing
//! itself.

use std::time::SystemTime;

/// A snapshot of leakmon's own numbers. Lists are in the order in which they are printed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SelfMetrics {
    /// Events read from the ring since the start, by kind.
    pub events: Vec<(&'static str, u64)>,
    /// What the BPF programs could not do, by reason.
    pub events_dropped: Vec<(&'static str, u64)>,
    /// BPF maps.
    pub maps: Vec<MapFill>,
    /// Targets, by status.
    pub targets: Vec<(&'static str, u64)>,
    /// Analyses of files by children, by outcome.
    pub analyses: Vec<(&'static str, u64)>,
    /// Analyses that were not tried, since the same one had failed before.
    pub analyses_not_repeated: u64,
    /// The most memory that an analysing child ever had, in bytes.
    pub analysis_peak_bytes: u64,
    /// Attached probe sites that the kernel emulates.
    pub cheap_sites: u64,
    /// Attached probe sites that the kernel single-steps.
    pub slow_sites: u64,
    /// How long the last census took.
    pub census_seconds: f64,
    /// Bytes of targets' memory read so far.
    pub census_bytes_read: u64,
    /// Images that are probed.
    pub images: u64,
    /// Files that were analysed in the search for processes.
    pub files_analysed: u64,
    /// HTTP connections that had to make room for others.
    pub http_evicted: u64,
    /// Profiles pushed, by outcome.
    pub profiles_pushed: Vec<(&'static str, u64)>,
    /// The configuration.
    pub configured: Configured,
}

/// How the configuration was read last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configured {
    /// Whether the last attempt succeeded.
    pub successful: bool,
    /// When the last successful one was.
    pub at: SystemTime,
}

impl Default for Configured {
    fn default() -> Self {
        Self {
            successful: true,
            at: SystemTime::UNIX_EPOCH,
        }
    }
}

/// How full a BPF map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFill {
    /// Name of the map.
    pub map: &'static str,
    /// Entries in use.
    pub entries: u64,
    /// Entries that fit.
    pub capacity: u64,
}
