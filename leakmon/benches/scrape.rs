//! Time of a scrape: `GET /metrics` over loopback with 1,000 callsites exported, rendered anew each time.
//!
//! Prints the median and the 99th percentile, and fails where a scrape takes longer than it may. A second row shows the
//! scrape of a snapshot whose text another client has asked for already.

use arc_swap::ArcSwap;
use leakmon::export::filter::Filter;
use leakmon::export::http::{self, Source};
use leakmon::export::report::{
    CallsiteReport, EntityCounts, Location, LossReport, Report, SCHEMA, SiteCounts, TargetReport, TargetStatus, Verdict,
};
use leakmon::export::series::{Limits, SeriesBook};
use leakmon::export::snapshot::{Heartbeat, Snapshot};
use leakmon::self_metrics::SelfMetrics;
use std::future::pending;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};

const PROCESSES: u32 = 10;
const CALLSITES: u64 = 100;
const SCRAPES: usize = 500;
/// What a scrape with 1,000 exported series may take.
const LIMIT: Duration = Duration::from_millis(10);

fn report() -> Report {
    let mut report = Report {
        schema: SCHEMA,
        observed_seconds: 60.0,
        targets: Vec::new(),
        callsites: Vec::new(),
        loss: LossReport::default(),
    };
    for tgid in 1..=PROCESSES {
        let target = TargetReport {
            id: format!("{tgid}-1"),
            pid: tgid,
            exe: format!("/usr/local/bin/service-{tgid}"),
            build_id: None,
            runtime: Some("tokio".to_owned()),
            runtime_version: None,
            status: TargetStatus::Attached,
            reason: None,
            sites: SiteCounts::default(),
            task: EntityCounts::default(),
            thread: None,
            exited: false,
            census: None,
            container: None,
            pod_uid: None,
            kubernetes: None,
        };
        report
            .callsites
            .extend((0..CALLSITES).map(|number| callsite(&target, number)));
        report.targets.push(target);
    }
    report
}

fn callsite(target: &TargetReport, number: u64) -> CallsiteReport {
    CallsiteReport {
        id: format!("{:08x}{number:08x}", target.pid).chars().rev().collect(),
        target: target.id.clone(),
        pid: target.pid,
        kind: "task",
        live: number,
        spawned: 1_000 * number,
        ended: 999 * number,
        born_before_attach: 0,
        bytes: None,
        oldest_seconds: Some(12.5),
        growth_per_minute: None,
        verdict: Verdict::Leak,
        evidence: None,
        states: None,
        task_type: Some("service::connection::handle::{{closure}}".to_owned()),
        location: Location {
            function: Some(format!(
                "service::connection::listener::accept_loop_{number}::{{{{closure}}}}"
            )),
            file: Some("crates/service/src/connection/listener.rs".to_owned()),
            line: Some(100 + number as u32),
            ..Location::default()
        },
        stacks: Vec::new(),
    }
}

fn snapshot() -> Snapshot {
    let report = report();
    let series = SeriesBook::new(Limits::default()).observe(&report);
    Snapshot::new(report, series, SelfMetrics::default(), true)
}

/// One request on a kept connection; gives the body's length.
async fn scrape(stream: &mut BufStream<TcpStream>) -> std::io::Result<usize> {
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: bench\r\n\r\n")
        .await?;
    stream.flush().await?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(length)
}

fn row(out: &mut impl Write, what: &str, mut times: Vec<Duration>) -> std::io::Result<Duration> {
    times.sort_unstable();
    let (median, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    writeln!(
        out,
        "{what:<32} median {median:>10.1?}   p99 {p99:>10.1?}   of {}",
        times.len()
    )?;
    Ok(p99)
}

async fn run() -> std::io::Result<bool> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let source = Source {
        snapshot: Arc::new(ArcSwap::from_pointee(snapshot())),
        heartbeat: Arc::new(Heartbeat::since(Instant::now())),
        evicted: Arc::default(),
        pushes: Arc::default(),
    };
    let server = tokio::spawn(http::serve(
        listener,
        source.clone(),
        Arc::new(http::Gate::open()),
        http::Limits::default(),
        pending(),
    ));
    let mut stream = BufStream::new(TcpStream::connect(address).await?);
    let (mut fresh, mut shared) = (Vec::new(), Vec::new());
    let mut bytes = 0;
    for _ in 0..SCRAPES {
        source.snapshot.store(Arc::new(snapshot()));
        for times in [&mut fresh, &mut shared] {
            let start = Instant::now();
            bytes = scrape(&mut stream).await?;
            times.push(start.elapsed());
        }
    }
    server.abort();
    let out = &mut std::io::stdout().lock();
    let exported = source.snapshot.load();
    let text = exported.metrics(&Filter::default()).map_err(std::io::Error::other)?;
    let samples = text
        .split(|byte| *byte == b'\n')
        .filter(|line| line.starts_with(b"leakmon_"))
        .count();
    writeln!(
        out,
        "{} callsites with series, {samples} samples, {bytes} bytes",
        exported.series.series.len()
    )?;
    let p99 = row(out, "scrape of a new snapshot", fresh)?;
    row(out, "scrape of a snapshot asked before", shared)?;
    if p99 > LIMIT {
        writeln!(out, "too slow: a scrape may take {LIMIT:?}")?;
    }
    Ok(p99 <= LIMIT)
}

fn main() -> std::io::Result<()> {
    // One thread, as in the daemon.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if runtime.block_on(run())? {
        Ok(())
    } else {
        Err(std::io::Error::other("the scrape is too slow"))
    }
}
