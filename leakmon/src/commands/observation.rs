//! What `run` and `attach` do alike: the observer as the options ask for it, the wait with its progress, and the report at its end.

use super::{
    Destination,
    progress::{REDRAW, Spinner, style},
    say,
};
use crate::{
    analysis::Analyst,
    cli::{FormatName, ObserveArgs},
    daemon::{InspectionSettings, Observer},
    export::{self, Format, report::Report, trace},
    kernel::{Settings, detach},
};
use anyhow::Context;
use indicatif::ProgressBar;
use leakmon_ebpf::abi::RING_BYTES;
use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Write},
    path::Path,
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// Bytes of the event ring where every birth and end goes through it: 300,000 of them between two looks.
const TRACE_RING_BYTES: u32 = 1 << 24;

/// What the options mean to the BPF programs.
fn settings(args: &ObserveArgs) -> Settings {
    Settings {
        walk_stacks: !args.no_stacks,
        remember_walks: !args.no_memo,
        empty_programs: args.empty_programs,
        debug: args.debug_programs,
        trace: args.trace.is_some(),
        ring_bytes: if args.trace.is_some() {
            TRACE_RING_BYTES
        } else {
            RING_BYTES
        },
        ..Settings::default()
    }
}

/// What the options mean to the reading of memory.
const fn inspection(args: &ObserveArgs) -> InspectionSettings {
    InspectionSettings {
        census: !args.no_census,
        confirm: args.confirm_interval,
    }
}

/// An observer of nothing yet, as the options ask for it.
pub(super) fn observer(args: &ObserveArgs, analyst: Analyst) -> anyhow::Result<Observer> {
    let mut observer = Observer::new(settings(args), inspection(args), &args.hide, analyst, None)?;
    if args.trace.is_some() {
        observer.keep_timeline();
    }
    observer.allow(&args.allow)?;
    if let Some(path) = &args.record {
        observer.record(path)?;
    }
    Ok(observer)
}

/// Ends after `duration`, or never without one, and shows on a terminal how long it has been.
pub(super) fn progress(duration: Option<Duration>, what: &'static str) -> impl Future<Output = ()> {
    let begin = Instant::now();
    async move {
        // Draws on stderr, and only where that is a terminal.
        let bar = match duration {
            Some(duration) => ProgressBar::new(duration.as_secs()).with_style(style("{msg} {wide_bar} {pos}/{len} s")),
            None => ProgressBar::new_spinner().with_style(style("{msg} {elapsed}")),
        };
        bar.set_message(what);
        // Cleared when the future is dropped: the report must not share its line.
        let bar = Cleared(bar);
        let end = duration.map(|duration| begin + duration);
        loop {
            let next = Instant::now() + REDRAW;
            sleep_until(end.map_or(next, |end| next.min(end))).await;
            bar.0.set_position(begin.elapsed().as_secs());
            if end.is_some_and(|end| Instant::now() >= end) {
                return;
            }
        }
    }
}

struct Cleared(ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Refuses files that can't be written before there is a report to lose.
pub(super) fn check_output(args: &ObserveArgs) -> anyhow::Result<()> {
    for path in [&args.output, &args.trace].into_iter().flatten() {
        let opened = OpenOptions::new().create(true).append(true).open(path);
        opened.with_context(|| format!("{}: the report can't be written there", path.display()))?;
    }
    Ok(())
}

/// How an observation ended.
pub(super) struct Conclusion {
    /// Whether there is a leak that the user wanted to be told of.
    pub(super) leaks: bool,
    /// Whether any process was watched.
    pub(super) any_target: bool,
}

/// Takes the last numbers, writes the report, and lets the probes go.
pub(super) async fn conclude(
    mut observer: Observer,
    args: &ObserveArgs,
    destination: Destination<'_>,
) -> anyhow::Result<Conclusion> {
    {
        let _naming = Spinner::new("finding the names of stacks");
        observer.finish().await?;
    }
    let report = observer.report();
    let format = match args.format {
        FormatName::Table => Format::Table,
        FormatName::Json => Format::Json,
        FormatName::Folded => Format::Folded,
        FormatName::Pprof => Format::Pprof,
        FormatName::Svg => Format::Svg,
    };
    let written = destination.write(&export::render(format, &report, &destination.options()));
    let traced = args
        .trace
        .as_deref()
        .map_or(Ok(()), |path| write_trace(&observer, path));
    detach::in_background(observer.into_kernel());
    written.and(traced)?;
    Ok(Conclusion {
        leaks: args.fail_on_leak && tell_leaks(&report),
        any_target: !report.targets.is_empty(),
    })
}

fn write_trace(observer: &Observer, path: &Path) -> anyhow::Result<()> {
    let Some(kept) = observer.trace() else {
        return Ok(());
    };
    if kept.lost > 0 {
        tracing::warn!(
            "{} births and ends are not in the trace: there was no room for them",
            kept.lost
        );
    }
    let _writing = Spinner::new("writing the trace");
    let written = File::create(path).and_then(|file| {
        let mut out = BufWriter::new(file);
        trace::write(&kept, &mut out)?;
        out.flush()
    });
    written.with_context(|| format!("{}: the trace can't be written", path.display()))
}

/// Says what leaks, if anything does: the report may be in a file.
fn tell_leaks(report: &Report) -> bool {
    let leaks: Vec<_> = report.leaks().collect();
    if let Some(first) = leaks.first() {
        let name = first.task_type.as_deref().or(first.location.function.as_deref());
        let more = match leaks.len() {
            1 => String::new(),
            count => format!(", and {} more", count - 1),
        };
        let evidence = first.evidence.as_deref().unwrap_or_default();
        say(&format!("leak: {}{more}: {evidence}", name.unwrap_or(&first.id)));
    }
    !leaks.is_empty()
}
