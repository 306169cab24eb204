//! A target behaves as it does without leakmon.

use super::{host, observer::Run};
use std::process::{Command, Stdio};

#[test]
fn output_and_exit_code_are_the_same_with_and_without_leakmon() {
    let test = "output_and_exit_code_are_the_same_with_and_without_leakmon";
    for (victim, arguments) in [
        ("every_spawn", &[][..]),
        ("fixed_registry", &[]),
        ("every_spawn", &["--nonsense"]),
    ] {
        let Some(path) = host::victim_for(test, victim) else {
            return;
        };
        let alone = Command::new(&path)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let watched = Run::of(&[], &path, arguments).output;
        assert_eq!(watched.status.code(), alone.status.code(), "{victim} {arguments:?}");
        assert_eq!(
            String::from_utf8_lossy(&watched.stdout),
            String::from_utf8_lossy(&alone.stdout),
            "{victim}"
        );
        assert_eq!(
            String::from_utf8_lossy(&watched.stderr),
            String::from_utf8_lossy(&alone.stderr),
            "{victim}"
        );
    }
}
