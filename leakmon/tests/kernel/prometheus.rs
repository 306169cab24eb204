//! A real Prometheus scrapes a real daemon: every query of the dashboard and of the rules has data there.

use super::{daemon::Daemon, host, victim::Victim};
use serde_json::Value;
use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Two scrapes and two evaluations take a few seconds.
const PATIENCE: Duration = Duration::from_secs(90);

struct Prometheus {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn scraping(program: &Path, daemon: &Daemon) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rules = deployed("prometheus/leakmon.rules.yml");
        let configuration = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\nrule_files: [{rules:?}]\n\
             scrape_configs: [{{job_name: leakmon, static_configs: [{{targets: ['{}']}}]}}]\n",
            daemon.address()
        );
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, configuration).unwrap();
        // Prometheus can't say which port it chose, so one that is free now is chosen for it.
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let child = Command::new(program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            address,
            _folder: folder,
        }
    }

    /// The data of a successful answer; `None` where it is not up yet, or refuses.
    fn ask(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).ok()?;
        let answer: Value = serde_json::from_str(reply.split_once("\r\n\r\n")?.1).ok()?;
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        Some(answer["data"].clone())
    }

    fn has_data(&self, query: &str) -> bool {
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        self.ask(&format!("/api/v1/query?query={escaped}"))
            .is_some_and(|data| data["result"].as_array().is_some_and(|series| !series.is_empty()))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

fn deployed(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(path)
        .canonicalize()
        .unwrap()
}

/// The query without its comparisons with numbers: where nothing leaks and nothing is lost there is nothing beyond them.
fn without_bounds(query: &str) -> String {
    let mut kept = Vec::new();
    let mut words = query.split_whitespace();
    while let Some(word) = words.next() {
        if matches!(word, ">" | ">=" | "<" | "<=" | "==" | "!=") {
            let number = words.next().unwrap_or_default();
            kept.push(number.trim_start_matches(|ch: char| ch.is_ascii_digit() || ch == '.'));
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

fn dashboard_queries() -> Vec<String> {
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(deployed("grafana/leakmon.json")).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let chosen = |query: &str| {
        ["$instance", "$process", "$callsite"]
            .iter()
            .fold(query.replace("$__rate_interval", "10s"), |query, variable| {
                query.replace(variable, ".*")
            })
    };
    targets
        .filter_map(|target| target["expr"].as_str())
        .map(chosen)
        .collect()
}

#[test]
fn bounds_are_taken_off_a_query() {
    for (query, without) in [
        ("up < 1", "up "),
        ("(a and b >= 10) > 3600", "(a and b ) "),
        ("sum(rate(x[5m])) by (y)", "sum(rate(x[5m])) by (y)"),
    ] {
        assert_eq!(without_bounds(query), without);
    }
}

#[test]
fn every_query_of_the_dashboard_and_the_rules_has_data() {
    let test = "every_query_has_data";
    let Some(path) = host::victim_for(test, "leaky_registry") else {
        return;
    };
    let program = Path::new("/usr/bin/prometheus");
    if !program.is_file() {
        return host::skip(test, "prometheus is not installed: run `cargo xtask setup`");
    }
    let daemon = Daemon::start(&["--exe", path.to_str().unwrap()]);
    let mut victim = Victim::start(&path, &[]);
    victim.await_ready();
    victim.go_on();
    victim.await_ready();
    let prometheus = Prometheus::scraping(program, &daemon);
    let deadline = Instant::now() + PATIENCE;
    let rules = loop {
        match prometheus.ask("/api/v1/rules") {
            Some(data) => break data,
            None => assert!(Instant::now() < deadline, "Prometheus does not answer"),
        }
        std::thread::yield_now();
    };
    let groups = rules["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
    let mut queries: Vec<String> = rules.map(|rule| rule["query"].as_str().unwrap().to_owned()).collect();
    queries.extend(dashboard_queries());
    assert!(queries.len() > 25, "{queries:?}");
    let count = queries.len();
    queries.retain(|query| !prometheus.has_data(&without_bounds(query)));
    while !queries.is_empty() {
        assert!(Instant::now() < deadline, "no data for {queries:#?}");
        queries.retain(|query| !prometheus.has_data(&without_bounds(query)));
        // tidy: one scrape a second is what there is to wait for
        std::thread::sleep(Duration::from_millis(250));
    }
    println!("{count} queries have data");
    daemon.stop();
}
