//! The example configuration file: every key with its documentation and its default.
//!
//! In: the configuration's structs, with their fields' documentation and default values. Out: the text of
//! `/etc/leakmon/leakmon.toml`, in which every key is commented out. A key can't be forgotten: the text is made from the structs.

use super::Config;
use documented::DocumentedFields;
use serde::Serialize;
use std::fmt::Write;

/// Columns of a line of documentation.
const COLUMNS: usize = 100;

/// Values shown for keys that have no default.
const VALUES: [(&str, &str); 7] = [
    ("pin", "true"),
    ("web_config_file", "\"/etc/leakmon/web.yml\""),
    ("pyroscope.url", "\"http://pyroscope.example:4040\""),
    ("pyroscope.tenant", "\"team-a\""),
    ("pyroscope.user", "\"leakmon\""),
    ("pyroscope.password_file", "\"/etc/leakmon/pyroscope-password\""),
    ("pyroscope.ca_file", "\"/etc/leakmon/pyroscope-ca.pem\""),
];

const HEAD: &str = "# Configuration of `leakmon daemon`. Every key is shown with its default, commented out.
#
# `systemctl reload leakmon` (SIGHUP) reads this file again. A file that is wrong changes nothing: the daemon keeps what it has,
# says why in its log, and sets the metric leakmon_config_last_reload_successful to 0.
";

/// The text of the example file.
///
/// # Errors
/// A default can't be written as TOML, or a key without default has no example value; a test sees to it that neither happens.
pub fn text() -> Result<String, ExampleError> {
    let config = Config::default();
    let mut text = HEAD.to_owned();
    section(&mut text, "", &config)?;
    section(&mut text, "bounds", &config.bounds)?;
    section(&mut text, "kubernetes", &config.kubernetes)?;
    section(&mut text, "pyroscope", &config.pyroscope)?;
    Ok(text)
}

/// Why there is no example.
#[derive(Debug, thiserror::Error)]
pub enum ExampleError {
    /// A default is no TOML.
    #[error("a default can't be written: {0}")]
    Value(#[from] toml::ser::Error),
    /// A key has neither default nor example.
    #[error("`{0}` has neither a default nor an example value")]
    NoValue(String),
}

/// Names of the tables, which are sections of their own.
const SECTIONS: [&str; 3] = ["bounds", "kubernetes", "pyroscope"];

fn section<T: Serialize + DocumentedFields>(text: &mut String, name: &str, value: &T) -> Result<(), ExampleError> {
    let defaults = toml::Table::try_from(value)?;
    if !name.is_empty() {
        let about = Config::get_field_docs(name).unwrap_or_default();
        let _infallible = writeln!(text, "\n{}[{name}]", comment(about));
    }
    for key in T::FIELD_NAMES
        .iter()
        .filter(|key| !name.is_empty() || !SECTIONS.contains(key))
    {
        let full = if name.is_empty() {
            (*key).to_owned()
        } else {
            format!("{name}.{key}")
        };
        let value = match (defaults.get(*key), VALUES.iter().find(|(known, _)| *known == full)) {
            (Some(default), _) => default.to_string(),
            (None, Some((_, example))) => (*example).to_owned(),
            (None, None) => return Err(ExampleError::NoValue(full)),
        };
        let about = T::get_field_docs(key).unwrap_or_default();
        let _infallible = write!(text, "\n{}#{key} = {value}\n", comment(about));
    }
    Ok(())
}

/// Documentation as comment lines.
fn comment(documentation: &str) -> String {
    let mut lines = String::new();
    let mut line = String::from("#");
    for word in documentation.split_whitespace() {
        if line.len() + 1 + word.len() > COLUMNS {
            let _infallible = writeln!(lines, "{line}");
            "#".clone_into(&mut line);
        }
        line.push(' ');
        line.push_str(word);
    }
    let _infallible = writeln!(lines, "{line}");
    lines
}

#[cfg(test)]
mod tests {
    use super::super::{Bounds, Kubernetes, Pyroscope};
    use super::*;

    /// The file that the package installs and the documentation shows.
    const COMMITTED: &str = include_str!("../../../deploy/systemd/leakmon.toml");

    /// The example with its keys in force.
    fn uncommented() -> String {
        let in_force = |line: &str| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') && !key.is_empty() => key.to_owned(),
            _ => line.to_owned(),
        };
        text().unwrap().lines().map(in_force).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_committed_file_is_the_generated_one() {
        let wanted = text().unwrap();
        assert!(
            COMMITTED == wanted,
            "deploy/systemd/leakmon.toml is not what the structs say: run `cargo xtask package-files`"
        );
    }

    #[test]
    fn the_file_as_it_is_and_with_every_key_in_force_is_understood() {
        assert_eq!(toml::from_str::<Config>(&text().unwrap()).unwrap(), Config::default());
        let mut shown: toml::Table = toml::from_str(&uncommented()).unwrap();
        let config: Config = shown.clone().try_into().unwrap();
        // Keys without default show a value; all others show the default.
        for (key, _) in VALUES {
            let (table, key) = key
                .split_once('.')
                .map_or((None, key), |(table, key)| (Some(table), key));
            let removed = match table {
                Some(table) => shown[table].as_table_mut().unwrap().remove(key),
                None => shown.remove(key),
            };
            assert!(removed.is_some(), "{key}");
        }
        assert_eq!(toml::Table::try_from(Config::default()).unwrap(), shown);
        drop(config);
    }

    #[test]
    fn every_key_is_documented() {
        fn documented<T: DocumentedFields>() {
            for name in T::FIELD_NAMES {
                assert!(T::get_field_docs(name).is_ok_and(|text| !text.is_empty()), "{name}");
            }
        }
        documented::<Config>();
        documented::<Bounds>();
        documented::<Kubernetes>();
        documented::<Pyroscope>();
    }
}
