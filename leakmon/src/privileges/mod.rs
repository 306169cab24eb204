//! The rights of this process: what each is for, and giving up the others.
//!
//! In: what `/proc/self/status` says. Out: the table that `doctor`, the systemd unit, the container and `docs/security.md` follow,
//! and a daemon that holds nothing else. Rights can't be taken back. It asks for none, and knows nothing of BPF.
//!
//! `CAP_SYS_ADMIN` stays, since attaching goes on for as long as the daemon runs: who takes over the daemon can do much
//! of what root can. The rest narrows the ways there: no program can be executed, no file's rights overridden for writing, no
//! process traced or written to, no module loaded.

mod system_calls;

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};

/// One capability that leakmon holds.
#[derive(Clone, Copy, Debug)]
pub struct Privilege {
    /// The capability.
    pub capability: Capability,
    /// Its bit in `/proc/PID/status` (`include/uapi/linux/capability.h`).
    pub bit: u32,
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Whether nothing works without it.
    pub required: bool,
    /// What happens without it.
    pub without: &'static str,
}

/// All that attaching and reading take.
pub const PRIVILEGES: [Privilege; 5] = [
    Privilege {
        capability: Capability::CAP_SYS_ADMIN,
        bit: 21,
        name: "CAP_SYS_ADMIN",
        purpose: "attach probes: current kernels ask for it for every uprobe",
        required: true,
        without: "no probe can be attached",
    },
    Privilege {
        capability: Capability::CAP_BPF,
        bit: 39,
        name: "CAP_BPF",
        purpose: "load BPF programs and maps",
        required: true,
        without: "the BPF programs can't be loaded",
    },
    Privilege {
        capability: Capability::CAP_PERFMON,
        bit: 38,
        name: "CAP_PERFMON",
        purpose: "let BPF programs read memory and attach to perf events",
        required: true,
        without: "the kernel refuses the BPF programs that walk stacks",
    },
    Privilege {
        capability: Capability::CAP_SYS_PTRACE,
        bit: 19,
        name: "CAP_SYS_PTRACE",
        purpose: "read the maps and the executable of processes of other users",
        required: true,
        without: "only processes of leakmon's own user can be watched",
    },
    Privilege {
        capability: Capability::CAP_DAC_READ_SEARCH,
        bit: 2,
        name: "CAP_DAC_READ_SEARCH",
        purpose: "read executables and debug files that only their owner may read",
        required: false,
        without: "executables that others may not read can't be watched",
    },
];

/// Why rights could not be given up. The daemon does not go on with more than it needs.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Capabilities.
    #[error(
        "capabilities can't be dropped: {0}: start the daemon with those that `leakmon doctor` names, and no others"
    )]
    Capabilities(#[from] CapsError),
    /// The filter of system calls.
    #[error("system calls can't be restricted: {0}: this kernel needs CONFIG_SECCOMP_FILTER")]
    Filter(#[from] seccompiler::Error),
    /// The filter itself.
    #[error("the filter of system calls can't be made: {0}")]
    Compile(#[from] seccompiler::BackendError),
}

/// Gives up every capability but [`PRIVILEGES`], for this thread and all that it starts from now on.
///
/// # Errors
/// [`PrivilegeError::Capabilities`].
pub fn keep_needed() -> Result<(), PrivilegeError> {
    keep(&PRIVILEGES.iter().map(|privilege| privilege.capability).collect())
}

/// Gives up every capability, for this thread and all that it starts from now on.
///
/// # Errors
/// [`PrivilegeError::Capabilities`].
pub fn keep_none() -> Result<(), PrivilegeError> {
    keep(&CapsHashSet::new())
}

fn keep(wanted: &CapsHashSet) -> Result<(), PrivilegeError> {
    let held = caps::read(None, CapSet::Permitted)?;
    // The bounding set first: shrinking it takes CAP_SETPCAP, which goes with the others. Where that is not held, an
    // exec could not raise anything either, since the filter forbids it.
    if held.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding)?.difference(wanted) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    let kept: CapsHashSet = held.intersection(wanted).copied().collect();
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    Ok(())
}

/// Forbids every thread of this process, those that run already too, to gain rights (`no_new_privs`) and to make a
/// system call that the daemon has no use for: it fails with `EPERM`.
///
/// # Errors
/// [`PrivilegeError::Filter`] or [`PrivilegeError::Compile`].
pub fn restrict_system_calls() -> Result<(), PrivilegeError> {
    let program = system_calls::filter()?;
    // Sets `no_new_privs` too, which the kernel hands to the threads with the filter.
    seccompiler::apply_filter_all_threads(&program)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_and_names_are_the_kernels() {
        for privilege in PRIVILEGES {
            assert_eq!(u32::from(privilege.capability.index()), privilege.bit);
            assert_eq!(privilege.capability.to_string(), privilege.name);
        }
    }

    #[test]
    fn a_thread_keeps_what_it_asks_for_and_nothing_else() {
        // A thread of its own: what is given up is given up for good.
        let kept = std::thread::spawn(|| {
            keep_needed().unwrap();
            let needed = caps::read(None, CapSet::Permitted).unwrap();
            keep_none().unwrap();
            (needed, caps::read(None, CapSet::Permitted).unwrap())
        });
        let (needed, none) = kept.join().unwrap();
        let allowed: CapsHashSet = PRIVILEGES.iter().map(|privilege| privilege.capability).collect();
        assert!(needed.is_subset(&allowed), "{needed:?}");
        assert!(none.is_empty(), "{none:?}");
    }
}
