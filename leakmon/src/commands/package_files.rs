//! `leakmon package-files`: what a package installs beside the program, made from the program's own definitions.
//!
//! In: the command line's definition and the configuration's structs. Out: manual pages, completion scripts and the example
//! configuration, in one folder.

use super::Exit;
use crate::{cli::Cli, config::example};
use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use std::{fs, path::Path};

pub(super) fn execute(folder: &Path) -> anyhow::Result<Exit> {
    let made = |result: std::io::Result<()>| result.with_context(|| format!("{}: can't be written", folder.display()));
    made(fs::create_dir_all(folder))?;
    made(clap_mangen::generate_to(Cli::command(), folder))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        made(clap_complete::generate_to(shell, &mut Cli::command(), "leakmon", folder).map(drop))?;
    }
    made(fs::write(folder.join("leakmon.toml"), example::text()?))?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_page_and_every_shell_its_script() {
        let folder = tempfile::tempdir().unwrap();
        execute(folder.path()).unwrap();
        for file in [
            "leakmon.1",
            "leakmon-daemon.1",
            "leakmon.bash",
            "_leakmon",
            "leakmon.fish",
            "leakmon.toml",
        ] {
            assert!(folder.path().join(file).metadata().unwrap().len() > 100, "{file}");
        }
        let visible = Cli::command()
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
            .count();
        let pages = fs::read_dir(folder.path()).unwrap().flatten();
        let pages = pages
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "1"))
            .count();
        // One for the program itself.
        assert_eq!(pages, visible + 1);
    }
}
