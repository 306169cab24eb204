//! What this host offers: capabilities and kernel features, probed and never guessed from a version.
//!
//! In: `/proc`, `/sys`, and a trial load. Out: a list of checks with plain words and a remedy each, for `leakmon doctor`,
//! and the early refusal of a process without rights.

use super::{Kernel, KernelError, Settings, btf::KernelOffsets, object};
use crate::privileges::{PRIVILEGES, Privilege};
use std::path::Path;

/// The capability that stands for all others: without it nothing works.
const SYS_ADMIN: u32 = 21;

/// One line of `leakmon doctor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub subject: String,
    /// What was found.
    pub finding: Finding,
}

/// How a check came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// As it should be; a few words.
    Fine(String),
    /// Works without, with a loss that the sentence names.
    Lacking(String),
    /// leakmon can't run; the sentence names the remedy.
    Broken(String),
}

/// Refuses a process that can't attach probes, before anything else is tried.
///
/// # Errors
/// [`KernelError::Capability`].
pub fn require_capabilities() -> Result<(), KernelError> {
    let effective = effective_capabilities();
    // Unknown: let the kernel decide.
    if effective.is_none_or(|effective| effective >> SYS_ADMIN & 1 != 0) {
        return Ok(());
    }
    Err(KernelError::Capability(
        "CAP_SYS_ADMIN (to attach probes) and CAP_BPF (to load BPF programs)",
    ))
}

/// Lets this process open as many files as its hard limit says: each probe is one, and the usual soft limit is 1,024. Not fatal:
/// a probe that finds no room is refused by itself, and said so.
pub fn raise_open_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls get a structure of their own type, which lives through them.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    if !raised {
        tracing::debug!(
            "the limit of open files can't be raised: {}",
            std::io::Error::last_os_error()
        );
    }
}

fn effective_capabilities() -> Option<u64> {
    parse_effective(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse_effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Looks at everything that leakmon needs. Loads the programs for a moment where that is possible; attaches no probe.
#[must_use]
pub fn examine() -> Vec<Check> {
    let mut checks = vec![architecture()];
    checks.extend(capabilities());
    checks.push(offsets());
    checks.push(uprobes());
    checks.push(programs());
    checks.push(bpf_file_system());
    checks.extend(restrictions());
    checks
}

fn check(subject: &str, finding: Finding) -> Check {
    Check {
        subject: subject.to_owned(),
        finding,
    }
}

fn architecture() -> Check {
    let finding = if cfg!(target_arch = "x86_64") {
        Finding::Fine("x86-64".to_owned())
    } else {
        Finding::Broken(format!(
            "{} is not supported: leakmon needs x86-64",
            std::env::consts::ARCH
        ))
    };
    check("processor", finding)
}

fn capabilities() -> Vec<Check> {
    let effective = effective_capabilities();
    let one = |privilege: Privilege| {
        let Privilege { purpose, without, .. } = privilege;
        let finding = match effective {
            Some(effective) if effective >> privilege.bit & 1 != 0 => Finding::Fine(format!("held, to {purpose}")),
            Some(_) if privilege.required => Finding::Broken(format!(
                "missing: needed to {purpose}; run leakmon as root, or grant it"
            )),
            Some(_) => Finding::Lacking(format!("missing, so {without}")),
            None => Finding::Lacking("not known: /proc/self/status can't be read".to_owned()),
        };
        check(privilege.name, finding)
    };
    PRIVILEGES.into_iter().map(one).collect()
}

fn offsets() -> Check {
    let finding = match KernelOffsets::of_running_kernel() {
        Ok(_) => Finding::Fine("the kernel describes its types".to_owned()),
        Err(error) => Finding::Broken(error.to_string()),
    };
    check("type information (BTF)", finding)
}

fn uprobes() -> Check {
    // The file exists where CONFIG_UPROBE_EVENTS is set (`kernel/events/core.c`, `perf_uprobe`).
    let finding = if Path::new("/sys/bus/event_source/devices/uprobe/type").exists() {
        Finding::Fine("the kernel offers them".to_owned())
    } else {
        Finding::Broken("this kernel offers none: it must be built with CONFIG_UPROBE_EVENTS".to_owned())
    };
    check("uprobes", finding)
}

fn programs() -> Check {
    let tried = object::embedded()
        .map_err(KernelError::from)
        .and_then(|_| Kernel::load_for_trial(Settings::default()));
    let finding = match tried {
        Ok(()) => Finding::Fine("accepted by this kernel".to_owned()),
        Err(error) => Finding::Broken(error.to_string()),
    };
    check("BPF programs", finding)
}

fn bpf_file_system() -> Check {
    let mounted = std::fs::read_to_string("/proc/self/mounts")
        .is_ok_and(|mounts| mounts.lines().any(|mount| mount.split(' ').nth(2) == Some("bpf")));
    let finding = if mounted {
        Finding::Fine("mounted".to_owned())
    } else {
        Finding::Lacking("not mounted; nothing needs it yet: `mount -t bpf bpf /sys/fs/bpf`".to_owned())
    };
    check("BPF file system", finding)
}

/// What the kernel offers to restrict the daemon with once it has started.
fn restrictions() -> Vec<Check> {
    let offered = |subject: &str, file: &str, word: &str, without: &str| {
        let finding = match std::fs::read_to_string(file) {
            Ok(text) if text.split([' ', ',', '\n']).any(|found| found == word) => {
                Finding::Fine("the kernel offers it".to_owned())
            }
            Ok(_) => Finding::Lacking(format!("this kernel has none, so {without}")),
            Err(error) => Finding::Lacking(format!("not known: {file}: {error}")),
        };
        check(subject, finding)
    };
    vec![
        // `Documentation/userspace-api/seccomp_filter.rst`, "Sysctls".
        offered(
            "system call filter (seccomp)",
            "/proc/sys/kernel/seccomp/actions_avail",
            "errno",
            "the daemon refuses to start",
        ),
        offered(
            "file restrictions (Landlock)",
            "/sys/kernel/security/lsm",
            "landlock",
            "the analysis of images is not shut off from files",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read_from_its_line() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n";
        assert_eq!(parse_effective(status), Some(0x1ff_ffff_ffff));
        assert_eq!(parse_effective("Name:\tx\n"), None);
        assert_eq!(parse_effective("CapEff:\tzz\n"), None);
    }

    #[test]
    fn every_check_that_fails_says_what_to_do() {
        for check in capabilities() {
            if let Finding::Broken(sentence) = check.finding {
                assert!(sentence.contains("root"), "{}: {sentence}", check.subject);
            }
        }
    }
}
