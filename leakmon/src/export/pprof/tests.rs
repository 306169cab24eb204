//! The profile decoded again: its values against the report, and the rules that pprof itself checks.

use super::*;
use crate::export::samples;
use flate2::read::GzDecoder;
use std::io::Read;

fn decoded(report: &Report) -> Profile {
    let mut bytes = Vec::new();
    GzDecoder::new(render(report, &RenderOptions::default()).as_slice())
        .read_to_end(&mut bytes)
        .unwrap();
    Profile::decode(bytes.as_slice()).unwrap()
}

fn text(profile: &Profile, index: i64) -> &str {
    &profile.string_table[index as usize]
}

fn label<'a>(profile: &'a Profile, sample: &Sample, key: &str) -> Option<&'a str> {
    let label = sample.label.iter().find(|label| text(profile, label.key) == key)?;
    Some(text(profile, label.str))
}

/// Names of a location's functions, innermost first.
fn functions(profile: &Profile, location: u64) -> Vec<&str> {
    let location = &profile.location[location as usize - 1];
    let name = |line: &Line| text(profile, profile.function[line.function_id as usize - 1].name);
    location.line.iter().map(name).collect()
}

/// What `profile.CheckValid` of github.com/google/pprof asks for.
fn check_valid(profile: &Profile) {
    assert_eq!(profile.string_table[0], "");
    let last = profile.string_table.len() as i64;
    let known = |index: i64| assert!((0..last).contains(&index), "string {index}");
    for (index, mapping) in profile.mapping.iter().enumerate() {
        assert_eq!(mapping.id, index as u64 + 1);
        known(mapping.filename);
        known(mapping.build_id);
    }
    for (index, function) in profile.function.iter().enumerate() {
        assert_eq!(function.id, index as u64 + 1);
        known(function.name);
        known(function.filename);
    }
    for (index, location) in profile.location.iter().enumerate() {
        assert_eq!(location.id, index as u64 + 1);
        assert!(location.mapping_id <= profile.mapping.len() as u64);
        for line in &location.line {
            assert!((1..=profile.function.len() as u64).contains(&line.function_id));
        }
    }
    for sample in &profile.sample {
        assert_eq!(sample.value.len(), profile.sample_type.len());
        assert!(
            !sample.location_id.is_empty(),
            "pprof leaves out a sample without a place"
        );
        for id in &sample.location_id {
            assert!((1..=profile.location.len() as u64).contains(id));
        }
        for label in &sample.label {
            known(label.key);
            known(label.str);
        }
    }
}

#[test]
fn values_sum_to_what_the_report_counts() {
    let mut report = samples::busy();
    for stacks in [true, false] {
        if !stacks {
            report.callsites.iter_mut().for_each(|callsite| callsite.stacks.clear());
        }
        let profile = decoded(&report);
        check_valid(&profile);
        let sum = |index: usize| {
            profile
                .sample
                .iter()
                .map(|sample| sample.value[index] as u64)
                .sum::<u64>()
        };
        assert_eq!(sum(0), report.callsites.iter().map(|site| site.live).sum::<u64>());
        assert_eq!(sum(2), report.callsites.iter().map(|site| site.spawned).sum::<u64>());
        let types: Vec<(&str, &str)> = profile
            .sample_type
            .iter()
            .map(|value| (text(&profile, value.r#type), text(&profile, value.unit)))
            .collect();
        assert_eq!(types, SAMPLE_TYPES);
        assert_eq!(text(&profile, profile.default_sample_type), "live");
    }
}

#[test]
fn a_sample_tells_all_that_is_known_of_its_stack() {
    let profile = decoded(&samples::busy());
    let sample = &profile.sample[0];
    assert_eq!(sample.value, [40, 9_200_000_000, 40]);
    for (key, value) in [
        ("kind", "task"),
        ("verdict", "leak"),
        ("task_type", "app::handle_conn::{{closure}}"),
        ("process", "app"),
        ("callsite", "9f3c0a1b2c3d4e5f"),
    ] {
        assert_eq!(label(&profile, sample, key), Some(value));
    }
    assert!(sample.label.iter().any(|label| label.num == 83_920));
    let names: Vec<Vec<&str>> = sample
        .location_id
        .iter()
        .map(|location| functions(&profile, *location))
        .collect();
    assert_eq!(
        names[0],
        ["app::handle_conn::{{closure}}"],
        "the task itself is the leaf"
    );
    assert_eq!(names[1], ["tokio::runtime::task::core::Cell<T,S>::new"]);
    assert_eq!(
        names[2],
        ["tokio::task::spawn::spawn", "app::accept"],
        "inlined functions share an address with what they were inlined into"
    );
    assert_eq!(names.last().unwrap(), &["_start"]);
}

#[test]
fn addresses_are_offsets_and_mappings_are_known_by_build_id() {
    let profile = decoded(&samples::busy());
    let app = profile
        .mapping
        .iter()
        .find(|mapping| text(&profile, mapping.filename) == "app")
        .unwrap();
    assert_eq!(text(&profile, app.build_id), "00ff");
    assert_eq!((app.memory_start, app.file_offset), (0, 0));
    assert!(app.has_functions && app.has_filenames && app.has_line_numbers && app.has_inline_frames);
    let addresses: Vec<u64> = profile.sample[0].location_id[1..3]
        .iter()
        .map(|id| profile.location[*id as usize - 1].address)
        .collect();
    // The probe site is exact; a return address becomes one within its call.
    assert_eq!(addresses, [0x1234, 0x1233]);
}

#[test]
fn the_same_report_gives_the_same_bytes() {
    let bytes = || render(&samples::busy(), &RenderOptions::default());
    assert_eq!(bytes(), bytes());
}

#[test]
fn an_empty_report_is_a_valid_profile() {
    let profile = decoded(&samples::empty());
    check_valid(&profile);
    assert!(profile.sample.is_empty());
}

#[test]
fn hostile_names_are_harmless_and_bounded() {
    let mut report = samples::hostile();
    report.callsites[0].task_type = Some("\u{1b}".repeat(NAME_CHARS_MAX + 1));
    let profile = decoded(&report);
    check_valid(&profile);
    let longest = "\\u{1b}".len() * NAME_CHARS_MAX;
    for text in &profile.string_table {
        assert!(!text.chars().any(escape::is_hostile), "{text:?}");
        assert!(text.len() <= longest);
    }
}

#[test]
fn numbers_beyond_the_format_saturate() {
    let mut report = samples::busy();
    report.callsites[0].stacks[0].live = u64::MAX;
    report.callsites[0].stacks[0].oldest_seconds = Some(f64::NAN);
    assert_eq!(decoded(&report).sample[0].value[..2], [i64::MAX, 0]);
}
