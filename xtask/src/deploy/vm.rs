//! `cargo xtask vm`: a guest that boots under systemd with the package installed, in emulation.
//!
//! In: the package, a clean Debian root, Debian's cloud kernel, a victim. Out: what the guest saw: READY, the victim's own
//! numbers counted, a daemon that hangs killed by the watchdog and started again. Not part of `test`: it boots an emulated
//! machine.

use super::{folder, package, root};
use crate::{
    victims::Truth,
    workspace::{self, Workspace},
};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

/// Depends on the current kernel; the cloud one is small and has what QEMU needs.
const KERNEL: &str = "linux-image-cloud-amd64";
const GUEST: &str = include_str!("guest.sh");
const SERVICE: &str = "[Unit]\nAfter=basic.target\n[Service]\nType=oneshot\nExecStart=/usr/bin/guest\n";
/// The unit's own 30 seconds would only make the test longer.
const DROP_IN: &str = "[Service]\nWatchdogSec=8\n";
const CONFIGURATION: &str = "exes = [\"/usr/bin/victim\"]\n";
/// Minutes that the guest may take.
const TIMEOUT: &str = "15m";

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let started = Instant::now();
    super::build(workspace)?;
    crate::victims::build(workspace, crate::victims::Build::Release, Some("leaky_registry"))?;
    let package = package::build(workspace)?;
    let kernel = kernel(workspace)?;
    let disk = disk(workspace, &package)?;
    println!("vm: booting, after {:.0} s", started.elapsed().as_secs_f64());
    let mut qemu = workspace.command("timeout");
    qemu.args([
        TIMEOUT,
        "qemu-system-x86_64",
        "-accel",
        "tcg,thread=multi",
        "-smp",
        "2",
        "-m",
        "2048",
    ])
    .args(["-nographic", "-nodefaults", "-no-reboot", "-serial", "stdio", "-kernel"])
    .arg(&kernel)
    .arg("-initrd")
    .arg(&disk)
    .args(["-append", "console=ttyS0 rdinit=/sbin/init quiet panic=-1"]);
    let console = workspace::output(&mut qemu)?;
    fs::write(folder(workspace).join("console.log"), &console)?;
    let said = Findings::read(&console);
    for line in &said.0 {
        println!("vm: {}", line.chars().take(160).collect::<String>());
    }
    said.check().inspect_err(|_| println!("{console}"))?;
    println!("vm: as it should be, {:.0} s in all", started.elapsed().as_secs_f64());
    Ok(())
}

/// The kernel's image, fetched once.
fn kernel(workspace: &Workspace) -> Result<PathBuf> {
    let kernel = folder(workspace).join("vmlinuz");
    if kernel.is_file() {
        return Ok(kernel);
    }
    let depends = workspace::output(Command::new("apt-cache").args(["depends", KERNEL]))?;
    let name = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let name = name.with_context(|| format!("apt knows no {KERNEL}: run `apt-get update`"))?;
    let unpacked = folder(workspace).join("kernel");
    fs::create_dir_all(&unpacked)?;
    workspace::run(
        Command::new("apt-get")
            .args(["--quiet", "download", name])
            .current_dir(&unpacked),
    )?;
    let script = "for package in *.deb; do dpkg-deb --extract \"$package\" .; done && mv boot/vmlinuz-* ../vmlinuz";
    workspace::run(Command::new("sh").args(["-ec", script]).current_dir(&unpacked))?;
    fs::remove_dir_all(&unpacked)?;
    Ok(kernel)
}

/// The guest's root as an initial file system: no disk, and so no driver, is needed.
fn disk(workspace: &Workspace, package: &Path) -> Result<PathBuf> {
    let guest = root::copy(workspace, "guest")?;
    fs::copy(package, guest.join("leakmon.deb"))?;
    workspace::run(
        Command::new("chroot")
            .arg(&guest)
            .args(["dpkg", "--install", "/leakmon.deb"]),
    )?;
    let victim = workspace.target().join("release/examples/leaky_registry");
    fs::copy(&victim, guest.join("usr/bin/victim"))
        .with_context(|| format!("{}: can't be copied", victim.display()))?;
    for (file, text) in [
        ("usr/bin/guest", GUEST),
        ("etc/systemd/system/guest.service", SERVICE),
        ("etc/systemd/system/leakmon.service.d/test.conf", DROP_IN),
        ("etc/leakmon/leakmon.toml", CONFIGURATION),
    ] {
        let file = guest.join(file);
        file.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(&file, text)?;
    }
    let script = "chmod +x usr/bin/guest && mkdir -p etc/systemd/system/multi-user.target.wants && \
        ln -sf ../guest.service etc/systemd/system/multi-user.target.wants/ && \
        rm -rf leakmon.deb var/cache/apt var/lib/apt/lists usr/share/doc usr/share/locale && \
        find . | cpio --quiet --create --format=newc >../guest.cpio";
    workspace::run(Command::new("sh").args(["-ec", script]).current_dir(&guest))?;
    fs::remove_dir_all(&guest)?;
    Ok(folder(workspace).join("guest.cpio"))
}

/// Lines that the guest wrote.
struct Findings(Vec<String>);

impl Findings {
    fn read(console: &str) -> Self {
        let lines = console.lines().filter_map(|line| line.split_once("VM: "));
        Self(lines.map(|(_, finding)| finding.trim_end().to_owned()).collect())
    }

    fn find(&self, word: &str) -> Result<&str> {
        let found = self.0.iter().find_map(|line| line.strip_prefix(word));
        found
            .map(str::trim)
            .with_context(|| format!("the guest did not say `{word}`"))
    }

    fn check(&self) -> Result<()> {
        let ready = self.find("ready")?;
        if !ready.contains("ActiveState=active") || !ready.contains("StatusText=serving http://") {
            bail!("systemd saw no READY: {ready}");
        }
        let truth = Truth::parse(self.find("truth")?)?.total;
        let report: Value = serde_json::from_str(self.find("report")?).context("the guest's report is no JSON")?;
        let target = &report["targets"][0];
        let of = |name: &str| target["task"][name].as_u64();
        // The runtime's own tasks are counted, and are not in the victim's record.
        let own = of("spawned").unwrap_or(0).saturating_sub(truth.spawned);
        if of("ended") != Some(truth.ended) || of("live") != Some(truth.live + own) {
            bail!("the guest's daemon counts {}, the victim {truth:?}", target["task"]);
        }
        self.find("reloaded active")?;
        let restarted = self.find("restarted from")?;
        if !restarted.to_lowercase().contains("watchdog") {
            bail!("it was not the watchdog that restarted the daemon: {restarted}");
        }
        self.find("victim lives")?;
        self.find("done").map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[ 1.0] VM: ready ActiveState=active SubState=running StatusText=serving http://127.0.0.1:5325\r\n\
        VM: truth {\"truth\":[],\"total\":{\"spawned\":9,\"ended\":4,\"live\":5},\"runtime_tasks\":2}\r\n\
        VM: report {\"targets\":[{\"task\":{\"spawned\":11,\"ended\":4,\"live\":7}}]}\r\nVM: reloaded active\r\n\
        VM: restarted from 7 to 9, leakmon.service: Watchdog timeout (limit 8s)!\r\nVM: victim lives\r\nVM: done\r\n";

    #[test]
    fn a_guest_that_saw_everything_passes_and_each_missing_line_is_told() {
        Findings::read(GOOD).check().unwrap();
        for word in [
            "ready",
            "truth",
            "report",
            "reloaded",
            "restarted",
            "victim lives",
            "done",
        ] {
            let without: String = GOOD
                .lines()
                .filter(|line| !line.contains(&format!("VM: {word}")))
                .map(|line| format!("{line}\n"))
                .collect();
            assert!(Findings::read(&without).check().is_err(), "{word}");
        }
        for (from, to) in [
            ("\"ended\":4,\"live\":7", "\"ended\":3,\"live\":8"),
            ("Watchdog", "Main process exited"),
            ("State=active", "State=failed"),
        ] {
            assert!(Findings::read(&GOOD.replace(from, to)).check().is_err(), "{to}");
        }
    }
}
