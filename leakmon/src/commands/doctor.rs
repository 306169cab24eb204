//! `leakmon doctor`: says whether this host can run leakmon.

use super::{Exit, UNPROBEABLE, print};
use crate::kernel::host::{Check, Finding, examine};
use std::fmt::Write;

pub(super) fn execute() -> anyhow::Result<Exit> {
    let checks = examine();
    print(render(&checks).as_bytes())?;
    let broken = checks
        .iter()
        .filter(|check| matches!(check.finding, Finding::Broken(_)))
        .count();
    Ok(match broken {
        0 => Exit::Done,
        1 => Exit::Failed(
            UNPROBEABLE,
            "this host can't run leakmon: see the line marked NO above".to_owned(),
        ),
        _ => Exit::Failed(
            UNPROBEABLE,
            format!("this host can't run leakmon: see the {broken} lines marked NO above"),
        ),
    })
}

fn render(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.subject.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Check { subject, finding } in checks {
        let (mark, sentence) = match finding {
            Finding::Fine(sentence) => ("ok", sentence),
            Finding::Lacking(sentence) => ("--", sentence),
            Finding::Broken(sentence) => ("NO", sentence),
        };
        let _infallible = writeln!(text, "{mark}  {subject:width$}  {sentence}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_is_a_line_with_its_mark() {
        let check = |subject: &str, finding| Check {
            subject: subject.to_owned(),
            finding,
        };
        let text = render(&[
            check("uprobes", Finding::Fine("offered".to_owned())),
            check("file system", Finding::Lacking("not mounted".to_owned())),
            check("BTF", Finding::Broken("none: rebuild".to_owned())),
        ]);
        assert_eq!(
            text,
            "ok  uprobes      offered\n--  file system  not mounted\nNO  BTF          none: rebuild\n"
        );
    }
}
