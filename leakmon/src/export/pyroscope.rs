//! Profiles pushed to a Pyroscope server, so that the stacks of a whole fleet are in one place.
//!
//! In: the latest snapshot, and where to push. Out: a `POST /ingest` a process and interval. A push that fails is counted and
//! logged; the next one says everything again, since live tasks are a state and no sum. It makes no profile: [`super::pprof`]
//! does.
//!
//! Source: Grafana Pyroscope's manual, "Reference: Server API", `/ingest`: `name` with labels in braces, `from` and `until` in
//! seconds since 1970, `format=pprof` with the parts `profile` and `sample_type_config` of a form.

use super::{filter::Filter, snapshot::Snapshot};
use crate::{
    config::Pyroscope,
    outbound::{Outbound, OutboundError},
};
use arc_swap::ArcSwap;
use axum::http::{HeaderName, HeaderValue, Method, Uri, header};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::time::{MissedTickBehavior, interval};

/// Processes whose profiles are pushed in one round: those with most live tasks.
const PROCESSES_MAX: usize = 100;
/// Bytes of a reply that are read; it has nothing but a sentence.
const REPLY_BYTES_MAX: usize = 64 * 1024;
/// Bytes of the file with the password.
const PASSWORD_BYTES_MAX: usize = 4096;

/// Between the parts of the form; a gzipped profile that has this line is not to be expected, and would be refused by the server.
const BOUNDARY: &str = "leakmon-profile-6b1f0c5e9d";
/// What the server makes of the profile's value `live`: a state, so it is averaged over time and never summed.
const SAMPLE_TYPES: &str = r#"{"live":{"units":"goroutines","display-name":"live_tasks","aggregation":"average","sampled":false,"cumulative":false}}"#;

/// How pushes came out.
#[derive(Debug, Default)]
pub struct Pushes {
    /// Profiles that the server took.
    pub taken: AtomicU64,
    /// Profiles that it did not.
    pub failed: AtomicU64,
}

impl Pushes {
    /// Both, as a metric shows them.
    #[must_use]
    pub fn by_outcome(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("taken", self.taken.load(Ordering::Relaxed)),
            ("failed", self.failed.load(Ordering::Relaxed)),
        ]
    }
}

/// Why a profile was not taken.
#[derive(Debug, thiserror::Error)]
enum PushError {
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    #[error("{0}: not an address")]
    Address(String),
    #[error("{0}: can't be read: {1}")]
    Password(String, std::io::Error),
    #[error("a header can't have this value: {0}")]
    Header(#[from] axum::http::header::InvalidHeaderValue),
    #[error("the server answered {0}: {1}")]
    Refused(u16, String),
}

/// Pushes for ever, at the settings' interval.
pub async fn push_forever(settings: Pyroscope, snapshot: Arc<ArcSwap<Snapshot>>, pushes: Arc<Pushes>) {
    let mut turn = interval(settings.interval);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first turn comes at once, with nothing to push.
    turn.tick().await;
    let mut since = SystemTime::now();
    loop {
        turn.tick().await;
        let now = SystemTime::now();
        let latest = snapshot.load_full();
        if let Err(error) = push_round(&settings, &latest, (since, now), &pushes).await {
            tracing::warn!("profiles are not pushed: {error}");
        }
        since = now;
    }
}

/// Pushes each process's profile; the first failure ends the round, since the next would most likely fail the same way, slowly.
async fn push_round(
    settings: &Pyroscope,
    snapshot: &Arc<Snapshot>,
    times: (SystemTime, SystemTime),
    pushes: &Pushes,
) -> Result<(), PushError> {
    let mut targets: Vec<_> = snapshot
        .report
        .targets
        .iter()
        .filter(|target| target.task.live > 0)
        .collect();
    targets.sort_by_key(|target| std::cmp::Reverse(target.task.live));
    for target in targets.into_iter().take(PROCESSES_MAX) {
        let shared = Arc::clone(snapshot);
        let filter = Filter {
            tgid: Some(target.pid),
            kind: None,
        };
        let Ok(body) = tokio::task::spawn_blocking(move || form(&shared.pprof(&filter))).await else {
            continue;
        };
        let name = series_name(settings, target.pid, &target.exe);
        let outcome = push(settings, &name, times, body).await;
        let counter = if outcome.is_ok() { &pushes.taken } else { &pushes.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        outcome?;
    }
    Ok(())
}

async fn push(
    settings: &Pyroscope,
    name: &str,
    (from, until): (SystemTime, SystemTime),
    body: Bytes,
) -> Result<(), PushError> {
    let base = settings.url.as_deref().unwrap_or_default().trim_end_matches('/');
    let address = format!(
        "{base}/ingest?name={}&from={}&until={}&format=pprof&spyName=leakmon",
        escaped(name),
        seconds(from),
        seconds(until),
    );
    let uri: Uri = address.parse().map_err(|_| PushError::Address(base.to_owned()))?;
    let (status, reply) = Outbound {
        method: Method::POST,
        uri: &uri,
        headers: headers(settings)?,
        body,
        authorities: settings.ca_file.as_deref(),
        reply_bytes_max: REPLY_BYTES_MAX,
    }
    .send()
    .await?;
    if (200..300).contains(&status) {
        return Ok(());
    }
    let sentence: String = String::from_utf8_lossy(&reply)
        .chars()
        .filter(|ch| !ch.is_control())
        .take(200)
        .collect();
    Err(PushError::Refused(status, sentence))
}

fn headers(settings: &Pyroscope) -> Result<Vec<(HeaderName, HeaderValue)>, PushError> {
    let form = HeaderValue::from_str(&format!("multipart/form-data; boundary={BOUNDARY}"))?;
    let mut headers = vec![(header::CONTENT_TYPE, form)];
    if let Some(tenant) = &settings.tenant {
        headers.push((HeaderName::from_static("x-scope-orgid"), HeaderValue::from_str(tenant)?));
    }
    if let (Some(user), Some(file)) = (&settings.user, &settings.password_file) {
        // Read each time: passwords are changed.
        let failed = |error| PushError::Password(file.display().to_string(), error);
        let mut password = String::new();
        let opened = std::fs::File::open(file).map_err(failed)?;
        std::io::Read::read_to_string(
            &mut std::io::Read::take(opened, PASSWORD_BYTES_MAX as u64),
            &mut password,
        )
        .map_err(failed)?;
        let pair = BASE64_STANDARD.encode(format!("{user}:{}", password.trim_end()));
        headers.push((header::AUTHORIZATION, HeaderValue::from_str(&format!("Basic {pair}"))?));
    }
    Ok(headers)
}

/// A form of two files (RFC 7578).
fn form(profile: &[u8]) -> Bytes {
    let part = |name: &str, file: &str| {
        format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{file}\"\r\n\r\n")
    };
    let mut form = part("profile", "profile.pprof").into_bytes();
    form.extend_from_slice(profile);
    form.extend_from_slice(
        format!(
            "\r\n{}{SAMPLE_TYPES}\r\n--{BOUNDARY}--\r\n",
            part("sample_type_config", "types.json")
        )
        .as_bytes(),
    );
    form.into()
}

/// `APPLICATION{label=value,…}`; letters that would end a value become `_`.
fn series_name(settings: &Pyroscope, tgid: u32, exe: &str) -> String {
    let process = exe.rsplit('/').next().unwrap_or(exe);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let own = [
        ("host", host.trim().to_owned()),
        ("pid", tgid.to_string()),
        ("process", process.to_owned()),
    ];
    let mut name = settings.application.clone();
    let labels = own
        .iter()
        .map(|(key, value)| (*key, value))
        .chain(settings.labels.iter().map(|(key, value)| (key.as_str(), value)));
    for (index, (key, value)) in labels.enumerate() {
        let value: String = value
            .chars()
            .take(100)
            .map(|ch| {
                if ch.is_ascii_alphanumeric() || "-._/:".contains(ch) {
                    ch
                } else {
                    '_'
                }
            })
            .collect();
        let _infallible = write!(name, "{}{key}={value}", if index == 0 { '{' } else { ',' });
    }
    name.push('}');
    name
}

/// Percent-encoded as a part of a query (RFC 3986, 2.3).
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _infallible = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since: Duration| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::pprof::message::Profile;
    use crate::export::{
        samples,
        series::{Limits, SeriesBook},
    };
    use prost::Message;
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::TcpListener,
    };

    /// A request as it came over the wire.
    struct Seen {
        head: String,
        body: Vec<u8>,
    }

    /// A server that takes one request after the other, answers `status`, and gives what it got.
    fn stub(status: u16, requests: usize) -> (String, std::thread::JoinHandle<Vec<Seen>>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = std::thread::spawn(move || {
            let one = |_| {
                let (stream, _) = listener.accept().unwrap();
                let mut stream = BufReader::new(stream);
                let (mut head, mut length) = (String::new(), 0);
                while !head.ends_with("\r\n\r\n") {
                    let start = head.len();
                    assert_ne!(stream.read_line(&mut head).unwrap(), 0, "{head}");
                    if let Some(text) = head[start..].to_ascii_lowercase().strip_prefix("content-length: ") {
                        length = text.trim().parse().unwrap();
                    }
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).unwrap();
                write!(stream.get_mut(), "HTTP/1.1 {status} X\r\ncontent-length: 3\r\n\r\nno\n").unwrap();
                Seen { head, body }
            };
            (0..requests).map(one).collect()
        });
        (url, served)
    }

    /// The profile and the meaning of its values in a form.
    fn parts(body: &[u8]) -> (Profile, serde_json::Value) {
        let find = |bytes: &[u8], text: &str| {
            bytes
                .windows(text.len())
                .position(|window| window == text.as_bytes())
                .unwrap()
        };
        let content = |name: &str| {
            let from = find(body, &format!("name=\"{name}\""));
            let from = from + find(&body[from..], "\r\n\r\n") + 4;
            &body[from..from + find(&body[from..], &format!("\r\n--{BOUNDARY}"))]
        };
        let mut profile = Vec::new();
        flate2::read::GzDecoder::new(content("profile"))
            .read_to_end(&mut profile)
            .unwrap();
        (
            Profile::decode(profile.as_slice()).unwrap(),
            serde_json::from_slice(content("sample_type_config")).unwrap(),
        )
    }

    fn snapshot() -> Arc<Snapshot> {
        let report = samples::busy();
        let series = SeriesBook::new(Limits::default()).observe(&report);
        Arc::new(Snapshot::new(report, series, samples::own(), true))
    }

    fn settings(url: String) -> Pyroscope {
        Pyroscope {
            url: Some(url),
            tenant: Some("team-a".to_owned()),
            labels: [("zone".to_owned(), "a,b}".to_owned())].into(),
            ..Pyroscope::default()
        }
    }

    fn times() -> (SystemTime, SystemTime) {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        (at(1_700_000_000), at(1_700_000_060))
    }

    #[tokio::test]
    async fn each_process_is_pushed_with_its_stacks() {
        let snapshot = snapshot();
        let targets = snapshot.report.targets.iter().filter(|target| target.task.live > 0);
        let mut targets: Vec<_> = targets.collect();
        targets.sort_by_key(|target| std::cmp::Reverse(target.task.live));
        let (url, served) = stub(200, targets.len());
        let folder = tempfile::tempdir().unwrap();
        let password = folder.path().join("password");
        std::fs::write(&password, "secret\n").unwrap();
        let settings = Pyroscope {
            user: Some("anna".to_owned()),
            password_file: Some(password),
            ..settings(url)
        };
        let pushes = Pushes::default();
        push_round(&settings, &snapshot, times(), &pushes).await.unwrap();
        let requests = served.join().unwrap();
        assert_eq!(pushes.taken.load(Ordering::Relaxed), targets.len() as u64);
        for (request, target) in requests.iter().zip(targets) {
            let line = request.head.lines().next().unwrap();
            assert!(line.starts_with("POST /ingest?name=leakmon.tasks%7Bhost%3D"), "{line}");
            for part in [
                &format!("%2Cpid%3D{}%2C", target.pid),
                "%2Czone%3Da_b_%7D",
                "from=1700000000",
                "until=1700000060",
                "format=pprof",
            ] {
                assert!(line.contains(part), "{part}: {line}");
            }
            let head = request.head.to_ascii_lowercase();
            assert!(head.contains("x-scope-orgid: team-a"), "{head}");
            assert!(head.contains("authorization: basic yw5uytpzzwnyzxq="), "{head}");
            let (profile, types) = parts(&request.body);
            let name = |index: i64| profile.string_table[usize::try_from(index).unwrap()].as_str();
            let live = profile
                .sample_type
                .iter()
                .position(|kind| name(kind.r#type) == "live")
                .unwrap();
            assert!(types["live"].is_object(), "{types}");
            // The profile is the process's own: its stacks' live counts are the report's.
            let filter = Filter {
                tgid: Some(target.pid),
                kind: None,
            };
            let reported: u64 = filter
                .apply(&snapshot.report)
                .callsites
                .iter()
                .map(|site| site.live)
                .sum();
            let pushed: i64 = profile.sample.iter().map(|sample| sample.value[live]).sum();
            assert_eq!(u64::try_from(pushed).unwrap(), reported);
        }
    }

    #[tokio::test]
    async fn a_refusal_is_counted_and_ends_the_round() {
        let (url, served) = stub(422, 1);
        let pushes = Pushes::default();
        let error = push_round(&settings(url), &snapshot(), times(), &pushes)
            .await
            .unwrap_err();
        served.join().unwrap();
        assert!(error.to_string().contains("422: no"), "{error}");
        assert_eq!((pushes.taken.into_inner(), pushes.failed.into_inner()), (0, 1));
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_an_error_and_no_wait() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let pushes = Pushes::default();
        assert!(push_round(&settings(url), &snapshot(), times(), &pushes).await.is_err());
        assert_eq!(pushes.failed.into_inner(), 1);
    }
}
