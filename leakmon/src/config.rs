//! The daemon's configuration: one validated [`Config`].
//!
//! In: a TOML file, and the options of the command line that override it. Out: a configuration that holds together.
//! Nothing is looked up here: whether an executable exists is found out when it is watched.
//!
//! The fields' documentation is the commented example file's ([`example`]): it is written for people who edit that.

pub mod example;
mod services;

pub use services::{Kubernetes, Pyroscope};

use crate::{
    cli::DaemonArgs,
    daemon::InspectionSettings,
    kernel::{Settings, pins::DIRECTORY},
    targets::rules::{RULES_MAX, Rule, RuleError},
};
use documented::DocumentedFields;
use leakmon_ebpf::abi::{
    COUNTS_ENTRIES_MAX, HITS_PER_SECOND_MAX, LIVE_ENTRIES_MAX, PAUSE_NS, RING_BYTES, STACKS_ENTRIES_MAX,
    TARGETS_ENTRIES_MAX,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// L-E-A-K on a keypad.
pub const DEFAULT_PORT: u16 = 5325;

/// How long a task must be without a waker to be called unwakeable, unless asked otherwise: nothing that is about to be woken
/// has no waker for so long.
pub const CONFIRM_INTERVAL: Duration = Duration::from_secs(2);

/// Executables and processes that one configuration may name.
const WATCHED_MAX: usize = 1024;

/// What the daemon does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address and port at which HTTP is served. Read at the start only.
    pub listen: SocketAddr,
    /// A file that says who may ask and whether connections are encrypted, in the format of Prometheus exporters' web configuration:
    /// `tls_server_config` and `basic_auth_users` with bcrypt hashes. It is read again when it, or a certificate, changes. Which file it
    /// is, is read at the start only.
    pub web_config_file: Option<PathBuf>,
    /// Whether an address that is reachable from elsewhere may be served without TLS and without basic auth. Read at the start only.
    pub allow_open_listen: bool,
    /// Executables whose processes are watched, those that start later too. Absolute paths. An executable that is taken out
    /// is watched until the next start.
    pub exes: Vec<PathBuf>,
    /// Numbers of processes that are watched.
    pub pids: Vec<u32>,
    /// Which processes are wanted, where neither executables nor processes are named, or beside those: every process of this host that
    /// runs a known runtime and that one of these rules matches; no rule means all. A rule is a table of patterns, all of which
    /// must match: `exe` (path of the executable, as the process sees it), `command` (its command line), `cgroup` (its path), in which `*`
    /// stands for any characters and `?` for one, and `user` (name or number). Such as: include = [{ exe = "/opt/*", user =
    /// "www-data" }]. A process is judged when it is first seen, and again when it calls exec. Read at the start only.
    pub include: Vec<Rule>,
    /// Which processes are not wanted after all: rules like those of `include`, but processes named in `pids` are always
    /// watched. Read at the start only.
    pub exclude: Vec<Rule>,
    /// How often the kernel's counters are read and a new snapshot is served: 100ms to 1h.
    #[serde(with = "interval")]
    pub interval: Duration,
    /// Functions of these crates or paths are never named as the culprit, beside those of the runtime. Read at the start only.
    pub hide: Vec<String>,
    /// Callsites and task types of these crates or paths are expected to grow: never called a leak. Read at the start only.
    pub allow: Vec<String>,
    /// Whether stacks are walked; without, births are counted by probe site. Read at the start only.
    pub stacks: bool,
    /// Whether probes and counts outlive the daemon, so that it goes on where it was; left out, they do where that is possible. Read
    /// at the start only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pin: Option<bool>,
    /// Directory in a BPF file system where they are kept; one daemon each. Read at the start only.
    pub pin_directory: PathBuf,
    /// Whether a census of each process's memory is taken, at the start and now and then. Read at the start only.
    pub census: bool,
    /// How long a task must be without a waker to be called unwakeable: 1m at most. Read at the start only.
    #[serde(with = "interval")]
    pub confirm_interval: Duration,
    /// Bounds of the kernel's tables. Read at the start only.
    pub bounds: Bounds,
    /// Names of pods on the metrics: labels `namespace`, `pod` and `container`. Read at the start only.
    pub kubernetes: Kubernetes,
    /// Profiles pushed to a Pyroscope server, one a process. Read at the start only.
    pub pyroscope: Pyroscope,
}

/// Bounds of the kernel's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Bounds {
    /// Tasks that can be followed at once; births beyond it are counted as untracked. Each takes 96 bytes of kernel memory from the
    /// start. From 81920 on there is room for up to 16384 more, in a table that makes births and ends cheaper.
    pub live_entries_max: u32,
    /// Different stacks that can be kept.
    pub stacks_entries_max: u32,
    /// Pairs of a process and a stack that can be counted.
    pub counts_entries_max: u32,
    /// Processes that can be targets at once.
    pub targets_entries_max: u32,
    /// Bytes of the event ring: a power of two, at least one page (4096).
    pub ring_bytes: u32,
    /// Hits of its probes that a process may have in a second before it is paused; 0: any number.
    pub hits_per_second_max: u64,
    /// How long it is paused.
    #[serde(with = "interval")]
    pub pause: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT)),
            web_config_file: None,
            allow_open_listen: false,
            exes: Vec::new(),
            pids: Vec::new(),
            include: Vec::new(),
            exclude: Vec::new(),
            interval: Duration::from_secs(1),
            hide: Vec::new(),
            allow: Vec::new(),
            stacks: true,
            pin: None,
            pin_directory: PathBuf::from(DIRECTORY),
            census: true,
            confirm_interval: CONFIRM_INTERVAL,
            bounds: Bounds::default(),
            kubernetes: Kubernetes::default(),
            pyroscope: Pyroscope::default(),
        }
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            live_entries_max: LIVE_ENTRIES_MAX,
            stacks_entries_max: STACKS_ENTRIES_MAX,
            counts_entries_max: COUNTS_ENTRIES_MAX,
            targets_entries_max: TARGETS_ENTRIES_MAX,
            ring_bytes: RING_BYTES,
            hits_per_second_max: HITS_PER_SECOND_MAX,
            pause: Duration::from_nanos(PAUSE_NS),
        }
    }
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{}: {cause}: check the path given with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// The file is not understood.
    #[error("{}: {cause}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        cause: Box<toml::de::Error>,
    },
    /// A value is out of its range.
    #[error("`{key}` {problem}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it must be.
        problem: &'static str,
    },
    /// A rule makes no sense.
    #[error("`{key}`: {cause}")]
    Rule {
        /// `include` or `exclude`.
        key: &'static str,
        /// Why.
        cause: RuleError,
    },
}

impl Config {
    /// Reads the file, if one is named, adds the options and checks the whole.
    ///
    /// # Errors
    /// [`ConfigError`] with the file, the key and what is wrong.
    pub fn from_args(args: &DaemonArgs) -> Result<Self, ConfigError> {
        let mut config = match &args.config {
            None => Self::default(),
            Some(path) => {
                let text = read_bounded(path).map_err(|cause| ConfigError::Read {
                    path: path.clone(),
                    cause,
                })?;
                toml::from_str(&text).map_err(|cause| ConfigError::Parse {
                    path: path.clone(),
                    cause: Box::new(cause),
                })?
            }
        };
        config.exes.extend(args.exe.iter().cloned());
        config.pids.extend(&args.pid);
        config.include.extend(args.rules.include.iter().cloned());
        config.exclude.extend(args.rules.exclude.iter().cloned());
        config.listen = args.listen.unwrap_or(config.listen);
        config.pin = match (args.pin, args.no_pin) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => config.pin,
        };
        if let Some(directory) = &args.pin_dir {
            config.pin_directory.clone_from(directory);
        }
        config.allow_open_listen |= args.allow_open_listen;
        if config.kubernetes.node.is_empty() {
            config.kubernetes.node = std::env::var("NODE_NAME").unwrap_or_default();
        }
        // Nothing is watched then.
        if !args.cleanup {
            config.check()?;
        }
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let require = |holds: bool, key, problem| {
            if holds {
                Ok(())
            } else {
                Err(ConfigError::Value { key, problem })
            }
        };
        for (key, rules) in [("include", &self.include), ("exclude", &self.exclude)] {
            require(rules.len() <= RULES_MAX, key, "may have 256 rules at most")?;
            for rule in rules {
                rule.check().map_err(|cause| ConfigError::Rule { key, cause })?;
            }
        }
        let watched = self.exes.len().saturating_add(self.pids.len());
        require(
            watched <= WATCHED_MAX,
            "exes",
            "and `pids` together may name 1024 at most",
        )?;
        let seconds = Duration::from_millis(100)..=Duration::from_secs(3600);
        require(
            seconds.contains(&self.interval),
            "interval",
            "must be between 100ms and 1h",
        )?;
        require(
            self.confirm_interval <= Duration::from_secs(60),
            "confirm_interval",
            "must be 1m at most",
        )?;
        self.kubernetes.check(require)?;
        self.pyroscope.check(require)?;
        self.bounds.check(require)
    }

    /// The keys in which `other` differs and that are read at the start only.
    #[must_use]
    pub fn only_at_start(&self, other: &Self) -> Vec<&'static str> {
        [
            ("listen", self.listen != other.listen),
            ("web_config_file", self.web_config_file != other.web_config_file),
            ("allow_open_listen", self.allow_open_listen != other.allow_open_listen),
            ("include", self.include != other.include),
            ("exclude", self.exclude != other.exclude),
            ("hide", self.hide != other.hide),
            ("stacks", self.stacks != other.stacks),
            ("pin", self.pin != other.pin),
            ("pin_directory", self.pin_directory != other.pin_directory),
            ("bounds", self.bounds != other.bounds),
            ("kubernetes", self.kubernetes != other.kubernetes),
            ("pyroscope", self.pyroscope != other.pyroscope),
        ]
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
    }

    /// How memory is read.
    #[must_use]
    pub const fn inspection(&self) -> InspectionSettings {
        InspectionSettings {
            census: self.census,
            confirm: self.confirm_interval,
        }
    }

    /// Whether the host is searched for processes.
    #[must_use]
    pub fn searches(&self) -> bool {
        !self.include.is_empty() || (self.exes.is_empty() && self.pids.is_empty())
    }

    /// What the BPF programs are loaded with.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            live_entries_max: self.bounds.live_entries_max,
            stacks_entries_max: self.bounds.stacks_entries_max,
            counts_entries_max: self.bounds.counts_entries_max,
            targets_entries_max: self.bounds.targets_entries_max,
            ring_bytes: self.bounds.ring_bytes,
            hits_per_second_max: self.bounds.hits_per_second_max,
            pause_ns: u64::try_from(self.bounds.pause.as_nanos()).unwrap_or(PAUSE_NS),
            walk_stacks: self.stacks,
            ..Settings::default()
        }
    }
}

impl Bounds {
    fn check(
        &self,
        require: impl Fn(bool, &'static str, &'static str) -> Result<(), ConfigError>,
    ) -> Result<(), ConfigError> {
        for (value, key) in [
            (self.live_entries_max, "bounds.live_entries_max"),
            (self.stacks_entries_max, "bounds.stacks_entries_max"),
            (self.counts_entries_max, "bounds.counts_entries_max"),
            (self.targets_entries_max, "bounds.targets_entries_max"),
        ] {
            require((1..=1 << 26).contains(&value), key, "must be between 1 and 2^26")?;
        }
        let pauses = Duration::from_millis(100)..=Duration::from_secs(3600);
        require(
            pauses.contains(&self.pause),
            "bounds.pause",
            "must be between 100ms and 1h",
        )?;
        // The kernel asks for a power of two that is a multiple of the page size (`kernel/bpf/ringbuf.c`).
        require(
            self.ring_bytes.is_power_of_two() && self.ring_bytes >= 4096,
            "bounds.ring_bytes",
            "must be a power of two of at least 4096",
        )
    }
}

/// Bytes of a configuration file; a thousand long paths fit.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads a regular file: a device or a FIFO could go on, or keep us waiting, for ever.
fn read_bounded(path: &Path) -> io::Result<String> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("larger than 1 MiB"));
    }
    Ok(text)
}

/// Durations as people write them.
pub(crate) mod interval {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::time::Duration;

    pub(crate) fn serialize<S: Serializer>(interval: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*interval))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn a_full_file_is_understood() {
        let config = parse(
            "listen = \"127.0.0.1:9000\"\nexes = [\"/usr/bin/app\"]\npids = [7]\ninterval = \"500ms\"\n\
             hide = [\"mylib\"]\nallow = [\"app::tenants\"]\nstacks = false\n[bounds]\nlive_entries_max = 1000\nring_bytes = 4096\n",
        )
        .unwrap();
        assert_eq!(config.listen.port(), 9000);
        assert_eq!(config.interval, Duration::from_millis(500));
        let settings = config.settings();
        assert_eq!(
            (settings.live_entries_max, settings.ring_bytes, settings.walk_stacks),
            (1000, 4096, false)
        );
        assert_eq!(settings.stacks_entries_max, STACKS_ENTRIES_MAX);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("exclude = [{}]", "`exclude`: a rule needs"),
            ("include = [{ path = \"/x\" }]", "path"),
            ("include = [{ exe = \"\" }]", "`exe`"),
            ("pids = [1]\nlisten = \"nowhere\"", "listen"),
            ("pids = [1]\ncolour = 1", "colour"),
            ("pids = [1]\ninterval = \"1ms\"", "interval"),
            ("pids = [1]\ninterval = \"soon\"", "interval"),
            ("pids = [-1]", "pids"),
            ("pids = [1]\n[bounds]\nring_bytes = 5000", "bounds.ring_bytes"),
            ("pids = [1]\n[bounds]\nring_bytes = 2048", "bounds.ring_bytes"),
            ("pids = [1]\n[bounds]\nlive_entries_max = 0", "bounds.live_entries_max"),
            (
                "pids = [1]\n[bounds]\ntargets_entries_max = 0",
                "bounds.targets_entries_max",
            ),
            ("pids = [1]\n[bounds]\npause = \"1ms\"", "bounds.pause"),
            ("pids = [1", "pids"),
            (
                "pids = [1]\n[kubernetes]\npods = true\nnode = \"a/b\"",
                "kubernetes.node",
            ),
            ("pids = [1]\n[pyroscope]\nurl = \"server:4040\"", "pyroscope.url"),
            ("pids = [1]\n[pyroscope]\nuser = \"anna\"", "pyroscope.password_file"),
            ("pids = [1]\n[pyroscope]\ninterval = \"1ms\"", "pyroscope.interval"),
            (
                "pids = [1]\n[pyroscope]\napplication = \"a{b}\"",
                "pyroscope.application",
            ),
            ("pids = [1]\n[pyroscope.labels]\n\"a b\" = \"c\"", "pyroscope.labels"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn only_a_regular_file_of_some_size_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("leakmon.toml");
        for (len, taken) in [(FILE_BYTES_MAX, true), (FILE_BYTES_MAX + 1, false)] {
            std::fs::write(&path, " ".repeat(len as usize)).unwrap();
            assert_eq!(read_bounded(&path).is_ok(), taken, "{len}");
        }
        assert!(read_bounded(Path::new("/dev/zero")).is_err());
        assert!(read_bounded(folder.path()).is_err());
    }

    #[test]
    fn the_host_is_searched_where_nothing_is_named_or_rules_say_so() {
        for (text, searches) in [
            ("", true),
            ("exclude = [{ user = \"root\" }]", true),
            ("pids = [1]", false),
            ("exes = [\"/x\"]\nexclude = [{ user = \"root\" }]", false),
            ("exes = [\"/x\"]\ninclude = [{ cgroup = \"/a\" }]", true),
        ] {
            assert_eq!(parse(text).unwrap().searches(), searches, "{text}");
        }
        let rules = |count: usize| format!("include = [{}]", "{ user = \"0\" },".repeat(count));
        assert!(parse(&rules(RULES_MAX)).is_ok());
        assert!(parse(&rules(RULES_MAX + 1)).unwrap_err().contains("256"));
    }

    #[test]
    fn too_many_to_watch_are_refused() {
        let many = |count: usize| format!("pids = {:?}", vec![1; count]);
        assert!(parse(&many(WATCHED_MAX)).is_ok());
        assert!(parse(&many(WATCHED_MAX + 1)).unwrap_err().contains("1024"));
    }
}
