//! pprof: what `go tool pprof`, Pyroscope and speedscope read.
//!
//! In: a report. Out: a gzip of one `Profile` message ([`message`]). Sample types: `live` (count, the default), `oldest`
//! (nanoseconds, the age of the stack's oldest live task) and `spawned` (count). Labels: `kind`, `verdict`, `task_type`,
//! `process`, `callsite`, `pid`. Addresses are offsets in the image's file, so profiles of one build can be merged and
//! compared whatever the loader chose; an image is one mapping from 0, known by its build id. The bytes depend on the
//! report alone: there is no time in them.
//!
//! The leaf of each stack is the task's own future, where its type is known, as in folded stacks: `top` then names what
//! leaks, and the frame below it who spawned it.

pub mod message;

use super::report::{CallsiteReport, Frame, Report, StackReport};
use super::{RenderOptions, escape};
use flate2::{Compression, GzBuilder};
use message::{Function, Label, Line, Location, Mapping, Profile, Sample, ValueType};
use prost::Message as _;
use std::collections::HashMap;
use std::hash::Hash;
use std::io::Write;

/// Names and units of the values, in their order.
const SAMPLE_TYPES: [(&str, &str); 3] = [("live", "count"), ("oldest", "nanoseconds"), ("spawned", "count")];

/// End of every mapping. pprof tells images apart by build id *and* size, so the size must not depend on what was seen;
/// no file is larger than this.
const MAPPING_LIMIT: u64 = 1 << 48;

/// Names in a profile are longer than in a table: nobody reads them in a line. Characters, as in the JSON report.
const NAME_CHARS_MAX: usize = super::json::STRING_CHARS_MAX;

/// The report as a gzipped profile.
#[must_use]
pub fn render(report: &Report, _options: &RenderOptions) -> Vec<u8> {
    let profile = profile(report).encode_to_vec();
    // No time and no system in the header: the same report gives the same bytes.
    let mut gzip = GzBuilder::new()
        .mtime(0)
        .write(Vec::with_capacity(profile.len() / 4), Compression::fast());
    // A Vec takes every write.
    let written = gzip.write_all(&profile);
    written.and_then(|()| gzip.finish()).unwrap_or_default()
}

/// The report as a message.
#[must_use]
pub fn profile(report: &Report) -> Profile {
    let mut builder = Builder::default();
    let processes: HashMap<&str, &str> = report
        .targets
        .iter()
        .map(|target| (target.id.as_str(), target.process_name()))
        .collect();
    let sample_type = SAMPLE_TYPES.map(|(name, unit)| ValueType {
        r#type: builder.strings.of(name),
        unit: builder.strings.of(unit),
    });
    let mut sample = Vec::new();
    for callsite in &report.callsites {
        let process = processes.get(callsite.target.as_str()).copied().unwrap_or("[unknown]");
        builder.samples(callsite, process, &mut sample);
    }
    let comment = format!("tasks of {} processes, counted by leakmon", report.targets.len());
    Profile {
        sample_type: sample_type.to_vec(),
        sample,
        default_sample_type: builder.strings.of(SAMPLE_TYPES[0].0),
        duration_nanos: nanoseconds(Some(report.observed_seconds)),
        comment: vec![builder.strings.of(&comment)],
        mapping: builder.mappings,
        location: builder.locations,
        function: builder.functions,
        string_table: builder.strings.texts,
    }
}

/// Strings, by their index. The first is empty, as the format asks.
#[derive(Default)]
struct Strings {
    texts: Vec<String>,
    known: HashMap<String, i64>,
}

impl Strings {
    fn of(&mut self, text: &str) -> i64 {
        if self.texts.is_empty() {
            self.texts.push(String::new());
        }
        if text.is_empty() {
            return 0;
        }
        if let Some(&index) = self.known.get(text) {
            return index;
        }
        let index = number(self.texts.len() as u64);
        self.texts.push(text.to_owned());
        self.known.insert(text.to_owned(), index);
        index
    }

    /// The index of a name from a target.
    fn of_name(&mut self, text: &str) -> i64 {
        let bounded: String = text.chars().take(NAME_CHARS_MAX).collect();
        let harmless = |character: char| {
            if escape::is_hostile(character) {
                character.escape_default().collect()
            } else {
                String::from(character)
            }
        };
        self.of(&bounded.chars().map(harmless).collect::<String>())
    }
}

#[derive(Default)]
struct Builder {
    strings: Strings,
    mappings: Vec<Mapping>,
    known_mappings: HashMap<(i64, i64), u64>,
    functions: Vec<Function>,
    known_functions: HashMap<(i64, i64), u64>,
    locations: Vec<Location>,
    known_locations: HashMap<(u64, u64, Vec<Line>), u64>,
}

impl Builder {
    fn samples(&mut self, callsite: &CallsiteReport, process: &str, samples: &mut Vec<Sample>) {
        let label = self.labels(callsite, process);
        let own = self.task(callsite);
        let mut live_left = callsite.live;
        let mut spawned_left = callsite.spawned;
        for stack in &callsite.stacks {
            live_left = live_left.saturating_sub(stack.live);
            spawned_left = spawned_left.saturating_sub(stack.spawned);
            let locations = own.into_iter().chain(self.stack(stack)).collect();
            samples.extend(sample(
                kind_alone(self, callsite.kind, locations),
                (stack.live, nanoseconds(stack.oldest_seconds), stack.spawned),
                &label,
            ));
        }
        // Tasks of which no stack is shown (`--no-stacks`, or counted later than the callsite).
        if live_left > 0 || spawned_left > 0 {
            let oldest = callsite.oldest_seconds.filter(|_| callsite.stacks.is_empty());
            let locations = own.into_iter().chain(self.place(callsite)).collect();
            samples.extend(sample(
                kind_alone(self, callsite.kind, locations),
                (live_left, nanoseconds(oldest), spawned_left),
                &label,
            ));
        }
    }

    fn labels(&mut self, callsite: &CallsiteReport, process: &str) -> Vec<Label> {
        let task_type = callsite.task_type.as_deref().unwrap_or_default();
        let strings = [
            ("kind", callsite.kind),
            ("verdict", callsite.verdict.as_str()),
            ("task_type", task_type),
            ("process", process),
            ("callsite", &callsite.id),
        ];
        let mut labels: Vec<Label> = strings
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(key, text)| Label {
                key: self.strings.of(key),
                str: self.strings.of_name(text),
                num: 0,
            })
            .collect();
        labels.push(Label {
            key: self.strings.of("pid"),
            str: 0,
            num: i64::from(callsite.pid),
        });
        labels
    }

    /// The task's own future, a location without address.
    fn task(&mut self, callsite: &CallsiteReport) -> Option<u64> {
        let function = self.function(callsite.task_type.as_deref()?, None);
        Some(self.location(
            0,
            0,
            vec![Line {
                function_id: function,
                line: 0,
            }],
        ))
    }

    /// The location of a callsite whose stacks are not known.
    fn place(&mut self, callsite: &CallsiteReport) -> Option<u64> {
        let place = &callsite.location;
        let frame = Frame {
            function: place.function.clone(),
            file: place.file.clone(),
            line: place.line,
            image: place.image.clone(),
            offset: place.offset?,
            ..Frame::default()
        };
        Some(self.machine_frame(&[frame], true))
    }

    /// Locations of a stack's frames, innermost first.
    fn stack(&mut self, stack: &StackReport) -> Vec<u64> {
        // Inlined frames stand before the function that they were inlined into and share its address.
        stack
            .frames
            .split_inclusive(|frame| !frame.inlined)
            .enumerate()
            .map(|(depth, frames)| self.machine_frame(frames, depth == 0))
            .collect()
    }

    /// One address with the functions that are there. A return address is the one after the call, and becomes one within it.
    fn machine_frame(&mut self, frames: &[Frame], exact: bool) -> u64 {
        let Some(outermost) = frames.last() else {
            return 0;
        };
        let mapping = self.mapping(outermost, frames);
        let lines: Vec<Line> = frames.iter().filter_map(|frame| self.line(frame)).collect();
        self.location(mapping, outermost.offset.saturating_sub(u64::from(!exact)), lines)
    }

    fn line(&mut self, frame: &Frame) -> Option<Line> {
        let function = frame.function.as_deref();
        let place = escape::code_place(function, frame.image.as_deref(), Some(frame.offset))?;
        let function_id = self.function(function.unwrap_or(&place), frame.file.as_deref());
        let line = frame.line.map_or(0, i64::from);
        Some(Line { function_id, line })
    }

    fn mapping(&mut self, frame: &Frame, frames: &[Frame]) -> u64 {
        let Some(image) = &frame.image else {
            return 0;
        };
        let filename = self.strings.of_name(image);
        let build_id = self.strings.of_name(frame.build_id.as_deref().unwrap_or_default());
        let id = numbered(&mut self.known_mappings, (filename, build_id), |id| {
            self.mappings.push(Mapping {
                id,
                memory_limit: MAPPING_LIMIT,
                filename,
                build_id,
                // Or pprof looks for the file and its symbols itself.
                has_functions: true,
                ..Mapping::default()
            });
        });
        if let Some(mapping) = self.mappings.get_mut(id as usize - 1) {
            mapping.has_filenames |= frames.iter().any(|frame| frame.file.is_some());
            mapping.has_line_numbers |= frames.iter().any(|frame| frame.line.is_some());
            mapping.has_inline_frames |= frames.len() > 1;
        }
        id
    }

    fn function(&mut self, name: &str, file: Option<&str>) -> u64 {
        let name = self.strings.of_name(name);
        let filename = self.strings.of_name(file.unwrap_or_default());
        numbered(&mut self.known_functions, (name, filename), |id| {
            self.functions.push(Function {
                id,
                name,
                system_name: name,
                filename,
            });
        })
    }

    fn location(&mut self, mapping_id: u64, address: u64, line: Vec<Line>) -> u64 {
        let key = (mapping_id, address, line);
        numbered(&mut self.known_locations, key.clone(), |id| {
            self.locations.push(Location {
                id,
                mapping_id,
                address,
                line: key.2,
            });
        })
    }
}

/// The number of a key, from 1. `add` is called for a new one.
fn numbered<K: Eq + Hash>(known: &mut HashMap<K, u64>, key: K, add: impl FnOnce(u64)) -> u64 {
    let fresh = known.len() as u64 + 1;
    let id = *known.entry(key).or_insert(fresh);
    if id == fresh {
        add(id);
    }
    id
}

/// Where neither a stack nor a type is known the kind stands for both: pprof leaves out a sample without a place.
fn kind_alone(builder: &mut Builder, kind: &str, locations: Vec<u64>) -> Vec<u64> {
    if !locations.is_empty() {
        return locations;
    }
    let function_id = builder.function(&format!("[{kind}]"), None);
    vec![builder.location(0, 0, vec![Line { function_id, line: 0 }])]
}

/// A sample of the live tasks, the oldest one's age and the spawned ones; `None` where nothing was spawned.
fn sample(location_id: Vec<u64>, (live, oldest, spawned): (u64, i64, u64), label: &[Label]) -> Option<Sample> {
    (live > 0 || spawned > 0).then(|| Sample {
        location_id,
        value: vec![number(live), oldest, number(spawned)],
        label: label.to_vec(),
    })
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn nanoseconds(seconds: Option<f64>) -> i64 {
    // Saturates, and what is no number is 0.
    (seconds.unwrap_or(0.0) * 1e9) as i64
}

#[cfg(test)]
mod tests;
