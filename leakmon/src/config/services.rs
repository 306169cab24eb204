//! What has to do with other servers: names of pods, and profiles.
//!
//! In: sections of the configuration file. Out: settings that hold together. Nobody is asked here.

use super::{ConfigError, interval};
use documented::DocumentedFields;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

/// Labels that profiles may get.
const LABELS_MAX: usize = 32;

/// Where names of pods come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Kubernetes {
    /// Whether the API server is asked for the names of this node's pods. leakmon's service account must be allowed to list pods.
    pub pods: bool,
    /// Name of this node; the environment's `NODE_NAME` where empty.
    pub node: String,
    /// Address of the API server.
    pub api_server: String,
    /// Token of the service account, read for each request.
    pub token_file: PathBuf,
    /// Certificate of the API server's authority.
    pub ca_file: PathBuf,
    /// Least time between two requests: 1s to 1h. There are requests only while a container is unknown.
    #[serde(with = "interval")]
    pub interval: Duration,
}

/// Where profiles go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Pyroscope {
    /// Address of the server, without `/ingest`. Nothing is pushed without one.
    pub url: Option<String>,
    /// How often profiles are pushed: 1s to 1h.
    #[serde(with = "interval")]
    pub interval: Duration,
    /// Name of the application; labels `host`, `pid` and `process` tell the profiles apart.
    pub application: String,
    /// Further labels.
    pub labels: BTreeMap<String, String>,
    /// Tenant, sent as `X-Scope-OrgID`.
    pub tenant: Option<String>,
    /// User for basic auth.
    pub user: Option<String>,
    /// File with that user's password, read for each push.
    pub password_file: Option<PathBuf>,
    /// Certificates of the authorities that the server's certificate is checked against; the system's without one.
    pub ca_file: Option<PathBuf>,
}

/// Where a pod finds what its service account needs (Kubernetes manual, "Accessing the API from a Pod").
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            pods: false,
            node: String::new(),
            api_server: "https://kubernetes.default.svc".to_owned(),
            token_file: Path::new(SERVICE_ACCOUNT).join("token"),
            ca_file: Path::new(SERVICE_ACCOUNT).join("ca.crt"),
            interval: Duration::from_secs(15),
        }
    }
}

impl Default for Pyroscope {
    fn default() -> Self {
        Self {
            url: None,
            interval: Duration::from_secs(60),
            application: "leakmon.tasks".to_owned(),
            labels: BTreeMap::new(),
            tenant: None,
            user: None,
            password_file: None,
            ca_file: None,
        }
    }
}

impl Kubernetes {
    pub(super) fn check(
        &self,
        require: impl Fn(bool, &'static str, &'static str) -> Result<(), ConfigError>,
    ) -> Result<(), ConfigError> {
        let seconds = Duration::from_secs(1)..=Duration::from_secs(3600);
        let within = "must be between 1s and 1h";
        let Kubernetes {
            pods, node, interval, ..
        } = self;
        require(seconds.contains(interval), "kubernetes.interval", within)?;
        // A DNS subdomain (Kubernetes manual, "Object Names and IDs").
        let named = |name: &str| {
            name.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
        };
        require(
            !pods || (!node.is_empty() && named(node)),
            "kubernetes.node",
            "must be this node's name, here or as NODE_NAME in the environment",
        )
    }
}

impl Pyroscope {
    pub(super) fn check(
        &self,
        require: impl Fn(bool, &'static str, &'static str) -> Result<(), ConfigError>,
    ) -> Result<(), ConfigError> {
        let seconds = Duration::from_secs(1)..=Duration::from_secs(3600);
        let within = "must be between 1s and 1h";
        let Pyroscope {
            url,
            interval,
            user,
            password_file,
            labels,
            application,
            ..
        } = self;
        require(seconds.contains(interval), "pyroscope.interval", within)?;
        let begins = |start| url.as_ref().is_none_or(|url| url.starts_with(start));
        require(
            begins("http://") || begins("https://"),
            "pyroscope.url",
            "must begin with http:// or https://",
        )?;
        require(
            user.is_some() == password_file.is_some(),
            "pyroscope.user",
            "and `pyroscope.password_file` go together",
        )?;
        let plain = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        };
        require(
            plain(application),
            "pyroscope.application",
            "may have letters, digits, `_`, `.` and `-` only",
        )?;
        require(
            labels.len() <= LABELS_MAX && labels.keys().all(|key| plain(key)),
            "pyroscope.labels",
            "may be 32 at most, their names of letters, digits, `_`, `.` and `-` only",
        )
    }
}
