//! A probe plan as text, for `leakmon probes IMAGE`.
//!
//! In: a [`ProbePlan`]. Out: lines for a person. Names come from the image and are escaped and bounded here.

use super::escape::name as clean;
use crate::targets::plan::{ProbePlan, ProbeSite, TaskType};
use leakmon_ebpf::abi::{Condition, Kind, Role};
use std::fmt::Write;

/// Names of merged task types that are written; more are counted.
const NAMES_MAX: usize = 4;
/// Machine encodings of the 64-bit registers (x86-64: Intel SDM volume 2, table 2-2).
const REGISTERS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
];

/// The plan as text that ends with a line end.
#[must_use]
pub fn render(plan: &ProbePlan) -> String {
    let mut out = String::new();
    // Writing to a string can't fail.
    let _ = write_plan(&mut out, plan);
    out
}

fn write_plan(out: &mut String, plan: &ProbePlan) -> std::fmt::Result {
    let version = plan.runtime_version.as_deref().unwrap_or("(version unknown)");
    writeln!(out, "{}", clean(&plan.path.display().to_string()))?;
    writeln!(out, "runtime   {} {}", plan.runtime, clean(version))?;
    if !plan.image.build_id.is_empty() {
        writeln!(out, "build id  {}", clean(&plan.image.build_id))?;
    }
    writeln!(out, "\n{} task types", plan.task_types.len())?;
    for (index, task_type) in plan.task_types.iter().enumerate() {
        write_task_type(out, index, task_type)?;
    }
    let roles = [
        (Role::Birth, "birth sites"),
        (Role::End, "completion sites"),
        (Role::Freed, "sites that release a task"),
    ];
    let planned = |role: Role| role != Role::Freed || plan.sites_of(role) > 0;
    for (role, title) in roles.into_iter().filter(|(role, _)| planned(*role)) {
        writeln!(out, "\n{} {title}", plan.sites_of(role))?;
        for site in plan.sites.iter().filter(|site| site.role == role) {
            write_site(out, site)?;
        }
    }
    let cheap = plan.sites.len() - plan.slow_sites();
    let percent = (cheap * 100).checked_div(plan.sites.len()).unwrap_or(100);
    writeln!(out, "\n{cheap} of {} sites are cheap ({percent} %)", plan.sites.len())?;
    for problem in &plan.problems {
        writeln!(out, "problem: {}", clean(problem))?;
    }
    Ok(())
}

fn write_task_type(out: &mut String, index: usize, task_type: &TaskType) -> std::fmt::Result {
    let kind = match task_type.kind {
        Kind::Task => "task",
        Kind::Local => "local",
        Kind::Blocking => "blocking",
        Kind::Thread => "thread",
    };
    let names = task_type.names.iter().take(NAMES_MAX).map(|name| clean(name));
    let mut names = names.collect::<Vec<_>>().join(" | ");
    if task_type.names.len() > 1 {
        names.insert_str(0, "one of ");
    }
    if task_type.names.len() > NAMES_MAX {
        let _ = write!(names, " | {} more", task_type.names.len() - NAMES_MAX);
    }
    if names.is_empty() {
        names.push_str("(no name)");
    }
    let owner = if task_type.runtime_owned {
        " (the runtime's own)"
    } else {
        ""
    };
    writeln!(
        out,
        "  #{index:<4} {:#010x}  {kind:<8}  {names}{owner}",
        task_type.vtable
    )
}

fn write_site(out: &mut String, site: &ProbeSite) -> std::fmt::Result {
    let task_type = match (site.role, site.task_type) {
        (Role::End | Role::Freed, _) => String::new(),
        (Role::Birth, Some(index)) => format!("#{index}"),
        (Role::Birth, None) => "several".to_owned(),
    };
    let condition = match site.condition {
        Condition::Always => "",
        Condition::ZeroSet => " if ZF",
        Condition::ZeroClear => " if not ZF",
    };
    let register = REGISTERS.get(usize::from(site.register)).copied().unwrap_or("?");
    let cost = if site.cheap { "cheap" } else { "slow" };
    writeln!(
        out,
        "  {task_type:<7} {:#010x}  file {:#010x}  {cost:<5}  {:<28} {register}{condition}",
        site.address,
        site.file_offset,
        clean(&site.instruction),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::plan::ImageId;

    fn sample() -> ProbePlan {
        let task_type = |names: &[&str], kind, runtime_owned| TaskType {
            vtable: 0x9000,
            kind,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            runtime_owned,
            vtable_offset: 0x10,
            trailer_offset: Some(0x50),
            scheduler_offset: Some(0x20),
            id_offset: Some(0x28),
        };
        let site = |role, register, condition, task_type, cheap| ProbeSite {
            role,
            file_offset: 0x1234,
            address: 0x5234,
            register,
            condition,
            task_type,
            bytes: vec![0x74, 1],
            instruction: "je 5237h".to_owned(),
            cheap,
        };
        ProbePlan {
            image: ImageId {
                device: 1,
                inode: 2,
                build_id: "ab".to_owned(),
            },
            path: "/srv/a\u{1b}[2Jpp".into(),
            entry_file_offset: None,
            runtime: "tokio",
            runtime_version: Some("1.54.1".to_owned()),
            task_types: vec![
                task_type(&["app::run::{{closure}}"], Kind::Task, false),
                task_type(&["a", "b", "c", "d", "e", "f"], Kind::Local, false),
                task_type(&["w\n"], Kind::Blocking, true),
                task_type(&[], Kind::Task, false),
            ],
            sites: vec![
                site(Role::Birth, 0, Condition::ZeroClear, Some(0), true),
                site(Role::Birth, 15, Condition::Always, None, false),
                site(Role::End, 7, Condition::ZeroSet, None, true),
            ],
            problems: vec!["Nothing\u{7} works.".to_owned()],
        }
    }

    #[test]
    fn a_plan_is_shown_whole_and_harmless() {
        let text = render(&sample());
        for expected in [
            "/srv/a\\u{1b}[2Jpp\n",
            "runtime   tokio 1.54.1\n",
            "build id  ab\n",
            "4 task types\n",
            "task      app::run::{{closure}}\n",
            "local     one of a | b | c | d | 2 more\n",
            "blocking  w\\n (the runtime's own)\n",
            "(no name)\n",
            "2 birth sites\n",
            "#0      0x00005234  file 0x00001234  cheap  je 5237h                     rax if not ZF\n",
            "several 0x00005234  file 0x00001234  slow   je 5237h                     r15\n",
            "1 completion sites\n",
            "rdi if ZF\n",
            "2 of 3 sites are cheap (66 %)\n",
            "problem: Nothing\\u{7} works.\n",
        ] {
            assert!(text.contains(expected), "{expected:?} in {text}");
        }
        assert!(
            !text
                .chars()
                .any(|character| character.is_control() && character != '\n')
        );
    }
}
