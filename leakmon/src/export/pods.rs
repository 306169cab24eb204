//! Names of pods and containers, for labels.
//!
//! In: the Kubernetes API server's list of this node's pods. Out: namespace, pod and container of a report's targets, by the
//! container's id, which a process's cgroup tells. The list is asked for only when a container is unknown, at most once an
//! interval, and kept meanwhile: a scrape never waits for it, and an API server that is away costs labels and nothing else.
//!
//! Source: Kubernetes API v1, `PodList`: `status.containerStatuses[].containerID` is `RUNTIME://ID`.

use super::report::{PodNames, Report, TargetReport};
use crate::{
    config::Kubernetes,
    outbound::{Outbound, OutboundError},
};
use arc_swap::ArcSwap;
use axum::http::{HeaderValue, Method, Uri, header};
use bytes::Bytes;
use serde::Deserialize;
use std::{collections::HashMap, path::PathBuf, sync::Arc};
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval},
};

/// Bytes of the list: the kubelet allows some hundred pods a node, each of some ten KiB at most.
const LIST_BYTES_MAX: usize = 32 << 20;
/// Containers that are kept.
const CONTAINERS_MAX: usize = 16_384;

/// What is known, by the container's id.
#[derive(Debug, Default)]
pub struct Pods {
    known: ArcSwap<HashMap<String, PodNames>>,
    wanted: Notify,
}

impl Pods {
    /// Gives the targets of a report their names; where some are unknown, they are asked for in the background.
    pub fn name(&self, report: &mut Report) {
        let known = self.known.load();
        let contained = |target: &TargetReport| target.container.is_some() && !target.exited;
        for target in report.targets.iter_mut().filter(|target| contained(target)) {
            let names = target.container.as_deref().and_then(|id| known.get(id));
            if names.is_none() {
                self.wanted.notify_one();
            }
            target.kubernetes = names.cloned();
        }
    }

    /// Asks for ever: when a container is unknown, at most once an interval.
    pub async fn ask_forever(self: Arc<Self>, settings: Kubernetes) {
        let mut turn = interval(settings.interval);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turn.tick().await;
            self.wanted.notified().await;
            match list(&settings).await.and_then(|list| parse(&list)) {
                Ok(known) => self.known.store(Arc::new(known)),
                Err(error) => tracing::warn!("names of pods are not known: {error}"),
            }
        }
    }
}

/// Why the list is not there.
#[derive(Debug, thiserror::Error)]
enum PodsError {
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    #[error("{0}: not an address of an API server: set kubernetes.api_server")]
    Address(String),
    #[error("{}: {source}", path.display())]
    Token { path: PathBuf, source: std::io::Error },
    #[error("the token can't be a header: {0}")]
    Header(#[from] axum::http::header::InvalidHeaderValue),
    #[error("the API server answered {0}: the service account must be allowed to list pods")]
    Refused(u16),
    #[error("the API server's answer is not understood: {0}")]
    Parse(#[from] serde_json::Error),
}

async fn list(settings: &Kubernetes) -> Result<Bytes, PodsError> {
    let server = settings.api_server.trim_end_matches('/');
    let address = format!(
        "{server}/api/v1/pods?fieldSelector=spec.nodeName%3D{}&limit=1000",
        settings.node
    );
    let uri: Uri = address.parse().map_err(|_| PodsError::Address(address))?;
    // Read each time: the kubelet renews it.
    let token = std::fs::read_to_string(&settings.token_file).map_err(|error| PodsError::Token {
        path: settings.token_file.clone(),
        source: error,
    })?;
    let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.trim()))?;
    bearer.set_sensitive(true);
    let (status, body) = Outbound {
        method: Method::GET,
        uri: &uri,
        headers: vec![
            (header::AUTHORIZATION, bearer),
            (header::ACCEPT, HeaderValue::from_static("application/json")),
        ],
        body: Bytes::new(),
        authorities: Some(&settings.ca_file),
        reply_bytes_max: LIST_BYTES_MAX,
    }
    .send()
    .await?;
    if status == 200 {
        Ok(body)
    } else {
        Err(PodsError::Refused(status))
    }
}

#[derive(Deserialize)]
struct PodList {
    items: Vec<Pod>,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    namespace: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    container_statuses: Vec<ContainerStatus>,
    init_container_statuses: Vec<ContainerStatus>,
    ephemeral_container_statuses: Vec<ContainerStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    #[serde(default, rename = "containerID")]
    container_id: String,
}

fn parse(list: &[u8]) -> Result<HashMap<String, PodNames>, PodsError> {
    let list: PodList = serde_json::from_slice(list)?;
    let mut known = HashMap::new();
    for Pod { metadata, status } in list.items {
        let statuses = [
            status.container_statuses,
            status.init_container_statuses,
            status.ephemeral_container_statuses,
        ];
        for container in statuses.into_iter().flatten() {
            // One that has not started yet has no id.
            let Some((_, id)) = container.container_id.split_once("://") else {
                continue;
            };
            if known.len() < CONTAINERS_MAX {
                let names = PodNames {
                    namespace: metadata.namespace.clone(),
                    pod: metadata.name.clone(),
                    container: container.name,
                };
                known.insert(id.to_owned(), names);
            }
        }
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::samples;
    use std::{
        io::{Read, Write},
        net::TcpListener,
        time::Duration,
    };

    const LIST: &str = r#"{"kind":"PodList","items":[
        {"metadata":{"name":"web-1","namespace":"shop"},"status":{
            "containerStatuses":[{"name":"app","containerID":"containerd://aa11"},{"name":"waiting"}],
            "initContainerStatuses":[{"name":"setup","containerID":"cri-o://bb22"}]}},
        {"metadata":{"name":"pending","namespace":"shop"}}]}"#;

    #[test]
    fn every_started_container_has_names() {
        let known = parse(LIST.as_bytes()).unwrap();
        let mut found: Vec<_> = known
            .iter()
            .map(|(id, names)| (id.as_str(), names.pod.as_str(), names.container.as_str()))
            .collect();
        found.sort_unstable();
        assert_eq!(found, [("aa11", "web-1", "app"), ("bb22", "web-1", "setup")]);
        assert!(parse(b"{}").is_err() && parse(b"no").is_err());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let statuses: Vec<String> = (0..=CONTAINERS_MAX)
            .map(|number| format!(r#"{{"name":"c","containerID":"x://{number}"}}"#))
            .collect();
        let list = format!(
            r#"{{"items":[{{"metadata":{{"name":"p","namespace":"n"}},"status":{{"containerStatuses":[{}]}}}}]}}"#,
            statuses.join(",")
        );
        assert_eq!(parse(list.as_bytes()).unwrap().len(), CONTAINERS_MAX);
    }

    #[tokio::test]
    async fn an_unknown_container_is_asked_for_with_the_token_and_then_known() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let api_server = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut text = String::new();
            let mut bytes = [0; 4096];
            while !text.contains("\r\n\r\n") {
                let len = stream.read(&mut bytes).unwrap();
                text.push_str(&String::from_utf8_lossy(&bytes[..len]));
            }
            write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{LIST}",
                LIST.len()
            )
            .unwrap();
            text
        });
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        std::fs::write(&token_file, "t0ken\n").unwrap();
        let settings = Kubernetes {
            api_server,
            node: "node-7".to_owned(),
            token_file,
            interval: Duration::from_millis(100),
            ..Kubernetes::default()
        };
        let pods = Arc::new(Pods::default());
        let asking = tokio::spawn(Arc::clone(&pods).ask_forever(settings));
        let mut report = samples::empty();
        for container in [Some("aa11"), Some("cc33"), None] {
            let mut target = samples::target(1, "/usr/bin/app");
            target.container = container.map(str::to_owned);
            report.targets.push(target);
        }
        tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                pods.name(&mut report);
                if report.targets[0].kubernetes.is_some() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        asking.abort();
        let named: Vec<_> = report
            .targets
            .iter()
            .map(|target| target.kubernetes.as_ref().map(|names| names.pod.as_str()))
            .collect();
        assert_eq!(named, [Some("web-1"), None, None]);
        let request = server.join().unwrap();
        assert!(
            request.starts_with("GET /api/v1/pods?fieldSelector=spec.nodeName%3Dnode-7&limit=1000 HTTP/1.1"),
            "{request}"
        );
        assert!(
            request.to_ascii_lowercase().contains("authorization: bearer t0ken"),
            "{request}"
        );
    }
}
