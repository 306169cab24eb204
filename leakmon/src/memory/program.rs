//! An image, ready to be found in the memory of the processes that run it.
//!
//! In: its plan. Out: for a process, its open memory and where the image's task types lie in it.

use super::{
    layout::{Layouts, UnknownLayout},
    reader::{Memory, MemoryError},
};
use crate::targets::{memory_map, plan::ProbePlan, processes::ProcessImage};

/// What has to be known of an image.
#[derive(Clone, Debug)]
pub struct Program {
    /// At the addresses that they have in the image.
    layouts: Layouts,
    /// `e_entry` of the image.
    entry: u64,
    /// `st_dev` and `st_ino` of the file.
    file: (u64, u64),
}

impl Program {
    /// The program of a plan; `entry` is its image's `e_entry`.
    ///
    /// # Errors
    /// Where its tasks can't be found in memory.
    pub fn new(plan: &ProbePlan, entry: u64) -> Result<Self, UnknownLayout> {
        Ok(Self {
            layouts: Layouts::new(plan)?,
            entry,
            file: (plan.image.device, plan.image.inode),
        })
    }

    /// Opens a process that runs it.
    ///
    /// # Errors
    /// See [`MemoryError`]; a process that runs another program by now is gone.
    pub fn open(&self, tgid: u32) -> Result<(Memory, Layouts), MemoryError> {
        let bias = memory_map::load_bias(tgid, self.entry).map_err(|error| MemoryError::of_process(tgid, error))?;
        let layouts = self.layouts.moved(bias);
        let memory = Memory::open(tgid, layouts.types().first().map_or(0, |layout| layout.vtable))?;
        // Asked after the memory was opened: from here on both are of one program, or the memory says that it has gone.
        let image = ProcessImage::open(tgid).map_err(|error| MemoryError::of_process(tgid, error))?;
        if (image.device, image.inode) != self.file {
            return Err(MemoryError::Gone { tgid });
        }
        Ok((memory, layouts))
    }
}
