//! Pieces of another process's memory.
//!
//! In: addresses. Out: bytes, or nothing where there is no memory. It needs the permission to attach a debugger
//! (`PTRACE_MODE_ATTACH`, `mm/process_vm_access.c`) and uses it for reading alone. It is bound to the program that the
//! process ran when it was opened: after an exec or an exit every answer is [`MemoryError::Gone`], by the kernel's own word.

use crate::targets::{
    memory_map::{Residence, Resident},
    permission::ptrace_refusal,
    processes::ProcessError,
};
use nix::{
    errno::Errno,
    sys::uio::{RemoteIoVec, process_vm_readv},
    unistd::Pid,
};
use std::{io::IoSliceMut, ops::Range};

/// Pieces of one system call; `UIO_MAXIOV` of `include/uapi/linux/uio.h` is 1,024.
const PIECES_AT_ONCE: usize = 512;
/// Bytes of one system call on scattered pieces.
const BYTES_AT_ONCE: usize = 1 << 20;
/// A system call spends as long on a piece of its own as on copying some two thousand bytes, so neighbours closer than half of
/// that are read in one piece.
const GAP_BYTES_MAX: u64 = 1024;

/// Why a process's memory can't be read.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// It has ended, or runs another program.
    #[error("process {tgid} ended or called exec while its memory was read; nothing is known of it")]
    Gone {
        /// The process.
        tgid: u32,
    },
    /// The kernel refuses.
    #[error("reading the memory of process {tgid} is not permitted: {reason}")]
    Denied {
        /// The process.
        tgid: u32,
        /// Why, and what to do.
        reason: String,
    },
    /// Anything else that `/proc` says.
    #[error(transparent)]
    Process(ProcessError),
    /// Anything else that the system call says.
    #[error("reading the memory of process {tgid}: {source}")]
    Io {
        /// The process.
        tgid: u32,
        /// What the kernel said.
        source: Errno,
    },
}

impl MemoryError {
    /// Whether the process has merely ended.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. })
    }

    /// What an error of `/proc` means here.
    pub(super) fn of_process(tgid: u32, error: ProcessError) -> Self {
        match error {
            ProcessError::Gone { .. } => Self::Gone { tgid },
            ProcessError::Denied { .. } => Self::Denied {
                tgid,
                reason: ptrace_refusal(tgid),
            },
            other => Self::Process(other),
        }
    }
}

/// The memory of one process.
#[derive(Debug)]
pub struct Memory {
    tgid: u32,
    residence: Residence,
    /// An address that is mapped as long as the program runs.
    anchor: u64,
    bytes_read: u64,
}

/// A piece to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    /// First address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
}

impl Piece {
    const fn end(self) -> u64 {
        self.address.saturating_add(self.len as u64)
    }
}

impl Memory {
    /// Opens a process; `anchor` is an address inside its image.
    ///
    /// # Errors
    /// See [`MemoryError`].
    pub fn open(tgid: u32, anchor: u64) -> Result<Self, MemoryError> {
        let residence = Residence::open(tgid).map_err(|error| MemoryError::of_process(tgid, error))?;
        let mut memory = Self {
            tgid,
            residence,
            anchor,
            bytes_read: 0,
        };
        memory.check()?;
        // Reading asks for more than looking at the map: find out now.
        memory.read(anchor, &mut [0; 8])?;
        Ok(memory)
    }

    /// The process.
    #[must_use]
    pub const fn tgid(&self) -> u32 {
        self.tgid
    }

    /// Bytes read so far.
    #[must_use]
    pub const fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Whether the program still runs. What was read before a good answer is of this program.
    ///
    /// # Errors
    /// [`MemoryError::Gone`] where it does not.
    pub fn check(&self) -> Result<(), MemoryError> {
        self.residence
            .check(self.anchor)
            .map_err(|error| MemoryError::of_process(self.tgid, error))
    }

    /// The resident pages of a range.
    ///
    /// # Errors
    /// See [`MemoryError`].
    pub fn resident(&self, range: Range<u64>) -> Result<Resident, MemoryError> {
        self.residence
            .of(range)
            .map_err(|error| MemoryError::of_process(self.tgid, error))
    }

    /// Reads from `address` on, and says how many bytes could be: fewer where memory ends.
    ///
    /// # Errors
    /// See [`MemoryError`]; an address without memory is none.
    pub fn read(&mut self, address: u64, into: &mut [u8]) -> Result<usize, MemoryError> {
        let len = into.len();
        self.transfer(
            into,
            &[Piece {
                address,
                len: u32::try_from(len).unwrap_or(u32::MAX),
            }],
        )
    }

    /// Reads pieces, which come by ascending address, and tells each by its index; `None` where there is no memory.
    ///
    /// # Errors
    /// See [`MemoryError`].
    pub fn read_pieces(
        &mut self,
        pieces: &[Piece],
        mut tell: impl FnMut(usize, Option<&[u8]>),
    ) -> Result<(), MemoryError> {
        let mut buffer = Vec::new();
        let mut from = 0;
        while from < pieces.len() {
            let (spans, taken) = join(&pieces[from..]);
            let batch = &pieces[from..from + taken];
            buffer.resize(spans.iter().map(|span| span.len as usize).sum(), 0);
            let read = self.transfer(&mut buffer, &spans)?;
            self.tell_batch(batch, from, &spans, &buffer[..read], &mut tell)?;
            from += taken;
        }
        Ok(())
    }

    /// Tells the pieces of a batch of which `bytes` were read. What lies beyond them is read piece by piece.
    fn tell_batch(
        &mut self,
        batch: &[Piece],
        first: usize,
        spans: &[Piece],
        bytes: &[u8],
        tell: &mut impl FnMut(usize, Option<&[u8]>),
    ) -> Result<(), MemoryError> {
        let mut single = Vec::new();
        let (mut span, mut span_offset) = (0, 0_usize);
        for (index, piece) in batch.iter().enumerate() {
            while spans.get(span).is_some_and(|span| piece.address >= span.end()) {
                span_offset += spans[span].len as usize;
                span += 1;
            }
            let start = spans
                .get(span)
                .and_then(|span| usize::try_from(piece.address.checked_sub(span.address)?).ok())
                .map(|within| span_offset + within);
            if let Some(found) = start.and_then(|start| bytes.get(start..start + piece.len as usize)) {
                tell(first + index, Some(found));
                continue;
            }
            single.resize(piece.len as usize, 0);
            let whole = self.transfer(&mut single, std::slice::from_ref(piece))? == single.len();
            tell(first + index, whole.then_some(single.as_slice()));
        }
        Ok(())
    }

    /// One system call. 0 where the first piece has no memory.
    fn transfer(&mut self, into: &mut [u8], pieces: &[Piece]) -> Result<usize, MemoryError> {
        let remote: Vec<RemoteIoVec> = pieces
            .iter()
            .map(|piece| RemoteIoVec {
                base: usize::try_from(piece.address).unwrap_or(usize::MAX),
                len: piece.len as usize,
            })
            .collect();
        let pid = Pid::from_raw(i32::try_from(self.tgid).unwrap_or(i32::MAX));
        match process_vm_readv(pid, &mut [IoSliceMut::new(into)], &remote) {
            Ok(read) => {
                self.bytes_read += read as u64;
                Ok(read)
            }
            // EINVAL: a piece beyond the address space, which a hostile list can hold.
            Err(Errno::EFAULT | Errno::EINVAL) => Ok(0),
            Err(Errno::ESRCH) => Err(MemoryError::Gone { tgid: self.tgid }),
            Err(Errno::EPERM | Errno::EACCES) => Err(MemoryError::Denied {
                tgid: self.tgid,
                reason: ptrace_refusal(self.tgid),
            }),
            Err(source) => Err(MemoryError::Io {
                tgid: self.tgid,
                source,
            }),
        }
    }
}

/// Joins neighbouring pieces to spans, as many as one system call takes, and says how many pieces that are: at least one.
fn join(pieces: &[Piece]) -> (Vec<Piece>, usize) {
    let mut spans: Vec<Piece> = Vec::new();
    let mut bytes = 0;
    for (index, piece) in pieces.iter().enumerate() {
        let (last, count) = (spans.last().copied(), spans.len());
        let joined = last.filter(|last| {
            (last.address..=last.end().saturating_add(GAP_BYTES_MAX)).contains(&piece.address)
                && piece.end() >= last.address
        });
        let grown = joined.map_or(piece.len as usize, |last| {
            usize::try_from(piece.end().saturating_sub(last.end())).unwrap_or(usize::MAX)
        });
        if index > 0 && (bytes + grown > BYTES_AT_ONCE || (joined.is_none() && count >= PIECES_AT_ONCE)) {
            return (spans, index);
        }
        bytes += grown;
        match (joined, spans.last_mut()) {
            (Some(_), Some(last)) => last.len += grown as u32,
            _ => spans.push(*piece),
        }
    }
    (spans, pieces.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn own() -> (Memory, &'static [u8]) {
        static BYTES: [u8; 8192] = {
            let mut bytes = [0; 8192];
            let mut index = 0;
            while index < bytes.len() {
                bytes[index] = (index / 7) as u8;
                index += 1;
            }
            bytes
        };
        let memory = Memory::open(std::process::id(), BYTES.as_ptr() as u64).unwrap();
        (memory, &BYTES)
    }

    proptest! {
        #[test]
        fn every_piece_gets_its_own_bytes_or_none(mut wanted in prop::collection::vec((0_u64..8000, 1_u32..190, any::<bool>()), 1..60)) {
            let (mut memory, bytes) = own();
            let base = bytes.as_ptr() as u64;
            wanted.sort_unstable();
            let mut pieces: Vec<Piece> = wanted
                .iter()
                // Address 1 page and up is never mapped (vm.mmap_min_addr).
                .map(|(at, len, mapped)| Piece { address: if *mapped { base + at } else { 4096 + at }, len: *len })
                .collect();
            pieces.sort_unstable();
            let mut told = vec![false; pieces.len()];
            memory.read_pieces(&pieces, |index, found| {
                let piece = pieces[index];
                let expected = piece.address.checked_sub(base).map(|at| &bytes[at as usize..][..piece.len as usize]);
                assert_eq!(found, expected);
                told[index] = true;
            }).unwrap();
            prop_assert!(told.into_iter().all(|told| told));
        }

        #[test]
        fn a_system_call_stays_within_its_bounds(mut pieces in prop::collection::vec((0_u64..1 << 40, 1_u32..4096), 1..3000)) {
            pieces.sort_unstable();
            let pieces: Vec<Piece> = pieces.into_iter().map(|(address, len)| Piece { address, len }).collect();
            let mut from = 0;
            while from < pieces.len() {
                let (spans, taken) = join(&pieces[from..]);
                prop_assert!(taken > 0 && spans.len() <= PIECES_AT_ONCE);
                prop_assert!(spans.iter().map(|span| span.len as usize).sum::<usize>() <= BYTES_AT_ONCE);
                from += taken;
            }
        }
    }

    #[test]
    fn a_process_that_has_ended_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let map = crate::targets::memory_map::writable_regions(child.id()).unwrap();
        let opened = Memory::open(child.id(), map[0].start);
        child.kill().unwrap();
        child.wait().unwrap();
        let mut memory = opened.unwrap();
        assert!(memory.check().unwrap_err().is_gone());
        assert!(memory.read(map[0].start, &mut [0; 8]).unwrap_err().is_gone());
    }
}
