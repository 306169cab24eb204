//! `cargo xtask bench verdicts`: how often leakmon's verdicts are right, and how long they take.
//!
//! In: the corpus of simulated programs (`leakmon/tests/verdicts`). Out: its table on standard output and in `docs/verdicts.md`,
//! below the text that stands there. It times nothing: all seconds in it are simulated.

use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use std::{fs, process::Stdio};

const DOCUMENT: &str = "docs/verdicts.md";

/// What is below this line of the document is written here.
const MARK: &str = "<!-- Below: written by `cargo xtask bench verdicts`. -->";

pub(super) fn run(workspace: &Workspace) -> Result<String> {
    let mut command = workspace.cargo();
    // Unoptimised: it takes longer to optimise leakmon than to run this.
    command.args([
        "bench",
        "--locked",
        "--profile",
        "dev",
        "-p",
        "leakmon",
        "--bench",
        "verdicts",
    ]);
    let output = command.stderr(Stdio::inherit()).output().context("can't start cargo")?;
    let table = String::from_utf8(output.stdout).context("the table is no text")?;
    if !output.status.success() {
        println!("{table}");
        bail!("the verdicts are worse than they may be: {DOCUMENT} stays as it is");
    }
    let path = workspace.root.join(DOCUMENT);
    let text = fs::read_to_string(&path).with_context(|| format!("can't read {DOCUMENT}"))?;
    let text = with_table(&text, &table).with_context(|| format!("{DOCUMENT} lacks the line `{MARK}`"))?;
    fs::write(&path, text).with_context(|| format!("can't write {DOCUMENT}"))?;
    Ok(table)
}

/// The document with this table; `None` where it has no place for one.
fn with_table(text: &str, table: &str) -> Option<String> {
    let (before, _) = text.split_once(MARK)?;
    Some(format!("{before}{MARK}\n\n{}\n", table.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_the_mark_is_replaced() {
        let text = format!("# Title\n\n{MARK}\n\n| old |\n");
        let new = with_table(&text, "| new |\n").unwrap();
        assert_eq!(new, format!("# Title\n\n{MARK}\n\n| new |\n"));
        assert_eq!(with_table(&new, "| new |\n").unwrap(), new);
        assert_eq!(with_table("# Title\n", "| new |\n"), None);
    }
}
