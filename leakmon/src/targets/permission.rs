//! Why a process's memory may not be read, in words.
//!
//! In: a process that the kernel refused, from `/proc`. Out: one clause that says why and what to do. The kernel gives no
//! reason (`kernel/ptrace.c`, `__ptrace_may_access`), so its conditions are gone through in its order.

use std::os::unix::fs::MetadataExt;

/// What Yama allows (`Documentation/admin-guide/LSM/Yama.rst`).
const YAMA: &str = "/proc/sys/kernel/yama/ptrace_scope";

/// Why `PTRACE_MODE_ATTACH` was refused for a process, and what to do.
#[must_use]
pub fn ptrace_refusal(tgid: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{tgid}/status")).unwrap_or_default();
    let scope = std::fs::read_to_string(YAMA)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let own_namespace = std::fs::metadata("/proc/self/ns/user").map(|of| of.ino()).ok();
    let namespace = std::fs::metadata(format!("/proc/{tgid}/ns/user"))
        .map(|of| of.ino())
        .ok();
    let other_namespace = namespace.is_some() && namespace != own_namespace;
    refusal(
        nix::unistd::geteuid().as_raw(),
        user_of(&status),
        scope,
        other_namespace,
    )
}

fn refusal(own: u32, user: Option<u32>, yama: Option<u32>, other_namespace: bool) -> String {
    match (user, yama) {
        (_, Some(3)) => "kernel.yama.ptrace_scope is 3, which forbids it to everybody until the next boot".to_owned(),
        (Some(user), _) if own != 0 && user != own => {
            format!("it runs as user {user}, leakmon as user {own}; run leakmon as user {user}, or with CAP_SYS_PTRACE")
        }
        _ if other_namespace => "it is in another user namespace; run leakmon with CAP_SYS_PTRACE outside of it".to_owned(),
        (_, Some(scope @ 1..=2)) => format!(
            "kernel.yama.ptrace_scope is {scope}, which allows it to a debugger's own children at most; run leakmon with \
             CAP_SYS_PTRACE, or set it to 0"
        ),
        _ => "it has more privileges than leakmon, or has forbidden it (PR_SET_DUMPABLE); run leakmon with CAP_SYS_PTRACE"
            .to_owned(),
    }
}

/// The real user of `/proc/PID/status`.
fn user_of(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_that_the_kernel_had_is_named() {
        for (own, user, yama, namespace, expected) in [
            (1000, Some(0), None, false, "runs as user 0, leakmon as user 1000"),
            (1000, Some(1000), Some(1), false, "ptrace_scope is 1"),
            (1000, Some(1000), Some(0), false, "PR_SET_DUMPABLE"),
            (0, Some(1000), Some(3), false, "until the next boot"),
            (1000, Some(1000), Some(0), true, "another user namespace"),
            (1000, None, None, false, "CAP_SYS_PTRACE"),
        ] {
            let said = refusal(own, user, yama, namespace);
            assert!(said.contains(expected), "{said}");
        }
        assert_eq!(user_of("Name:\tUid: 7\nUid:\t1000\t1001\t0\t0\n"), Some(1000));
        assert_eq!(user_of(""), None);
    }
}
