//! The last results, in `docs/performance.md`.
//!
//! In: the table of a subject, and what the machine says of itself. Out: that subject's section of the page, replaced; the others
//! stay as they were measured, and so does what people wrote above the first section. No number is written by hand.

use crate::workspace::{self, Workspace};
use anyhow::{Context as _, Result};
use std::{fs, path::PathBuf, process::Command};

/// A page that has no results yet.
const PREFACE: &str = "# What leakmon costs\n";

/// Puts a subject's table into the page.
pub(super) fn section(workspace: &Workspace, title: &str, table: &str) -> Result<()> {
    let path = page(workspace);
    let before = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => PREFACE.to_owned(),
        Err(error) => return Err(error).with_context(|| format!("can't read {}", path.display())),
    };
    let body = format!("{}\n\n{}", surroundings(workspace)?, table.trim_end());
    fs::write(&path, replaced(&before, title, &body)).with_context(|| format!("can't write {}", path.display()))
}

fn page(workspace: &Workspace) -> PathBuf {
    workspace.root.join("docs/performance.md")
}

/// Date, commit, kernel and processor, one line.
fn surroundings(workspace: &Workspace) -> Result<String> {
    let said = |program: &str, arguments: &[&str]| -> Result<String> {
        let text = workspace::output(workspace.command(program).args(arguments))?;
        Ok(text.trim().to_owned())
    };
    let processors = fs::read_to_string("/proc/cpuinfo").context("can't read /proc/cpuinfo")?;
    let model = processors.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("an unknown processor", |text| text.trim_start_matches(['\t', ' ', ':']));
    let count = processors.lines().filter(|line| line.starts_with("processor")).count();
    let machine = match Command::new("systemd-detect-virt").output() {
        Ok(output) if output.status.success() => " of a virtual machine",
        _ => "",
    };
    Ok(format!(
        "{}, commit {}, Linux {}, {count} processors{machine}, {model}.",
        said("date", &["--utc", "+%Y-%m-%d"])?,
        said("git", &["rev-parse", "--short", "HEAD"])?,
        said("uname", &["-r"])?,
    ))
}

/// The page with this section in place of the one that has its title, or behind all others.
fn replaced(page: &str, title: &str, body: &str) -> String {
    let heading = format!("\n## {title}\n");
    let (before, after) = match page.find(&heading) {
        Some(start) => {
            let rest = &page[start + heading.len()..];
            let end = rest.find("\n## ").map_or("", |end| &rest[end..]);
            (&page[..start], end)
        }
        None => (page.trim_end_matches('\n'), ""),
    };
    let before = before.trim_end_matches('\n');
    format!("{before}\n{heading}\n{body}\n{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_the_others_stay() {
        let mut page = "# Title\n\nPreface.\n".to_owned();
        for (title, body) in [("one", "1"), ("two", "2"), ("three", "3"), ("two", "two\n\nmore")] {
            page = replaced(&page, title, body);
        }
        assert_eq!(
            page,
            "# Title\n\nPreface.\n\n## one\n\n1\n\n## two\n\ntwo\n\nmore\n\n## three\n\n3\n"
        );
    }
}
