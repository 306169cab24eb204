//! Births and ends over time as Chrome's trace event JSON, which Perfetto and `chrome://tracing` show.
//!
//! In: a [`Trace`]. Out: one JSON object. Each task is an asynchronous span from its birth (`"ph":"b"`) to its end (`"e"`), one
//! track for each callsite, with its process and thread; each callsite has a counter (`"C"`) of its live tasks besides. A
//! task that was alive at the end has no end. What was lost is in `otherData`.
//!
//! Source of the format: "Trace Event Format" of the Catapult project (`ts` in microseconds, `id` pairs `b` with `e`).

use super::escape;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

/// A callsite's counter is written at most so often over the whole time: more can't be seen.
const COUNTS_MAX: u64 = 2_000;

/// One birth or end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// The process.
    pub tgid: u32,
    /// The thread that spawned or ended the task.
    pub tid: u32,
    /// Address of the task, which may be used again once it has ended.
    pub task: u64,
    /// Whether it was born.
    pub birth: bool,
    /// Whether it is a thread and no task.
    pub thread: bool,
    /// Index of the callsite's name.
    pub callsite: usize,
}

/// What happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Time 0 of the output, `CLOCK_MONOTONIC`.
    pub began_ns: u64,
    /// By time.
    pub moments: Vec<Moment>,
    /// Names of callsites. Unescaped.
    pub callsites: Vec<String>,
    /// Executables by process.
    pub processes: BTreeMap<u32, String>,
    /// Births and ends that are not here.
    pub lost: u64,
    known: HashMap<String, usize>,
}

impl Trace {
    /// A trace without moments.
    #[must_use]
    pub fn new(began_ns: u64, lost: u64) -> Self {
        Self {
            began_ns,
            lost,
            ..Self::default()
        }
    }

    /// Index of a callsite's name.
    pub fn callsite(&mut self, name: &str) -> usize {
        if let Some(index) = self.known.get(name) {
            return *index;
        }
        let index = self.callsites.len();
        self.callsites.push(name.to_owned());
        self.known.insert(name.to_owned(), index);
        index
    }
}

/// Writes the trace.
///
/// # Errors
/// `out` can't be written.
pub fn write(trace: &Trace, out: &mut impl Write) -> io::Result<()> {
    let other = json!({ "lost_events": trace.lost, "source": "leakmon" });
    write!(
        out,
        "{{\"displayTimeUnit\":\"ms\",\"otherData\":{other},\"traceEvents\":["
    )?;
    let mut writer = Events { out, first: true };
    for (tgid, exe) in &trace.processes {
        writer.event(&json!({
            "ph": "M", "name": "process_name", "pid": tgid, "tid": tgid,
            "args": { "name": escape::name(exe) },
        }))?;
    }
    let names: Vec<_> = trace.callsites.iter().map(|name| escape::name(name)).collect();
    let length_ns = trace
        .moments
        .last()
        .map_or(0, |last| last.time_ns.saturating_sub(trace.began_ns));
    let mut counters: HashMap<(u32, usize), Counter> = HashMap::new();
    // Of the tasks that are alive: which birth at that address it was.
    let mut alive: HashMap<(u32, u64), usize> = HashMap::new();
    for (index, moment) in trace.moments.iter().enumerate() {
        let Some(name) = names.get(moment.callsite) else {
            continue;
        };
        let address = (moment.tgid, moment.task);
        let born = if moment.birth {
            alive.insert(address, index);
            Some(index)
        } else {
            alive.remove(&address)
        };
        // An end whose birth is not here would be a span without a beginning.
        let Some(born) = born else {
            continue;
        };
        let microseconds = moment.time_ns.saturating_sub(trace.began_ns) as f64 / 1e3;
        writer.event(&json!({
            "ph": if moment.birth { "b" } else { "e" }, "cat": if moment.thread { "thread" } else { "task" }, "name": name, "id": format!("{born:x}"),
            "pid": moment.tgid, "tid": moment.tid, "ts": microseconds,
        }))?;
        let counter = counters.entry((moment.tgid, moment.callsite)).or_default();
        if counter.change(moment.birth, moment.time_ns, length_ns / COUNTS_MAX) {
            writer.counter(name, moment.tgid, microseconds, counter.live)?;
        }
    }
    for ((tgid, callsite), counter) in counters.into_iter().collect::<BTreeMap<_, _>>() {
        if let Some(name) = names.get(callsite) {
            writer.counter(name, tgid, length_ns as f64 / 1e3, counter.live)?;
        }
    }
    writer.out.write_all(b"\n]}\n")
}

/// A callsite's live count.
#[derive(Default)]
struct Counter {
    live: u64,
    written_ns: u64,
}

impl Counter {
    /// Takes a change; whether it is time to write the count.
    const fn change(&mut self, birth: bool, time_ns: u64, interval_ns: u64) -> bool {
        self.live = if birth {
            self.live + 1
        } else {
            self.live.saturating_sub(1)
        };
        let due = time_ns.saturating_sub(self.written_ns) >= interval_ns;
        if due {
            self.written_ns = time_ns;
        }
        due
    }
}

struct Events<'a, W> {
    out: &'a mut W,
    first: bool,
}

impl<W: Write> Events<'_, W> {
    fn event(&mut self, event: &Value) -> io::Result<()> {
        let separator = if self.first { "\n" } else { ",\n" };
        self.first = false;
        write!(self.out, "{separator}{event}")
    }

    fn counter(&mut self, name: &str, tgid: u32, microseconds: f64, live: u64) -> io::Result<()> {
        self.event(&json!({
            "ph": "C", "name": format!("live: {name}"), "pid": tgid, "ts": microseconds, "args": { "live": live },
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(trace: &Trace) -> (String, Value) {
        let mut bytes = Vec::new();
        write(trace, &mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let value = serde_json::from_str(&text).unwrap();
        (text, value)
    }

    fn moment(time_ns: u64, task: u64, birth: bool, callsite: usize) -> Moment {
        Moment {
            time_ns,
            tgid: 7,
            tid: 8,
            task,
            birth,
            thread: false,
            callsite,
        }
    }

    fn of_phase<'a>(trace: &'a Value, phase: &str) -> Vec<&'a Value> {
        let events = trace["traceEvents"].as_array().unwrap().iter();
        events.filter(|event| event["ph"] == phase).collect()
    }

    fn sample() -> Trace {
        let mut trace = Trace {
            began_ns: 1_000,
            lost: 3,
            ..Trace::default()
        };
        let first = trace.callsite("app::f\u{1b}[2J");
        assert_eq!(trace.callsite("app::f\u{1b}[2J"), first);
        trace.processes.insert(7, "/bin/app".to_owned());
        trace.moments = vec![
            // An end without its birth, a task, another one at the same address that stays.
            moment(1_500, 0x99, false, first),
            moment(2_000, 0x10, true, first),
            moment(3_000, 0x10, false, first),
            moment(4_000, 0x10, true, first),
        ];
        trace
    }

    #[test]
    fn a_task_is_a_span_from_its_birth_to_its_end() {
        let (text, trace) = written(&sample());
        let (begins, ends) = (of_phase(&trace, "b"), of_phase(&trace, "e"));
        assert_eq!((begins.len(), ends.len()), (2, 1), "{text}");
        assert_eq!(begins[0]["id"], ends[0]["id"]);
        assert_ne!(begins[1]["id"], ends[0]["id"], "the address was used again");
        assert_eq!(
            (begins[0]["ts"].as_f64(), ends[0]["ts"].as_f64()),
            (Some(1.0), Some(2.0))
        );
        assert_eq!(trace["otherData"]["lost_events"], 3);
        assert_eq!(of_phase(&trace, "M")[0]["args"]["name"], "/bin/app");
        assert!(
            !text
                .chars()
                .any(|character| character != '\n' && escape::is_hostile(character))
        );
    }

    #[test]
    fn the_last_count_is_what_is_alive() {
        let (_, trace) = written(&sample());
        assert_eq!(of_phase(&trace, "C").last().unwrap()["args"]["live"], 1);
        assert_eq!(written(&Trace::default()).1["traceEvents"].as_array().unwrap().len(), 0);
    }

    #[test]
    fn counters_are_bounded_however_many_tasks_there_are() {
        let mut trace = Trace::default();
        let callsite = trace.callsite("app::f");
        let births = COUNTS_MAX * 5;
        trace.moments = (1..=births)
            .map(|number| moment(number * 1_000, number, true, callsite))
            .collect();
        let (_, trace) = written(&trace);
        assert_eq!(of_phase(&trace, "b").len() as u64, births);
        assert!(of_phase(&trace, "C").len() as u64 <= COUNTS_MAX + 1);
    }
}
