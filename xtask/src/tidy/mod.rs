//! `cargo xtask tidy`: what people forget and no compiler checks.
//!
//! In: the text of the workspace's files. Out: one line for each finding, and an error if there is any. It changes nothing.
//! What rustfmt and clippy check is left to them. A new check is a function and one line in [`CHECKS`].

mod code;
mod documents;
mod sizes;
mod structure;
mod wording;

use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use std::{fs, path::Path};

/// Looks at the workspace for one kind of thing.
type Check = fn(&Tree) -> Vec<Finding>;

/// Every check, by its name.
const CHECKS: [(&str, Check); 13] = [
    ("files are short", sizes::files),
    ("functions are short", sizes::functions),
    ("modules say what they do", wording::module_docs),
    ("modules are named by nouns of the field", wording::module_names),
    ("nothing is left to do", wording::leftovers),
    ("lines end where they end", wording::line_ends),
    ("tests don't sleep", wording::sleeps),
    ("unsafe code is in few places", structure::unsafe_places),
    ("stages are declared in order", structure::stage_order),
    ("stages use earlier stages only", structure::stage_uses),
    ("the README's metrics are the code's", documents::metrics),
    ("the README's command lines exist", documents::command_lines),
    ("the CHANGELOG knows this version", documents::changelog),
];

/// Folders that hold nothing of ours.
const FOREIGN: [&str; 4] = ["target", ".git", "node_modules", "corpus"];
/// Kinds of text files, by extension; the scripts have none.
const EXTENSIONS: [&str; 9] = ["rs", "md", "toml", "sh", "yml", "yaml", "json", "service", "run"];

/// What a check complains about.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    /// From 1; 0 means the whole file.
    line: usize,
    message: String,
}

impl Finding {
    fn new(file: &File, line: usize, message: impl Into<String>) -> Self {
        Self {
            path: file.path.clone(),
            line,
            message: message.into(),
        }
    }
}

/// A text file.
#[derive(Clone, Debug)]
struct File {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
    /// The text with comments and literals blanked; the same as `text` in files that are no Rust.
    code: String,
}

impl File {
    fn new(path: &str, text: &str) -> Self {
        let code = if path.ends_with(".rs") {
            code::without_comments_and_literals(text)
        } else {
            text.to_owned()
        };
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            code,
        }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Line, from 1, from which on the file is tests; past the end where it has none.
    fn tests_from(&self) -> usize {
        if self.path.contains("/tests/") || self.path.ends_with("/tests.rs") {
            return 1;
        }
        let inline = self
            .code
            .lines()
            .position(|line| line.trim_start().starts_with("#[cfg(test)]"));
        inline.map_or(usize::MAX, |index| index + 1)
    }
}

/// The workspace's text files, sorted by path.
#[derive(Debug)]
struct Tree(Vec<File>);

impl Tree {
    fn rust(&self) -> impl Iterator<Item = &File> {
        self.0.iter().filter(|file| file.is_rust())
    }

    fn get(&self, path: &str) -> Option<&File> {
        self.0.iter().find(|file| file.path == path)
    }

    /// The file, or the finding that it is missing.
    fn need(&self, path: &str) -> Result<&File, Vec<Finding>> {
        self.get(path).ok_or_else(|| {
            let message = "this file is missing".to_owned();
            vec![Finding {
                path: path.to_owned(),
                line: 0,
                message,
            }]
        })
    }
}

/// Runs every check and prints what it finds.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let mut files = Vec::new();
    read(&workspace.root, "", &mut files)?;
    files.sort_by(|one, other| one.path.cmp(&other.path));
    let tree = Tree(files);
    let mut count = 0;
    for (name, check) in CHECKS {
        for Finding { path, line, message } in check(&tree) {
            count += 1;
            println!("{path}:{line}: {message} ({name})");
        }
    }
    if count > 0 {
        bail!("{count} things are untidy");
    }
    println!("tidy: {} files, {} checks", tree.0.len(), CHECKS.len());
    Ok(())
}

fn read(root: &Path, folder: &str, files: &mut Vec<File>) -> Result<()> {
    let directory = root.join(folder);
    for entry in fs::read_dir(&directory).with_context(|| format!("can't list {}", directory.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if folder.is_empty() {
            name.clone()
        } else {
            format!("{folder}/{name}")
        };
        let kind = entry.file_type()?;
        if kind.is_dir() && !FOREIGN.contains(&name.as_str()) {
            read(root, &path, files)?;
        } else if kind.is_file() && is_text(&name) {
            let text = fs::read_to_string(entry.path()).with_context(|| format!("can't read {path}"))?;
            files.push(File::new(&path, &text));
        }
    }
    Ok(())
}

fn is_text(name: &str) -> bool {
    name == "run"
        || name
            .rsplit_once('.')
            .is_some_and(|(_, extension)| EXTENSIONS.contains(&extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of these paths and texts.
    pub(super) fn tree(files: &[(&str, &str)]) -> Tree {
        Tree(files.iter().map(|(path, text)| File::new(path, text)).collect())
    }

    /// `path:line` of each finding.
    pub(super) fn places(findings: &[Finding]) -> Vec<String> {
        findings
            .iter()
            .map(|finding| format!("{}:{}", finding.path, finding.line))
            .collect()
    }

    #[test]
    fn tests_begin_where_they_are_declared() {
        for (path, text, line) in [
            ("leakmon/tests/kernel/attach.rs", "fn a() {}", 1),
            ("leakmon/src/live/tests.rs", "fn a() {}", 1),
            ("leakmon/src/a.rs", "fn a() {}\n#[cfg(test)]\nmod tests {}", 2),
            ("leakmon/src/a.rs", "// #[cfg(test)]\nfn a() {}", usize::MAX),
        ] {
            assert_eq!(File::new(path, text).tests_from(), line, "{path}");
        }
    }

    #[test]
    fn only_text_files_are_read() {
        for (name, is) in [
            ("a.rs", true),
            ("run", true),
            ("README.md", true),
            ("a.bin", false),
            ("LICENSE-MIT", false),
        ] {
            assert_eq!(is_text(name), is, "{name}");
        }
    }
}
