//! Reports for the tests of the formats.

use super::report::{
    CallsiteReport, EntityCounts, Frame, Location, LossReport, PodNames, Report, SCHEMA, SiteCounts, StackReport,
    StateCounts, TargetReport, TargetStatus, Verdict,
};
use crate::self_metrics::{Configured, MapFill, SelfMetrics};
use std::time::{Duration, SystemTime};

/// Nothing watched, nothing lost.
pub(crate) fn empty() -> Report {
    Report {
        schema: SCHEMA,
        observed_seconds: 10.0,
        targets: Vec::new(),
        callsites: Vec::new(),
        loss: LossReport::default(),
    }
}

/// leakmon's own numbers, one of each.
pub(crate) fn own() -> SelfMetrics {
    SelfMetrics {
        events: vec![("stack", 7), ("changed", 90)],
        events_dropped: vec![("ring_full", 3), ("live_full", 0)],
        maps: vec![MapFill {
            map: "LIVE",
            entries: 49,
            capacity: 1 << 20,
        }],
        targets: vec![("attached", 1), ("partial", 1)],
        analyses: vec![("done", 5), ("time", 0), ("memory", 1)],
        analyses_not_repeated: 3,
        analysis_peak_bytes: 48 << 20,
        cheap_sites: 49,
        slow_sites: 1,
        census_seconds: 0.015,
        census_bytes_read: 7 << 20,
        images: 2,
        files_analysed: 31,
        http_evicted: 2,
        profiles_pushed: vec![("taken", 4), ("failed", 1)],
        configured: Configured {
            successful: true,
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        },
    }
}

/// A process without counts.
pub(crate) fn target(tgid: u32, exe: &str) -> TargetReport {
    TargetReport {
        id: format!("{tgid}-1"),
        pid: tgid,
        exe: exe.to_owned(),
        build_id: Some("00ff".to_owned()),
        runtime: Some("tokio".to_owned()),
        runtime_version: Some("1.54.1".to_owned()),
        status: TargetStatus::Attached,
        reason: None,
        sites: SiteCounts {
            spawn: 25,
            end: 25,
            slow: 0,
        },
        task: EntityCounts::default(),
        thread: None,
        exited: false,
        census: None,
        container: None,
        pod_uid: None,
        kubernetes: None,
    }
}

/// A callsite of `app::accept` without counts and stacks.
pub(crate) fn callsite(target: &TargetReport, id: &str, kind: &'static str) -> CallsiteReport {
    CallsiteReport {
        id: id.to_owned(),
        target: target.id.clone(),
        pid: target.pid,
        kind,
        live: 0,
        spawned: 0,
        ended: 0,
        born_before_attach: 0,
        bytes: None,
        oldest_seconds: None,
        growth_per_minute: None,
        verdict: Verdict::Unknown,
        evidence: None,
        states: None,
        task_type: Some("app::handle_conn::{{closure}}".to_owned()),
        location: Location {
            function: Some("app::accept".to_owned()),
            file: Some("src/main.rs".to_owned()),
            line: Some(12),
            ..Location::default()
        },
        stacks: Vec::new(),
    }
}

pub(crate) fn frame(function: &str, file: &str, line: u32) -> Frame {
    Frame {
        function: Some(function.to_owned()),
        file: Some(file.to_owned()),
        line: Some(line),
        image: Some("app".to_owned()),
        build_id: Some("00ff".into()),
        offset: 0x1234,
        inlined: false,
    }
}

fn unnamed(image: Option<&str>, offset: u64) -> Frame {
    Frame {
        image: image.map(str::to_owned),
        offset,
        ..Frame::default()
    }
}

fn stack(live: u64, complete: bool, frames: Vec<Frame>) -> StackReport {
    StackReport {
        live,
        spawned: live,
        oldest_seconds: (live > 0).then_some(9.2),
        complete,
        frames,
    }
}

/// Two processes, a leak, a thread, a callsite without names, a partial target, losses.
pub(crate) fn busy() -> Report {
    let mut app = target(83_920, "/usr/bin/app");
    app.task = EntityCounts {
        spawned: 474,
        ended: 431,
        live: 43,
    };
    app.thread = Some(EntityCounts {
        spawned: 4,
        ended: 0,
        live: 4,
    });
    let mut worker = target(83_931, "/opt/worker/bin/worker");
    worker.runtime_version = None;
    worker.build_id = None;
    worker.container = Some("0123456789abcdef".repeat(4));
    worker.pod_uid = Some("0a1b2c3d-1111-2222-3333-0123456789ab".to_owned());
    worker.kubernetes = Some(PodNames {
        namespace: "shop".to_owned(),
        pod: "worker-7c9f".to_owned(),
        container: "worker".to_owned(),
    });
    worker.status = TargetStatus::Partial;
    worker.reason = Some("2 of 9 task types have no birth site".to_owned());
    worker.task = EntityCounts {
        spawned: 8,
        ended: 6,
        live: 2,
    };

    let mut threads = callsite(&app, "77aa77aa77aa77aa", "thread");
    (threads.live, threads.spawned) = (4, 4);
    threads.task_type = None;
    threads.oldest_seconds = Some(192.0);
    threads.location = Location {
        function: Some("app::Pool::start".to_owned()),
        ..Location::default()
    };

    Report {
        callsites: vec![leak(&app), threads, stripped(&worker), steady(&app)],
        targets: vec![app, worker],
        loss: LossReport {
            events_dropped: 3,
            unmatched_ends: 12,
            replaced: 1,
            ..LossReport::default()
        },
        ..empty()
    }
}

/// A callsite with everything known, and three stacks: one large, one truncated, one without a live task.
fn leak(app: &TargetReport) -> CallsiteReport {
    let mut leak = callsite(app, "9f3c0a1b2c3d4e5f", "task");
    (leak.live, leak.spawned, leak.ended) = (43, 60, 17);
    leak.oldest_seconds = Some(9.2);
    leak.growth_per_minute = Some(120.0);
    leak.verdict = Verdict::Leak;
    leak.evidence = Some("43 alive, the count rose in 9 of 10 windows and never fell".to_owned());
    leak.states = Some(StateCounts {
        sampled: 43,
        idle: 43,
        ..StateCounts::default()
    });
    let large = vec![
        frame(
            "tokio::runtime::task::core::Cell<T,S>::new",
            "src/runtime/task/core.rs",
            227,
        ),
        Frame {
            inlined: true,
            ..frame("tokio::task::spawn::spawn", "src/task/spawn.rs", 176)
        },
        frame("app::accept", "src/main.rs", 12),
        Frame {
            inlined: true,
            ..frame("app::serve::{{closure}}", "src/main.rs", 14)
        },
        frame("app::main::{{closure}}", "src/main.rs", 40),
        frame(
            "tokio::runtime::park::CachedParkThread::block_on",
            "src/runtime/park.rs",
            284,
        ),
        frame("app::main", "src/main.rs", 41),
        frame("std::rt::lang_start::{{closure}}", "library/std/src/rt.rs", 195),
        frame("std::rt::lang_start_internal", "library/std/src/rt.rs", 175),
        frame("main", "src/main.rs", 38),
        unnamed(Some("libc.so.6"), 0x2_7249),
        frame("_start", "sysdeps/x86_64/start.S", 115),
    ];
    let accept = || frame("app::accept", "src/main.rs", 12);
    leak.stacks = vec![
        stack(40, true, large),
        stack(3, false, vec![accept(), unnamed(None, 0x7fff_0000)]),
        stack(0, true, vec![accept(), frame("app::retired", "src/main.rs", 99)]),
    ];
    leak
}

/// A callsite in a stripped binary.
fn stripped(worker: &TargetReport) -> CallsiteReport {
    let mut stripped = callsite(worker, "11aa22bb33cc44dd", "blocking");
    (stripped.live, stripped.spawned, stripped.ended) = (2, 8, 6);
    stripped.oldest_seconds = Some(14_700.0);
    stripped.task_type = None;
    stripped.location = Location {
        image: Some("worker".to_owned()),
        offset: Some(0x1_2f40),
        ..Location::default()
    };
    stripped.stacks = vec![stack(
        2,
        true,
        vec![unnamed(Some("worker"), 0x1_2f40), unnamed(Some("worker"), 0x9_0010)],
    )];
    stripped
}

/// A callsite without live tasks and with long names.
fn steady(app: &TargetReport) -> CallsiteReport {
    let mut steady = callsite(app, "0123456789abcdef", "task");
    (steady.spawned, steady.ended) = (414, 414);
    steady.verdict = Verdict::Steady;
    let inner = "app::timeout::Timeout<app::client::fetch<alloc::string::String>::{{closure}}>";
    steady.task_type = Some(format!("app::retry::Retry<{inner}, core::time::Duration>"));
    steady.location.file = Some("src/client/connections/outgoing/retry.rs".to_owned());
    steady
}

/// Names that try to write to the terminal, to end labels, to forge lines and frames.
pub(crate) fn hostile() -> Report {
    let evil = "a\u{1b}]0;owned\u{7}\u{202e}b;c\n\"d\\{e=\"f\"} 9\u{9b}2J\u{200b}";
    let mut app = target(666, &format!("/tmp/{}", evil.replace('/', "")));
    app.status = TargetStatus::Unsupported;
    app.reason = Some(evil.to_owned());
    app.runtime_version = Some(evil.to_owned());
    app.task = EntityCounts {
        spawned: 2,
        ended: 0,
        live: 2,
    };
    let mut callsite = callsite(&app, "00000000deadbeef", "task");
    (callsite.live, callsite.spawned) = (2, 2);
    callsite.verdict = Verdict::Suspect;
    callsite.evidence = Some(evil.to_owned());
    callsite.task_type = Some(format!("{evil}<{}>", "x".repeat(2_000)));
    callsite.location.function = Some(evil.to_owned());
    callsite.location.file = Some(evil.to_owned());
    let mut image = unnamed(Some(evil), 0x10);
    image.file = Some(evil.to_owned());
    callsite.stacks = vec![stack(2, true, vec![frame(evil, evil, 1), image])];
    Report {
        targets: vec![app],
        callsites: vec![callsite],
        ..empty()
    }
}
