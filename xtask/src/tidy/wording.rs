//! Words and lines: module docs, module names, leftovers, white space, sleeping tests.
//!
//! In: the workspace's files. Out: findings.

use super::{File, Finding, Tree};

/// Names that say nothing about the field.
const EMPTY_NAMES: [&str; 8] = [
    "util", "utils", "common", "helper", "helpers", "manager", "misc", "shared",
];
/// Code that was not meant to stay. The last hides a test instead of mending it.
const LEFTOVERS: [&str; 5] = ["todo!", "unimplemented!", "dbg!", "#[ignore", "ignore ="];
/// A comment with this word gives the reason for a sleep in a test.
const EXCUSE: &str = "// tidy: ";

pub(super) fn module_docs(tree: &Tree) -> Vec<Finding> {
    let bare = tree.rust().filter(|file| !file.text.starts_with("//!"));
    bare.map(|file| Finding::new(file, 1, "a module opens with `//!`: what flows in, what flows out"))
        .collect()
}

pub(super) fn module_names(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        let mut parts = file.path.trim_end_matches(".rs").split('/');
        if let Some(part) = parts.find(|part| EMPTY_NAMES.contains(part)) {
            findings.push(Finding::new(file, 0, format!("`{part}` names nothing of the field")));
        }
        for (index, line) in file.code.lines().enumerate() {
            let mut words = line.split_whitespace().skip_while(|word| word.starts_with("pub"));
            let declared = words.next() == Some("mod");
            let name = words.next().unwrap_or_default().trim_end_matches(';');
            if declared && line.contains('{') && EMPTY_NAMES.contains(&name) {
                findings.push(Finding::new(
                    file,
                    index + 1,
                    format!("`{name}` names nothing of the field"),
                ));
            }
        }
    }
    findings
}

pub(super) fn leftovers(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        for (index, line) in file.code.lines().enumerate() {
            for word in LEFTOVERS.iter().filter(|word| has_word(line, word)) {
                findings.push(Finding::new(file, index + 1, format!("`{word}` was left behind")));
            }
        }
    }
    findings
}

/// Whether the text has the word, and not as the end of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|before| before.is_alphanumeric() || before == '_')
    })
}

pub(super) fn line_ends(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.0 {
        for (index, line) in file.text.split('\n').enumerate() {
            if line != line.trim_end() {
                findings.push(Finding::new(file, index + 1, "white space at the end of the line"));
            }
        }
        if !file.text.is_empty() && !file.text.ends_with('\n') {
            findings.push(Finding::new(file, 0, "the last line has no end"));
        }
    }
    findings
}

pub(super) fn sleeps(tree: &Tree) -> Vec<Finding> {
    tree.rust().flat_map(sleeping_tests).collect()
}

fn sleeping_tests(file: &File) -> Vec<Finding> {
    let excused = |line: usize| {
        let mut near = file
            .text
            .lines()
            .skip(line.saturating_sub(2))
            .take(if line == 1 { 1 } else { 2 });
        near.any(|line| line.contains(EXCUSE))
    };
    let lines = file.code.lines().enumerate().map(|(index, line)| (index + 1, line));
    let tests = lines.filter(|(number, _)| *number >= file.tests_from());
    let asleep = tests.filter(|(number, line)| has_word(line, "sleep(") && !excused(*number));
    let message = format!("a test waits for what it expects; if it must sleep, `{EXCUSE}` says why");
    asleep
        .map(|(number, _)| Finding::new(file, number, message.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{places, tree};
    use super::*;

    #[test]
    fn modules_open_with_their_docs() {
        let tree = tree(&[("a.rs", "//! A.\n"), ("b.rs", "use c;\n//! B.\n"), ("c.rs", "")]);
        assert_eq!(places(&module_docs(&tree)), ["b.rs:1", "c.rs:1"]);
    }

    #[test]
    fn empty_names_are_found_in_paths_and_in_the_code() {
        let tree = tree(&[
            ("src/utils.rs", ""),
            ("src/common/a.rs", ""),
            (
                "src/ring.rs",
                "mod common_mode {}\n// mod util {\n    pub(crate) mod helpers {\n",
            ),
        ]);
        assert_eq!(
            places(&module_names(&tree)),
            ["src/utils.rs:0", "src/common/a.rs:0", "src/ring.rs:3"]
        );
    }

    #[test]
    fn leftovers_are_found_in_code_only() {
        let text = "// todo!\nlet a = \"dbg!(x)\";\ntodo!()\nx.dbg!()\n#[ignore]\n#[ignore = \"slow\"]\nautodo!()\n";
        assert_eq!(
            places(&leftovers(&tree(&[("a.rs", text)]))),
            ["a.rs:3", "a.rs:4", "a.rs:5", "a.rs:6", "a.rs:6"]
        );
    }

    #[test]
    fn white_space_is_found_in_every_file() {
        let tree = tree(&[("a.md", "x \ny\t\nz\n"), ("b.rs", "x"), ("c.rs", ""), ("d.rs", "a\r\n")]);
        assert_eq!(places(&line_ends(&tree)), ["a.md:1", "a.md:2", "b.rs:0", "d.rs:1"]);
    }

    #[test]
    fn tests_sleep_only_with_a_reason() {
        let inline = "sleep(1);\n#[cfg(test)]\nsleep(2);\n// tidy: it is the clock that is tested\nsleep(3);\n";
        let excused = "sleep(1); // tidy: paced\nx;\nsleep(2);\nfall_asleep(3);\n";
        let tree = tree(&[("src/a.rs", inline), ("leakmon/tests/b.rs", excused)]);
        assert_eq!(places(&sleeps(&tree)), ["src/a.rs:3", "leakmon/tests/b.rs:3"]);
    }
}
