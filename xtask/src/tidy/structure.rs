//! The one path: which stage may use which, where unsafe code may be.
//!
//! In: the workspace's files. Out: findings.

use super::{Finding, Tree};

/// Folders of `leakmon/src`, in the order of the path. Later ones use earlier ones.
const STAGES: [&str; 7] = ["analysis", "targets", "kernel", "memory", "live", "symbols", "export"];
/// Only these make system calls or are BPF programs.
const UNSAFE_PLACES: [&str; 6] = [
    "leakmon/src/kernel/",
    // Sets up the C library's allocator.
    "leakmon/src/heap.rs",
    // Forks and reaps.
    "leakmon/src/analysis/process.rs",
    "leakmon-ebpf/src/",
    // Compares the walk with the C library's own, on its own stack.
    "leakmon/src/targets/unwind/tests/own_process.rs",
    // Notes an address of its own code.
    "leakmon/examples/victim/",
];

pub(super) fn unsafe_places(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let safe = tree
        .rust()
        .filter(|file| !UNSAFE_PLACES.iter().any(|place| file.path.starts_with(place)));
    for file in safe {
        for (index, line) in file.code.lines().enumerate() {
            let mut words = line.split(|ch: char| !ch.is_alphanumeric() && ch != '_');
            if words.any(|word| word == "unsafe") {
                let message = format!("unsafe code belongs into {}", UNSAFE_PLACES.join(" or "));
                findings.push(Finding::new(file, index + 1, message));
            }
        }
    }
    findings
}

pub(super) fn stage_order(tree: &Tree) -> Vec<Finding> {
    let library = match tree.need("leakmon/src/lib.rs") {
        Ok(library) => library,
        Err(missing) => return missing,
    };
    let mut findings = Vec::new();
    let mut latest = 0;
    for (index, line) in library.code.lines().enumerate() {
        let name = line
            .trim()
            .trim_start_matches("pub ")
            .strip_prefix("mod ")
            .map(|name| name.trim_end_matches(';'));
        let Some(stage) = name.and_then(|name| STAGES.iter().position(|stage| *stage == name)) else {
            continue;
        };
        if stage < latest {
            let message = format!("`{}` comes before `{}` on the path", STAGES[stage], STAGES[latest]);
            findings.push(Finding::new(library, index + 1, message));
        }
        latest = latest.max(stage);
    }
    findings
}

pub(super) fn stage_uses(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, stage) in STAGES.iter().enumerate() {
        let folder = format!("leakmon/src/{stage}/");
        for file in tree.rust().filter(|file| file.path.starts_with(&folder)) {
            for (index, line) in file
                .code
                .lines()
                .enumerate()
                .take_while(|(index, _)| index + 1 < file.tests_from())
            {
                for later in STAGES[number + 1..]
                    .iter()
                    .filter(|later| line.contains(&format!("crate::{later}::")))
                {
                    let message = format!("`{stage}` comes before `{later}` on the path and may not use it");
                    findings.push(Finding::new(file, index + 1, message));
                }
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::{places, tree};
    use super::*;

    #[test]
    fn unsafe_code_stays_in_its_places() {
        let text = "unsafe { f() }\n";
        let tree = tree(&[
            ("leakmon/src/kernel/load.rs", text),
            ("leakmon-ebpf/src/task.rs", text),
            ("leakmon/src/live/mod.rs", text),
            (
                "leakmon/tests/a.rs",
                "// unsafe\nlet unsafe_places = \"unsafe\";\n#[unsafe(no_mangle)]\n",
            ),
        ]);
        assert_eq!(
            places(&unsafe_places(&tree)),
            ["leakmon/src/live/mod.rs:1", "leakmon/tests/a.rs:3"]
        );
    }

    #[test]
    fn stages_are_declared_along_the_path() {
        let order = |text| places(&stage_order(&tree(&[("leakmon/src/lib.rs", text)])));
        assert!(
            order("pub mod cli;\npub mod targets;\nmod live;\npub mod export;\npub mod self_metrics;\n").is_empty()
        );
        assert_eq!(
            order("pub mod kernel;\npub mod targets;\npub mod live;\n"),
            ["leakmon/src/lib.rs:2"]
        );
        assert_eq!(places(&stage_order(&tree(&[]))), ["leakmon/src/lib.rs:0"]);
    }

    #[test]
    fn a_stage_uses_no_later_one() {
        let tree = tree(&[
            (
                "leakmon/src/live/mod.rs",
                "use crate::kernel::event;\nuse crate::export::report;\n",
            ),
            ("leakmon/src/export/mod.rs", "use crate::live::Live;\n"),
            ("leakmon/src/targets/mod.rs", "#[cfg(test)]\nuse crate::live::Live;\n"),
        ]);
        assert_eq!(places(&stage_uses(&tree)), ["leakmon/src/live/mod.rs:2"]);
    }
}
