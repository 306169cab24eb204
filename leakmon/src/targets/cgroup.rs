//! Which container a process is in, read from its cgroup.
//!
//! In: the text of `/proc/PID/cgroup`. Out: the path, the container's id and the pod's uid, where the path names them. No
//! container engine is asked; the path is text that whoever made the cgroup chose, so it is bounded, and an id is hexadecimal or
//! nothing.
//!
//! | who | path, innermost part |
//! | --- | --- |
//! | docker, cgroupfs driver | `/docker/ID` |
//! | docker, systemd driver | `/system.slice/docker-ID.scope` |
//! | containerd (CRI) | `/kubepods/burstable/podUID/ID`, `/kubepods-burstable-podUID.slice/cri-containerd-ID.scope`, `…slice:cri-containerd:ID` |
//! | cri-o | `/kubepods-podUID.slice/crio-ID.scope` (`crio-conmon-ID.scope` is its monitor) |
//! | podman | `/machine.slice/libpod-ID.scope/container` (`libpod-conmon-ID.scope` is its monitor) |
//!
//! Sources: `opencontainers/runc` `libcontainer/cgroups/systemd/common.go` (`getUnitName`: `PREFIX-ID.scope`), `kubernetes`
//! `pkg/kubelet/cm/cgroup_manager_linux.go` (`kubepods…pod` names, `-` of a uid written as `_` in slices), `containers/podman`
//! `libpod/oci_conmon_common.go`, `containerd` `internal/cri` (`…:cri-containerd:ID`).

/// Bytes of `/proc/PID/cgroup` that are read: one line a hierarchy, a path of at most `PATH_MAX` each; v2 has one line.
pub const TEXT_BYTES_MAX: u64 = 32 * 1024;

/// Digits of a container's id: 64 in all engines named above; podman and docker accept shorter prefixes nowhere in a path.
const ID_DIGITS: usize = 64;

/// Where a process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Path in the hierarchy that was mounted where leakmon runs: v2's, else v1's longest. Untrusted.
    pub path: String,
    /// The container's id, 64 lower-case hexadecimal digits.
    pub container: Option<String>,
    /// The pod's uid in Kubernetes, with dashes where its cgroup has underscores.
    pub pod_uid: Option<String>,
}

impl Cgroup {
    /// Reads the lines `hierarchy:controllers:path` (`man 7 cgroups`). The path is the rest of its line.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let paths = || text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        let unified = text.lines().find_map(|line| line.strip_prefix("0::"));
        let longest = paths().max_by_key(|path| path.len());
        // On a hybrid host v2's path may be `/` while v1's name the container.
        let path = unified.filter(|path| *path != "/").or(longest).unwrap_or("/");
        Self {
            path: path.to_owned(),
            container: container(path).or_else(|| paths().find_map(container)),
            pod_uid: pod_uid(path).or_else(|| paths().find_map(pod_uid)),
        }
    }
}

/// The innermost part of a path that is a container's id, a scope of one, or `slice:PREFIX:ID`. A monitor (`conmon`) is outside
/// its container.
fn container(path: &str) -> Option<String> {
    path.rsplit('/').find_map(|part| {
        let name = part.strip_suffix(".scope").unwrap_or(part);
        let (prefix, id) = name.rsplit_once(['-', ':']).unwrap_or(("", name));
        let is_id = id.len() == ID_DIGITS && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (is_id && !prefix.ends_with("conmon")).then(|| id.to_owned())
    })
}

/// `podUID`, `kubepods-podUID.slice`, `kubepods-burstable-podUID.slice`, in any part below one that begins with `kubepods`.
fn pod_uid(path: &str) -> Option<String> {
    let inside = path.split('/').skip_while(|part| !part.starts_with("kubepods"));
    inside
        .flat_map(|part| part.split(':'))
        .filter_map(|part| {
            let name = part.strip_suffix(".slice").unwrap_or(part);
            let from = if name.starts_with("pod") {
                0
            } else {
                name.find("-pod")? + 1
            };
            Some(name.get(from + 3..)?.replace('_', "-"))
        })
        .find(|uid| is_uid(uid))
}

/// A pod's uid: a UUID, or for a static pod the 32 digits of its manifest's hash (`kubelet`, `pkg/kubelet/config/common.go`).
fn is_uid(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_hexdigit).count();
    let dashes = text.bytes().filter(|byte| *byte == b'-').count();
    digits == 32 && digits + dashes == text.len() && matches!(dashes, 0 | 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "0a1b2c3d-1111-2222-3333-0123456789ab";

    #[test]
    fn every_engines_path_names_container_and_pod() {
        let slices = UID.replace('-', "_");
        for (path, container, pod) in [
            ("/docker/ID", true, false),
            ("/system.slice/docker-ID.scope", true, false),
            ("/system.slice/docker-ID.scope/init.scope", true, false),
            ("/default/ID", true, false),
            ("/kubepods/burstable/podUID/ID", true, true),
            ("/kubepods/podUID/ID", true, true),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podSLICE.slice/cri-containerd-ID.scope",
                true,
                true,
            ),
            ("/kubepods.slice/kubepods-podSLICE.slice/crio-ID.scope", true, true),
            (
                "/kubepods.slice/kubepods-podSLICE.slice/crio-conmon-ID.scope",
                false,
                true,
            ),
            (
                "/system.slice/containerd.service/kubepods-besteffort-podSLICE.slice:cri-containerd:ID",
                true,
                true,
            ),
            (
                "/kubelet.slice/kubelet-kubepods.slice/kubepods-podSLICE.slice/cri-containerd-ID.scope",
                true,
                true,
            ),
            ("/machine.slice/libpod-ID.scope/container", true, false),
            ("/machine.slice/libpod-conmon-ID.scope", false, false),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope",
                true,
                false,
            ),
            ("/system.slice/ssh.service", false, false),
            ("/", false, false),
        ] {
            let path = path.replace("ID.", &format!("{ID}.")).replace("SLICE", &slices);
            let path = path.replace("podUID", &format!("pod{UID}"));
            let path = path
                .strip_suffix("ID")
                .map_or(path.clone(), |before| format!("{before}{ID}"));
            let found = Cgroup::parse(&format!("0::{path}\n"));
            assert_eq!(found.path, path);
            assert_eq!(found.container.as_deref(), container.then_some(ID), "{path}");
            assert_eq!(found.pod_uid.as_deref(), pod.then_some(UID), "{path}");
        }
    }

    #[test]
    fn both_versions_are_read() {
        let v1 = format!("12:cpu,cpuacct:/docker/{ID}\n11:memory:/docker/{ID}\n1:name=systemd:/docker/{ID}\n");
        assert_eq!(Cgroup::parse(&v1).container.as_deref(), Some(ID));
        let hybrid = format!("5:pids:/docker/{ID}\n0::/\n");
        let found = Cgroup::parse(&hybrid);
        assert_eq!(
            (found.container.as_deref(), found.path),
            (Some(ID), format!("/docker/{ID}"))
        );
        assert_eq!(Cgroup::parse("0::/a:b/c\n").path, "/a:b/c");
        assert_eq!(Cgroup::parse("").path, "/");
    }

    #[test]
    fn what_is_no_id_is_none() {
        for path in [
            "/docker/0123456789abcdef",
            "/docker/0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF",
            "/docker/\u{1b}[2J",
            "/kubepods/pod\u{1b}[2J/x",
            "/kubepods/pod0a1b2c3d-1111-2222-3333-0123456789abcd/x",
            "/app/podcast-0a1b2c3d111122223333012345678901",
        ] {
            let found = Cgroup::parse(&format!("0::{path}\n"));
            assert_eq!((found.container, found.pod_uid), (None, None), "{path}");
        }
    }
}
