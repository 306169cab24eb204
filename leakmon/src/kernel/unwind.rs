//! Unwind tables and mappings, on their way into the BPF maps.
//!
//! In: an arena's changed chunks, a process's packed mappings. Out: map values. What they mean is in `leakmon_ebpf::rows`.

use super::load::{Kernel, KernelError};
use crate::targets::unwind::arena::{Arena, ChunkWrite};
use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use leakmon_ebpf::rows::{PAGES_PER_CHUNK, Page, ProcessMappings, ROWS_PER_CHUNK, Row};

const ROWS_BYTES: usize = ROWS_PER_CHUNK as usize * size_of::<Row>();
const PAGES_BYTES: usize = PAGES_PER_CHUNK as usize * size_of::<Page>();

/// The two chunked arrays.
pub(super) struct TableMaps {
    rows: Array<MapData, [u8; ROWS_BYTES]>,
    pages: Array<MapData, [u8; PAGES_BYTES]>,
}

impl TableMaps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let rows = ebpf.take_map("ROWS").ok_or(KernelError::NoMap("ROWS"))?;
        let pages = ebpf.take_map("PAGES").ok_or(KernelError::NoMap("PAGES"))?;
        Ok(Self {
            rows: Array::try_from(rows).map_err(|error| KernelError::Map("ROWS", error))?,
            pages: Array::try_from(pages).map_err(|error| KernelError::Map("PAGES", error))?,
        })
    }
}

impl Kernel {
    /// Writes what has changed in the arena. The chunks of a table are written before any mapping refers to it.
    ///
    /// # Errors
    /// Where the kernel refuses a value; the arena keeps its changes for the next time.
    pub fn write_tables(&mut self, arena: &mut Arena) -> Result<(), KernelError> {
        for chunk in arena.writes() {
            match chunk {
                ChunkWrite::Rows(index, bytes) => {
                    if let Ok(value) = <&[u8; ROWS_BYTES]>::try_from(bytes) {
                        let written = self.tables.rows.set(index, value, 0);
                        written.map_err(|error| KernelError::Map("ROWS", error))?;
                    }
                }
                ChunkWrite::Pages(index, bytes) => {
                    if let Ok(value) = <&[u8; PAGES_BYTES]>::try_from(bytes) {
                        let written = self.tables.pages.set(index, value, 0);
                        written.map_err(|error| KernelError::Map("PAGES", error))?;
                    }
                }
            }
        }
        arena.written();
        Ok(())
    }

    /// The chunks that an earlier daemon's mappings may refer to: of rows, and of pages. All others are zero.
    #[must_use]
    pub fn used_chunks(&self) -> (Vec<u32>, Vec<u32>) {
        fn used<const N: usize>(map: &Array<MapData, [u8; N]>) -> Vec<u32> {
            let is_used = |chunk: &u32| map.get(chunk, 0).is_ok_and(|bytes| bytes.iter().any(|byte| *byte != 0));
            (0..map.len()).filter(is_used).collect()
        }
        (used(&self.tables.rows), used(&self.tables.pages))
    }

    /// Whether a process has mappings.
    #[must_use]
    pub fn has_mappings(&self, tgid: u32) -> bool {
        self.mappings.get(&tgid).is_some()
    }

    /// Takes the mappings of a process away that has gone, or is another target by now.
    pub fn drop_mappings(&mut self, tgid: u32) {
        self.mappings.remove(&tgid);
    }

    /// Says where a process's code is. The programs take the entry away when the process calls exec or ends.
    ///
    /// # Errors
    /// Where too many processes have mappings already.
    pub fn set_mappings(&mut self, tgid: u32, mappings: &ProcessMappings) -> Result<(), KernelError> {
        self.mappings
            .insert(&tgid, mappings)
            .map_err(|error| KernelError::Map("MAPPINGS", error))
    }
}
