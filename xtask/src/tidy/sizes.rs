//! Lengths of files and functions.
//!
//! In: the workspace's files, formatted by rustfmt. Out: findings. A function is found by its indentation, which rustfmt
//! makes reliable; clippy's `too_many_lines` counts only lines of code, this counts all.

use super::{File, Finding, Tree};

/// A file has fewer lines than this.
const FILE_LINES: usize = 500;
/// A function has fewer lines than this, from `fn` to the closing brace.
const FUNCTION_LINES: usize = 70;

pub(super) fn files(tree: &Tree) -> Vec<Finding> {
    let long = tree.rust().filter(|file| file.text.lines().count() >= FILE_LINES);
    long.map(|file| {
        let lines = file.text.lines().count();
        Finding::new(file, 0, format!("{lines} lines; a file has fewer than {FILE_LINES}"))
    })
    .collect()
}

pub(super) fn functions(tree: &Tree) -> Vec<Finding> {
    tree.rust().flat_map(long_functions).collect()
}

fn long_functions(file: &File) -> Vec<Finding> {
    let lines: Vec<&str> = file.code.lines().collect();
    let mut findings = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        if !begins_function(line) {
            continue;
        }
        let indent = indent(line);
        let after = &lines[index + 1..];
        let ends = |line: &&str| indent_of_end(line) == Some(indent);
        let length = if line.ends_with(['}', ';']) {
            1
        } else {
            after.iter().position(ends).map_or(0, |end| end + 2)
        };
        if length >= FUNCTION_LINES {
            let message = format!("a function of {length} lines; it has fewer than {FUNCTION_LINES}");
            findings.push(Finding::new(file, index + 1, message));
        }
    }
    findings
}

fn begins_function(line: &str) -> bool {
    let mut words = line.split_whitespace().skip_while(|word| {
        matches!(*word, "pub" | "const" | "async" | "unsafe" | "extern")
            || word.starts_with("pub(")
            || word.starts_with('"')
    });
    words.next() == Some("fn")
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Indentation of a line that closes a body (`}`) or a declaration without one (`) -> T;`).
fn indent_of_end(line: &str) -> Option<usize> {
    let text = line.trim();
    let ends = text.starts_with('}') || (text.starts_with(')') && text.ends_with(';'));
    ends.then(|| indent(line))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{places, tree};
    use super::*;

    fn function(indent: &str, head: &str, lines: usize) -> String {
        format!(
            "{indent}{head} {{\n{}{indent}}}\n",
            format!("{indent}    x();\n").repeat(lines - 2)
        )
    }

    #[test]
    fn the_longest_allowed_file_has_one_line_less() {
        let (short, long) = ("a\n".repeat(FILE_LINES - 1), "a\n".repeat(FILE_LINES));
        let tree = tree(&[("a.rs", &short), ("b.rs", &long), ("c.md", &long)]);
        assert_eq!(places(&files(&tree)), ["b.rs:0"]);
    }

    #[test]
    fn the_longest_allowed_function_has_one_line_less() {
        for head in [
            "fn f()",
            "pub(crate) async fn f()",
            "pub unsafe extern \"C\" fn f()",
            "pub const fn f()",
        ] {
            for indent in ["", "    "] {
                let text = format!("\n{}", function(indent, head, FUNCTION_LINES));
                assert_eq!(places(&functions(&tree(&[("a.rs", &text)]))), ["a.rs:2"], "{head}");
                let text = function(indent, head, FUNCTION_LINES - 1);
                assert!(functions(&tree(&[("a.rs", &text)])).is_empty(), "{head}");
            }
        }
    }

    #[test]
    fn declarations_and_short_bodies_end_on_their_own() {
        let filler = "    x();\n".repeat(FUNCTION_LINES);
        for head in [
            "fn f() {}\n",
            "fn f();\n",
            "fn f(\n    a: u8,\n) -> u8;\n",
            "let f = fn_pointer;\n",
        ] {
            let text = format!("{head}{filler}}}\n");
            assert!(functions(&tree(&[("a.rs", &text)])).is_empty(), "{head}");
        }
    }
}
