//! What is known of the targets' processes, for as long as they are shown.
//!
//! In: targets as they appear. Out: executable, image and status. A process that has gone before it could be looked at
//! keeps the image that its first hit named.

use super::images::Images;
use crate::{export::report::TargetStatus, targets::processes::ProcessImage};
use leakmon_ebpf::abi::TargetId;
use std::collections::HashMap;

/// Processes that can't be watched but are shown, at most.
const REFUSED_MAX: usize = 1024;

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// Executable as the process sees it.
    pub(super) exe: String,
    /// Its file.
    pub(super) file: Option<(u64, u64)>,
}

/// A process that can't be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) tgid: u32,
    pub(super) exe: String,
    pub(super) reason: String,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Processes {
    known: HashMap<TargetId, Process>,
    refused: Vec<Refused>,
}

impl Processes {
    /// Looks a target's process up, once.
    pub(super) fn see(&mut self, target: TargetId, images: &Images) {
        if self.known.contains_key(&target) {
            return;
        }
        if let Ok(image) = ProcessImage::open(target.tgid()) {
            let file = (image.device, image.inode);
            // The file may have been replaced under its name; what is watched goes by the name it was found under.
            let exe = images
                .of_file(file.0, file.1)
                .map_or(&image.path, |known| &known.plan.path);
            let exe = exe.display().to_string();
            self.known.insert(target, Process { exe, file: Some(file) });
        }
    }

    /// Notes a process that can't be watched.
    pub(super) fn refuse(&mut self, tgid: u32, error: &anyhow::Error) {
        if self.refused.len() < REFUSED_MAX {
            let exe = ProcessImage::open(tgid)
                .map(|image| image.path.display().to_string())
                .unwrap_or_default();
            self.refused.push(Refused {
                tgid,
                exe,
                reason: format!("{error:#}"),
            });
        }
    }

    /// What is known of a target's process.
    pub(super) fn of(&self, target: TargetId) -> Option<&Process> {
        self.known.get(&target)
    }

    /// The processes that can't be watched.
    pub(super) fn refused(&self) -> &[Refused] {
        &self.refused
    }

    pub(super) fn forget(&mut self, target: TargetId) {
        self.known.remove(&target);
    }
}

/// How well a target is watched, and why not better.
pub(super) fn status(shortfall: Option<String>) -> (TargetStatus, Option<String>) {
    match shortfall {
        None => (TargetStatus::Attached, None),
        Some(reason) => (TargetStatus::Partial, Some(reason)),
    }
}
