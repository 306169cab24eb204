//! What image numbers stand for, kept where a restarted daemon finds it.
//!
//! In: images as they are attached. Out: the same, read back. Whether a file is still that image is found out by the caller.

use super::{Kernel, KernelError, attach::ImageNumber};
use crate::targets::plan::ProbePlan;
use leakmon_ebpf::abi::{PATH_BYTES_MAX, PinnedImage, TargetEntry};
use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::PathBuf};
use zerocopy::FromZeros;

/// An image as an earlier daemon attached it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownImage {
    /// Its number in cookies, and for whom it counts.
    pub number: ImageNumber,
    /// `st_dev` of the file.
    pub device: u64,
    /// `st_ino` of the file.
    pub inode: u64,
    /// [`ProbePlan::digest`].
    pub plan: u64,
    /// Where it was; `None` where the path was too long to be kept.
    pub path: Option<PathBuf>,
}

impl Kernel {
    /// The images that are attached, by their number: those of an earlier daemon as well.
    #[must_use]
    pub fn known_images(&self) -> Vec<KnownImage> {
        let mut images: Vec<KnownImage> = self.images.entries().into_iter().map(known).collect();
        images.sort_by_key(|image| image.number.number);
        images
    }

    /// Takes the probes of an earlier daemon's image away; its number stays used.
    pub fn drop_image(&mut self, number: u32) {
        if let Some(pins) = &self.pins {
            pins.remove_image(number);
        }
        self.images.remove(&number);
    }

    /// Whether an earlier daemon's counts were found.
    #[must_use]
    pub const fn has_resumed(&self) -> bool {
        self.resumed
    }

    /// Whether probes and counts outlive this process.
    #[must_use]
    pub const fn is_pinned(&self) -> bool {
        self.pins.is_some()
    }

    /// Has nothing outlive this process.
    ///
    /// # Errors
    /// Where a pin can't be removed.
    pub fn unpin(&mut self) -> Result<(), KernelError> {
        match self.pins.take() {
            Some(pins) => Ok(pins.remove()?),
            None => Ok(()),
        }
    }

    /// The processes that are targets now.
    #[must_use]
    pub fn targets(&self) -> Vec<(u32, TargetEntry)> {
        self.targets.entries()
    }

    /// Keeps what a number stands for.
    pub(super) fn note_image(&mut self, plan: &ProbePlan, image: ImageNumber) -> Result<(), KernelError> {
        let bytes = plan.path.as_os_str().as_bytes();
        let mut value = PinnedImage::new_zeroed();
        value.device = plan.image.device;
        value.inode = plan.image.inode;
        value.plan = plan.digest();
        value.every_process = u32::from(image.every_process);
        value.path_len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        for (slot, byte) in value.path.iter_mut().zip(bytes) {
            *slot = *byte;
        }
        self.images
            .insert(&image.number, &value)
            .map_err(|error| KernelError::Map("IMAGES", error))
    }
}

fn known((number, value): (u32, PinnedImage)) -> KnownImage {
    let len = value.path_len as usize;
    let path = value.path.get(..len).filter(|_| len <= PATH_BYTES_MAX);
    KnownImage {
        number: ImageNumber {
            number,
            every_process: value.every_process != 0,
        },
        device: value.device,
        inode: value.inode,
        plan: value.plan,
        path: path.map(|bytes| PathBuf::from(OsStr::from_bytes(bytes))),
    }
}
