//! What `run` and `attach` do alike: the wait with its progress, and the report at its end.

use super::Destination;
use crate::{
    cli::{FormatName, ObserveArgs},
    daemon::Observer,
    export::{self, Format},
    kernel::detach,
};
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use std::{fs::OpenOptions, time::Duration};
use tokio::time::{Instant, sleep_until};

/// How often the progress line changes.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

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
            let next = Instant::now() + PROGRESS_INTERVAL;
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

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Refuses a report file that can't be written before there is a report to lose.
pub(super) fn check_output(args: &ObserveArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.output {
        let opened = OpenOptions::new().create(true).append(true).open(path);
        opened.with_context(|| format!("{}: the report can't be written there", path.display()))?;
    }
    Ok(())
}

/// Takes the last numbers, writes the report, and lets the probes go.
pub(super) async fn conclude(
    mut observer: Observer,
    args: &ObserveArgs,
    destination: Destination<'_>,
) -> anyhow::Result<()> {
    observer.finish().await?;
    let report = observer.report();
    let format = match args.format {
        FormatName::Table => Format::Table,
        FormatName::Json => Format::Json,
        FormatName::Folded => Format::Folded,
        FormatName::Pprof => Format::Pprof,
        FormatName::Svg => Format::Svg,
    };
    let written = destination.write(&export::render(format, &report, &destination.options()));
    detach::in_background(observer.into_kernel());
    written
}
