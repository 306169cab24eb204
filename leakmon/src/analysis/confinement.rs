//! What a child gives up before it reads an untrusted file.
//!
//! In: a job's bounds. Out: what was given up, as far as this kernel can ([`Confinement`]). Each layer stands alone:
//!
//! | layer | takes away | without it |
//! | --- | --- | --- |
//! | resource limits | memory, processor time, every new descriptor, writing to files | never missing |
//! | capabilities, `no_new_privs` | all of them, for good | never missing |
//! | landlock | every file, TCP, abstract sockets, signals to others | kernels before 5.13, or where it is switched off |
//! | seccomp | all system calls but those listed here | architectures that the filter's crate does not know |

use super::job::Job;
use caps::CapSet;
use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope};
use nix::sys::{
    prctl::set_no_new_privs,
    resource::{Resource, getrlimit, setrlimit},
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::{collections::BTreeMap, io};

/// The stack of a child: DWARF is a tree that blazesym descends by recursion. Pages that are never touched cost nothing.
const STACK_BYTES: u64 = 64 << 20;
/// Newest landlock that is asked for; older kernels do what they can.
const LANDLOCK: ABI = ABI::V6;

/// What was given up where it depends on the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// Landlock denies every file.
    pub landlock: bool,
    /// Seccomp denies every system call that is not listed.
    pub seccomp: bool,
}

impl Confinement {
    /// As one byte, the first that a child says.
    pub(super) const fn to_byte(self) -> u8 {
        self.landlock as u8 | (self.seccomp as u8) << 1
    }

    pub(super) const fn from_byte(byte: u8) -> Self {
        Self {
            landlock: byte & 1 != 0,
            seccomp: byte & 2 != 0,
        }
    }
}

/// Gives up everything, in this process, for good.
///
/// # Errors
/// A layer fails that no kernel lacks.
pub(super) fn confine(job: &Job) -> io::Result<Confinement> {
    set_no_new_privs()?;
    // The last file that it opens.
    let mapped = mapped_bytes()?;
    let landlock = deny_files();
    for set in [
        CapSet::Ambient,
        CapSet::Effective,
        CapSet::Permitted,
        CapSet::Inheritable,
    ] {
        caps::clear(None, set).map_err(io::Error::other)?;
    }
    limit(job, mapped.saturating_add(job.memory_bytes))?;
    Ok(Confinement {
        landlock,
        seccomp: deny_calls(),
    })
}

/// Lowers the resource limits. All that the child needs is open and mapped by now.
fn limit(job: &Job, memory_bytes: u64) -> io::Result<()> {
    let stack = getrlimit(Resource::RLIMIT_STACK)?.1.min(STACK_BYTES);
    setrlimit(Resource::RLIMIT_STACK, stack, stack)?;
    // SIGXCPU at the first, by which the cause is known; SIGKILL at the second.
    setrlimit(Resource::RLIMIT_CPU, job.processor_seconds, job.processor_seconds + 1)?;
    for (resource, value) in [
        (Resource::RLIMIT_AS, memory_bytes),
        (Resource::RLIMIT_CORE, 0),
        // Numbers of new descriptors must be below it: there are none, be it for files or for sockets.
        (Resource::RLIMIT_NOFILE, 0),
        (Resource::RLIMIT_FSIZE, 0),
    ] {
        let value = getrlimit(resource)?.1.min(value);
        setrlimit(resource, value, value)?;
    }
    Ok(())
}

/// Bytes of address space in use: the first field of `statm`, in pages (proc(5)).
fn mapped_bytes() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages = text.split(' ').next().and_then(|pages| pages.parse::<u64>().ok());
    let page_bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.unwrap_or(4096);
    let pages = pages.ok_or_else(|| io::Error::other("/proc/self/statm has no number"))?;
    Ok(pages.saturating_mul(page_bytes.cast_unsigned()))
}

/// A landlock domain without any rule.
fn deny_files() -> bool {
    let restricted = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(LANDLOCK)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(LANDLOCK)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self);
    restricted.is_ok_and(|status| status.ruleset != RulesetStatus::NotEnforced)
}

fn deny_calls() -> bool {
    filter().is_some_and(|filter| seccompiler::apply_filter(&filter).is_ok())
}

/// The filter: what parsing bytes and answering over an open socket needs. Everything else fails as if there were no such
/// file, which is what blazesym must hear when it looks for a `.dwp` beside an image.
fn filter() -> Option<BpfProgram> {
    const ALWAYS: [i64; 27] = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_pread64,
        libc::SYS_lseek,
        libc::SYS_close,
        libc::SYS_fstat,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_restart_syscall,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_getrandom,
        libc::SYS_sched_yield,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_getrusage,
    ];
    // No file becomes memory, and no memory code.
    let no_code = bits(2, libc::PROT_EXEC, 0)?;
    let anonymous = bits(3, libc::MAP_ANONYMOUS, libc::MAP_ANONYMOUS)?;
    // `abort` signals itself.
    let own = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Eq,
        u64::from(std::process::id()),
    )
    .ok()?;
    // Of an open file only: with an empty path.
    let by_descriptor = |argument| bits(argument, libc::AT_EMPTY_PATH, libc::AT_EMPTY_PATH);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALWAYS.into_iter().map(|call| (call, Vec::new())).collect();
    for (call, conditions) in [
        (libc::SYS_mmap, vec![no_code.clone(), anonymous]),
        (libc::SYS_mprotect, vec![no_code]),
        (libc::SYS_tgkill, vec![own]),
        (libc::SYS_newfstatat, vec![by_descriptor(3)?]),
        (libc::SYS_statx, vec![by_descriptor(2)?]),
    ] {
        rules.insert(call, vec![SeccompRule::new(conditions).ok()?]);
    }
    let target = std::env::consts::ARCH.try_into().ok()?;
    let denied = SeccompAction::Errno(libc::ENOENT.cast_unsigned());
    let filter = SeccompFilter::new(rules, denied, SeccompAction::Allow, target);
    filter.ok()?.try_into().ok()
}

/// That the bits of `mask` in an argument are those of `value`.
fn bits(argument: u8, mask: i32, value: i32) -> Option<SeccompCondition> {
    let operator = SeccompCmpOp::MaskedEq(u64::from(mask.cast_unsigned()));
    let value = u64::from(value.cast_unsigned());
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_compiles_here_and_a_byte_tells_it() {
        assert!(filter().is_some());
        for byte in 0..4 {
            assert_eq!(Confinement::from_byte(byte).to_byte(), byte);
        }
    }

    #[test]
    fn a_process_maps_more_than_a_megabyte() {
        assert!((1 << 20..1 << 46).contains(&mapped_bytes().unwrap()));
    }
}
