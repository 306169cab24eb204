//! The README and the CHANGELOG say what the code does.
//!
//! In: the documents, the metric names, the command line's definition. Out: findings. Names are found in the source's text:
//! a metric is a literal `"leakmon_…"` in the exporter, a command a variant of `enum Command`.

use super::{File, Finding, Tree};
use clap::CommandFactory as _;
use std::collections::BTreeSet;

const README: &str = "README.md";
const METRICS: &str = "leakmon/src/export/metrics.rs";
const CLI: &str = "leakmon/src/cli.rs";

pub(super) fn metrics(tree: &Tree) -> Vec<Finding> {
    let (readme, code) = match (tree.need(README), tree.need(METRICS)) {
        (Ok(readme), Ok(code)) => (readme, code),
        (readme, code) => return [readme.err(), code.err()].into_iter().flatten().flatten().collect(),
    };
    let product: Vec<&str> = code.text.lines().take(code.tests_from().saturating_sub(1)).collect();
    let exported = metric_names(&product.join("\n"), '"');
    let mut findings = Vec::new();
    let mut told = BTreeSet::new();
    for (index, line) in readme
        .text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with('|'))
    {
        for name in metric_names(line, '`') {
            if !exported.contains(&name) {
                findings.push(Finding::new(readme, index + 1, format!("no metric is called `{name}`")));
            }
            told.insert(name);
        }
    }
    for name in exported.difference(&told) {
        findings.push(Finding::new(readme, 0, format!("the metric table lacks `{name}`")));
    }
    findings
}

/// Words that begin with `leakmon_`, directly behind `quote`, and end at `quote` or at labels in braces.
fn metric_names(text: &str, quote: char) -> BTreeSet<String> {
    let starts = text
        .match_indices("leakmon_")
        .filter(|(at, _)| text[..*at].ends_with(quote));
    let names = starts.filter_map(|(at, _)| {
        let rest = &text[at..];
        let end = rest.find(|ch: char| !ch.is_ascii_alphanumeric() && ch != '_')?;
        let closed = rest[end..].starts_with(quote) || rest[end..].starts_with('{');
        (closed && end > "leakmon_".len()).then(|| rest[..end].to_owned())
    });
    names.collect()
}

pub(super) fn command_lines(tree: &Tree) -> Vec<Finding> {
    let (readme, cli) = match (tree.need(README), tree.need(CLI)) {
        (Ok(readme), Ok(cli)) => (readme, cli),
        (readme, cli) => return [readme.err(), cli.err()].into_iter().flatten().flatten().collect(),
    };
    let programs = [
        (&["leakmon"][..], variants(cli), cli),
        (
            &["cargo", "xtask"][..],
            own_commands(),
            tree.get("xtask/src/main.rs").unwrap_or(cli),
        ),
    ];
    let mut findings = Vec::new();
    for (line, command) in commands(&readme.text) {
        let words: Vec<&str> = command.split_whitespace().skip_while(|word| is_prompt(word)).collect();
        for (program, known, definition) in &programs {
            let Some(arguments) = words.strip_prefix(*program) else {
                continue;
            };
            match arguments.first() {
                Some(name) if name.starts_with('-') || known.contains(*name) => {}
                Some(name) => findings.push(Finding::new(readme, line, format!("there is no command `{name}`"))),
                None => {}
            }
            let options = arguments
                .iter()
                .take_while(|word| **word != "--")
                .filter(|word| word.starts_with("--"));
            for option in options.filter(|option| !knows_option(definition, option)) {
                findings.push(Finding::new(readme, line, format!("there is no option `{option}`")));
            }
        }
    }
    findings
}

fn is_prompt(word: &str) -> bool {
    matches!(word, "$" | "#" | "sudo" | "-E")
}

/// Line numbers and texts of fenced lines and of spans in backticks.
fn commands(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            found.push((index + 1, line));
        } else {
            found.extend(line.split('`').skip(1).step_by(2).map(|span| (index + 1, span)));
        }
    }
    found
}

/// Variants of `enum Command`, as clap calls them.
fn variants(cli: &File) -> BTreeSet<String> {
    let body = cli
        .code
        .lines()
        .skip_while(|line| !line.ends_with("enum Command {"))
        .skip(1);
    let body = body.take_while(|line| *line != "}");
    let names = body.filter_map(|line| {
        line.strip_prefix("    ")
            .filter(|rest| rest.starts_with(char::is_uppercase))
    });
    names
        .map(|rest| kebab(rest.split(|ch: char| !ch.is_alphanumeric()).next().unwrap_or_default()))
        .collect()
}

fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for ch in name.chars() {
        if ch.is_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.extend(ch.to_lowercase());
    }
    kebab
}

fn own_commands() -> BTreeSet<String> {
    let command = crate::Arguments::command();
    command
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect()
}

/// Whether an option is a field, or named in a literal, of the definition.
fn knows_option(definition: &File, option: &str) -> bool {
    let name = option.trim_start_matches('-').split('=').next().unwrap_or_default();
    let field = format!("{}:", name.replace('-', "_"));
    let is_field = |line: &str| line.trim_start().trim_start_matches("pub ").starts_with(&field);
    let everywhere = ["help", "version"].contains(&name);
    everywhere || definition.code.lines().any(is_field) || definition.text.contains(&format!("\"{name}\""))
}

pub(super) fn changelog(tree: &Tree) -> Vec<Finding> {
    let (changelog, manifest) = match (tree.need("CHANGELOG.md"), tree.need("Cargo.toml")) {
        (Ok(changelog), Ok(manifest)) => (changelog, manifest),
        (changelog, manifest) => {
            return [changelog.err(), manifest.err()]
                .into_iter()
                .flatten()
                .flatten()
                .collect();
        }
    };
    let manifest: toml::Table = manifest.text.parse().unwrap_or_default();
    let version = manifest
        .get("workspace")
        .and_then(|workspace| workspace.get("package")?.get("version")?.as_str());
    let Some(version) = version else {
        return vec![Finding::new(
            changelog,
            0,
            "the workspace has no version to compare with",
        )];
    };
    let heading =
        |line: &str| line.strip_prefix("## ").and_then(|rest| rest.split_whitespace().next()) == Some(version);
    if changelog.text.lines().any(heading) {
        return Vec::new();
    }
    vec![Finding::new(
        changelog,
        0,
        format!("there is no section `## {version}`"),
    )]
}

#[cfg(test)]
mod tests {
    use super::super::tests::{places, tree};
    use super::*;

    #[test]
    fn the_metric_table_is_compared_both_ways() {
        let code = "name: \"leakmon_tasks_live\",\nname: \"leakmon_targets\",\n#[cfg(test)]\n\"leakmon_made_up\"\n";
        let readme =
            "| `leakmon_tasks_live` | gauge |\n| `leakmon_targets{status}`, `leakmon_gone` | x |\n`leakmon_text`\n";
        assert_eq!(
            places(&metrics(&tree(&[(README, readme), (METRICS, code)]))),
            ["README.md:2"]
        );
        let findings = metrics(&tree(&[(README, "| `leakmon_targets` |\n"), (METRICS, code)]));
        assert_eq!(findings.len(), 1);
        assert!(
            findings[0].message.contains("lacks `leakmon_tasks_live`"),
            "{findings:?}"
        );
        assert_eq!(metrics(&tree(&[])).len(), 2);
    }

    const DEFINITION: &str = "pub enum Command {\n    /// Runs\n    #[command(after_help = \"Try\n    Nothing\")]\n    \
        Run(RunArgs),\n    Doctor,\n    TwoWords {\n        shell: u8,\n    },\n}\n\
        pub struct RunArgs {\n    pub no_stacks: bool,\n    #[arg(long = \"pid\")]\n    pub process: u32,\n}\n";

    #[test]
    fn command_lines_are_looked_up() {
        let readme = "`leakmon run -- app --flag` and `leakmon fly`\n```sh\n$ sudo leakmon run --no-stacks --pid 1\n\
            leakmon two-words\nleakmon run --speed 3\n```\nleakmon is a word, `leakmon --version` is a command\n\
            `cargo xtask tidy` `cargo xtask dance`\n";
        let findings = command_lines(&tree(&[(README, readme), (CLI, DEFINITION), ("xtask/src/main.rs", "")]));
        assert_eq!(places(&findings), ["README.md:1", "README.md:5", "README.md:8"]);
    }

    #[test]
    fn commands_are_read_from_the_definition() {
        let names = variants(&File::new(CLI, DEFINITION));
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["doctor", "run", "two-words"]);
    }

    #[test]
    fn the_changelog_has_a_section_for_the_version() {
        let manifest = ("Cargo.toml", "[workspace.package]\nversion = \"0.1.0\"\n");
        for (text, findings) in [("## 0.1.0 (not released)\n", 0), ("## 0.1.01\n", 1), ("0.1.0\n", 1)] {
            assert_eq!(
                changelog(&tree(&[("CHANGELOG.md", text), manifest])).len(),
                findings,
                "{text}"
            );
        }
        assert_eq!(changelog(&tree(&[manifest])).len(), 1);
    }
}
