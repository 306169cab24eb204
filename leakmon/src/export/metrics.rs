//! Prometheus text.
//!
//! In: the bounded series, what was lost, leakmon's own numbers. Out: text format 0.0.4. It chooses no series: `series`
//! does.
//!
//! Source of the format: the Prometheus manual, "Exposition formats"; names follow its "Metric and label naming".

use super::filter::Filter;
use super::report::LossReport;
use super::series::{Labels, Series, SeriesTable, Values};
use crate::self_metrics::SelfMetrics;
use prometheus::TextEncoder;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use std::time::SystemTime;

/// Media type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A metric that callsites have.
struct CallsiteMetric {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    /// The sample of a series; `None` where it has none.
    sample: fn(&Labels, &Values) -> Option<f64>,
}

/// All of them; the labels are those of [`Labels`].
const CALLSITE_METRICS: [CallsiteMetric; 9] = [
    CallsiteMetric {
        name: "leakmon_tasks_live",
        help: "Tasks alive that were spawned at this callsite.",
        kind: MetricType::GAUGE,
        sample: |labels, values| is_task(labels).then_some(values.live as f64),
    },
    CallsiteMetric {
        name: "leakmon_tasks_spawned_total",
        help: "Tasks spawned at this callsite since the attach.",
        kind: MetricType::COUNTER,
        sample: |labels, values| is_task(labels).then_some(values.spawned as f64),
    },
    CallsiteMetric {
        name: "leakmon_tasks_ended_total",
        help: "Tasks spawned at this callsite that have ended.",
        kind: MetricType::COUNTER,
        sample: |labels, values| is_task(labels).then_some(values.ended as f64),
    },
    CallsiteMetric {
        name: "leakmon_tasks_oldest_age_seconds",
        help: "Age of the oldest task alive that was spawned at this callsite.",
        kind: MetricType::GAUGE,
        sample: |labels, values| values.oldest_seconds.filter(|age| age.is_finite() && is_task(labels)),
    },
    CallsiteMetric {
        name: "leakmon_leak_suspected",
        help: "1 where the verdict on this callsite is leak, else 0.",
        kind: MetricType::GAUGE,
        sample: |_, values| Some(f64::from(u8::from(values.leak))),
    },
    CallsiteMetric {
        name: "leakmon_threads_live",
        help: "Threads alive that were started at this callsite.",
        kind: MetricType::GAUGE,
        sample: |labels, values| is_thread(labels).then_some(values.live as f64),
    },
    CallsiteMetric {
        name: "leakmon_threads_started_total",
        help: "Threads started at this callsite since the attach.",
        kind: MetricType::COUNTER,
        sample: |labels, values| is_thread(labels).then_some(values.spawned as f64),
    },
    CallsiteMetric {
        name: "leakmon_threads_ended_total",
        help: "Threads started at this callsite that have ended.",
        kind: MetricType::COUNTER,
        sample: |labels, values| is_thread(labels).then_some(values.ended as f64),
    },
    CallsiteMetric {
        name: "leakmon_tasks_held",
        help: "Finished tasks whose memory a JoinHandle or JoinSet still holds, by the last census.",
        kind: MetricType::GAUGE,
        sample: |labels, values| is_held(labels).then_some(values.live as f64),
    },
];

fn is_thread(labels: &Labels) -> bool {
    labels.kind == "thread"
}

fn is_held(labels: &Labels) -> bool {
    labels.kind == "held"
}

fn is_task(labels: &Labels) -> bool {
    !is_thread(labels) && !is_held(labels)
}

/// The metrics as text. leakmon's own are left out where the filter narrows: a narrowed scrape is about one process or
/// kind.
///
/// # Errors
///
/// None is known; the encoder's interface has one, and its text is what an HTTP 500 would say.
pub fn render(table: &SeriesTable, loss: &LossReport, own: &SelfMetrics, filter: &Filter) -> Result<String, String> {
    let (series, mut metrics): (Vec<&Series>, Vec<Metric>) = table
        .series
        .iter()
        .filter(|series| filter.matches(series.labels.tgid, series.labels.kind))
        .map(|series| (series, Metric::from_label(callsite_labels(&series.labels))))
        .unzip();
    let mut text = String::with_capacity(4_096 + series.len() * 1_024);
    for CallsiteMetric {
        name,
        help,
        kind,
        sample,
    } in &CALLSITE_METRICS
    {
        // Making the labels takes most of the time: each family in turn borrows those of the series that it has.
        let (borrowed, samples): (Vec<usize>, Vec<Metric>) = series
            .iter()
            .enumerate()
            .filter_map(|(index, series)| sample(&series.labels, &series.values).map(|value| (index, value)))
            .map(|(index, value)| (index, with_value(std::mem::take(&mut metrics[index]), *kind, value)))
            .unzip();
        for (index, metric) in borrowed.into_iter().zip(encode(&mut text, name, help, *kind, samples)?) {
            metrics[index] = metric;
        }
    }
    if filter.is_all() {
        own_metrics(&mut text, table, loss, own)?;
    }
    Ok(text)
}

/// What leakmon says about itself: what it lost, then how full it is.
fn own_metrics(text: &mut String, table: &SeriesTable, loss: &LossReport, own: &SelfMetrics) -> Result<(), String> {
    own_counters(text, table, loss, own)?;
    readings(text, own)?;
    let gauge = MetricType::GAUGE;
    let entries = own.maps.iter().map(|fill| (fill.map, fill.entries));
    let capacities = own.maps.iter().map(|fill| (fill.map, fill.capacity));
    for (name, help, kind, samples) in [
        (
            "leakmon_map_entries",
            "Entries in use of a BPF map.",
            gauge,
            by(gauge, "map", entries),
        ),
        (
            "leakmon_map_capacity",
            "Entries that fit into a BPF map.",
            gauge,
            by(gauge, "map", capacities),
        ),
        (
            "leakmon_targets",
            "Processes watched, by status.",
            gauge,
            by(gauge, "status", own.targets.iter().copied()),
        ),
        (
            "leakmon_probe_sites",
            SITES,
            gauge,
            by(gauge, "cost", [("cheap", own.cheap_sites), ("slow", own.slow_sites)]),
        ),
        (
            "leakmon_config_last_reload_successful",
            "1 where the configuration was understood when it was last read, else 0.",
            gauge,
            vec![with_value(
                Metric::default(),
                gauge,
                f64::from(u8::from(own.configured.successful)),
            )],
        ),
        (
            "leakmon_config_last_reload_success_timestamp_seconds",
            "When the configuration in force was read, in seconds since 1970.",
            gauge,
            vec![with_value(Metric::default(), gauge, unix_seconds(own.configured.at))],
        ),
        (
            "leakmon_analysis_peak_bytes",
            "The most memory that an analysing child ever had.",
            gauge,
            vec![with_value(Metric::default(), gauge, own.analysis_peak_bytes as f64)],
        ),
        (
            "leakmon_build_info",
            BUILD,
            gauge,
            by(gauge, "version", [(env!("CARGO_PKG_VERSION"), 1)]),
        ),
    ] {
        encode(text, name, help, kind, samples)?;
    }
    Ok(())
}

/// What was searched, and what is read of targets' memory.
fn readings(text: &mut String, own: &SelfMetrics) -> Result<(), String> {
    let images = vec![with_value(Metric::default(), MetricType::GAUGE, own.images as f64)];
    encode(text, "leakmon_images", IMAGES, MetricType::GAUGE, images)?;
    let files = vec![with_value(
        Metric::default(),
        MetricType::COUNTER,
        own.files_analysed as f64,
    )];
    encode(
        text,
        "leakmon_files_analysed_total",
        SEARCHED,
        MetricType::COUNTER,
        files,
    )?;
    let one = |kind, value| vec![with_value(Metric::default(), kind, value)];
    let (counter, gauge) = (MetricType::COUNTER, MetricType::GAUGE);
    let (bytes, seconds) = (own.census_bytes_read as f64, own.census_seconds);
    let help = "Bytes read of the memory of watched processes.";
    encode(
        text,
        "leakmon_census_bytes_read_total",
        help,
        counter,
        one(counter, bytes),
    )?;
    let help = "How long the last census of a process's memory took.";
    encode(text, "leakmon_census_seconds", help, gauge, one(gauge, seconds))?;
    Ok(())
}

fn own_counters(text: &mut String, table: &SeriesTable, loss: &LossReport, own: &SelfMetrics) -> Result<(), String> {
    let counter = MetricType::COUNTER;
    let one = |count: u64| vec![with_value(Metric::default(), counter, count as f64)];
    for (name, help, kind, samples) in [
        (
            "leakmon_events_total",
            EVENTS,
            counter,
            by(counter, "kind", own.events.iter().copied()),
        ),
        (
            "leakmon_events_dropped_total",
            DROPPED,
            counter,
            by(counter, "reason", own.events_dropped.iter().copied()),
        ),
        (
            "leakmon_analyses_total",
            ANALYSES,
            counter,
            by(counter, "outcome", own.analyses.iter().copied()),
        ),
        (
            "leakmon_analyses_not_repeated_total",
            NOT_REPEATED,
            counter,
            one(own.analyses_not_repeated),
        ),
        (
            "leakmon_ends_unmatched_total",
            UNMATCHED,
            counter,
            one(loss.unmatched_ends),
        ),
        (
            "leakmon_tasks_untracked_ended_total",
            "Ends of tasks that were not tracked, where they can't be those of older ones.",
            counter,
            one(loss.untracked_ends),
        ),
        ("leakmon_tasks_replaced_total", REPLACED, counter, one(loss.replaced)),
        (
            "leakmon_tasks_untracked_total",
            UNTRACKED,
            counter,
            one(loss.live_full + loss.counts_full + loss.paused),
        ),
        (
            "leakmon_processes_refused_total",
            REFUSED,
            counter,
            one(table.refused_processes),
        ),
        ("leakmon_http_evicted_total", EVICTED, counter, one(own.http_evicted)),
        (
            "leakmon_profiles_pushed_total",
            PUSHED,
            counter,
            by(counter, "outcome", own.profiles_pushed.iter().copied()),
        ),
    ] {
        encode(text, name, help, kind, samples)?;
    }
    Ok(())
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

const EVENTS: &str = "Events read from the kernel.";
const DROPPED: &str = "What the programs in the kernel could not do, by reason.";
const ANALYSES: &str = "Files read by confined children, by how that came out.";
const NOT_REPEATED: &str = "Analyses that were not tried, since the same one had failed before.";
const UNMATCHED: &str = "Ends of tasks whose birth was not counted, such as those older than the attach.";
const REPLACED: &str = "Tasks freed without completing, noticed when their memory was used again.";
const BUILD: &str = "1, with the version of leakmon.";
const IMAGES: &str = "Executables and libraries that are probed.";
const UNTRACKED: &str = "Births not tracked, since a table was full or their process was paused.";
const SEARCHED: &str = "Files analysed in the search for processes, each once while it does not change.";
const EVICTED: &str = "HTTP connections that had to make room for others.";
const REFUSED: &str = "Processes that got no series because too many others had them.";
const PUSHED: &str = "Profiles pushed to a Pyroscope server, by outcome.";
const SITES: &str = "Probe sites attached: the kernel emulates cheap ones and single-steps slow ones.";

/// A sample for each value of a label.
fn by(kind: MetricType, label: &str, values: impl IntoIterator<Item = (&'static str, u64)>) -> Vec<Metric> {
    let metric = |(value, count)| with_value(Metric::from_label(vec![pair(label, value)]), kind, count as f64);
    values.into_iter().map(metric).collect()
}

/// Appends a family and gives its samples back; one without a sample is left out.
fn encode(
    text: &mut String,
    name: &str,
    help: &str,
    kind: MetricType,
    samples: Vec<Metric>,
) -> Result<Vec<Metric>, String> {
    if samples.is_empty() {
        return Ok(samples);
    }
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(samples);
    let encoded = TextEncoder::new().encode_utf8(std::slice::from_ref(&family), text);
    encoded.map_err(|error| format!("metric {name} can't be written: {error}"))?;
    Ok(family.take_metric())
}

fn with_value(mut metric: Metric, kind: MetricType, value: f64) -> Metric {
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
}

fn callsite_labels(labels: &Labels) -> Vec<LabelPair> {
    let mut pairs = vec![
        pair("process", &labels.process),
        pair("pid", &labels.tgid.to_string()),
        pair("kind", labels.kind),
        pair("callsite", &labels.callsite),
        pair("function", &labels.function),
        pair("location", &labels.location),
    ];
    // Prometheus takes an absent label for an empty one.
    let of_container = [
        ("namespace", &labels.namespace),
        ("pod", &labels.pod),
        ("container", &labels.container),
    ];
    let known = of_container.into_iter().filter(|(_, value)| !value.is_empty());
    pairs.extend(known.map(|(name, value)| pair(name, value)));
    pairs
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::report::Report;
    use crate::export::series::{Limits, SeriesBook};
    use crate::export::{escape, samples};
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn text(report: &Report, own: &SelfMetrics, filter: &Filter) -> String {
        let table = SeriesBook::new(Limits::default()).observe(report);
        let text = render(&table, &report.loss, own, filter).unwrap();
        // A release must not change the golden files.
        text.replace(env!("CARGO_PKG_VERSION"), "VERSION")
    }

    #[test]
    fn the_report_in_metrics() {
        insta::assert_snapshot!(
            "busy_metrics",
            text(&samples::busy(), &samples::own(), &Filter::default())
        );
    }

    #[test]
    fn an_empty_report_has_only_what_leakmon_says_of_itself() {
        insta::assert_snapshot!(
            "empty_metrics",
            text(&samples::empty(), &SelfMetrics::default(), &Filter::default())
        );
    }

    #[test]
    fn hostile_names_make_no_samples_and_no_labels() {
        let text = text(
            &samples::hostile(),
            &samples::own(),
            &Filter {
                tgid: Some(666),
                kind: None,
            },
        );
        insta::assert_snapshot!("hostile_metrics", text);
        assert!(
            !text
                .chars()
                .any(|character| character != '\n' && escape::is_hostile(character))
        );
        assert!(
            text.lines()
                .all(|line| line.starts_with("# ") || line.starts_with("leakmon_")),
            "{text}"
        );
    }

    #[test]
    fn a_narrowed_scrape_has_one_process_and_kind() {
        let filter = Filter {
            tgid: Some(83_920),
            kind: Some("thread"),
        };
        let text = text(&samples::busy(), &samples::own(), &filter);
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples.len(),
            8,
            "own and other, each with three counts and the verdict: {text}"
        );
        assert!(
            samples.iter().all(|line| line.contains(r#"pid="83920",kind="thread""#)),
            "{text}"
        );
    }

    #[test]
    fn promtool_has_nothing_to_say() {
        const PROMTOOL: &str = "/usr/bin/promtool";
        if !std::path::Path::new(PROMTOOL).exists() {
            println!(
                "skipped promtool_has_nothing_to_say: {PROMTOOL} is missing; the Debian package prometheus has it"
            );
            return;
        }
        for report in [samples::busy(), samples::hostile(), samples::empty()] {
            let text = text(&report, &samples::own(), &Filter::default());
            let mut child = Command::new(PROMTOOL)
                .args(["check", "metrics"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            let said = [output.stdout, output.stderr].concat();
            assert!(
                output.status.success() && said.is_empty(),
                "{}\n{text}",
                String::from_utf8_lossy(&said)
            );
        }
    }
}
