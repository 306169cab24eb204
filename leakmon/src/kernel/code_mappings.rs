//! New executable mappings of all processes, told by the kernel as they are made.
//!
//! In: a perf event on each processor that counts nothing (`PERF_COUNT_SW_DUMMY`) and carries side-band records. Out: one
//! [`CodeMapping`] for each file that any process maps executable, which covers exec (the program and its loader) and
//! `dlopen`, without taxing other system calls; and how many records found no room. It opens no file and decides nothing.
//!
//! Sources: `include/uapi/linux/perf_event.h` (`struct perf_event_attr`, `struct perf_event_mmap_page`, `PERF_RECORD_MMAP2`,
//! `PERF_RECORD_LOST`), `kernel/events/core.c` (`perf_event_mmap_event`).

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering, fence},
    time::Duration,
};

/// Pages of records a processor: 256 KiB hold some 2,000 records. With the page before them below `perf_event_mlock_kb`'s default.
const RING_PAGES: usize = 64;

/// `PERF_TYPE_SOFTWARE`, `PERF_COUNT_SW_DUMMY`, `PERF_FLAG_FD_CLOEXEC`.
const TYPE_SOFTWARE: u32 = 1;
const COUNT_DUMMY: u64 = 9;
const FLAG_CLOEXEC: libc::c_ulong = 8;
/// Bits of `perf_event_attr`'s flags: `mmap` (executable mappings), `mmap2` (with device and inode).
const ATTR_FLAGS: u64 = 1 << 8 | 1 << 23;
/// `PERF_ATTR_SIZE_VER0`: what is used lies in the first 64 bytes.
const ATTR_BYTES: u32 = 64;

/// `data_head` and `data_tail` in `struct perf_event_mmap_page`.
const HEAD_OFFSET: usize = 1024;
const TAIL_OFFSET: usize = 1032;

/// `PERF_RECORD_LOST`, `PERF_RECORD_MMAP2`.
const RECORD_LOST: u32 = 2;
const RECORD_MMAP2: u32 = 10;
/// Bytes of `struct perf_event_header`, and of a MMAP2 record up to its inode.
const HEADER_BYTES: usize = 8;
const MMAP2_INODE_END: usize = 56;

/// An executable mapping that was just made. The process may have unmapped it, or ended, by the time this is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeMapping {
    /// The process, as leakmon's own PID namespace numbers it.
    pub tgid: u32,
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
}

/// The rings of all processors.
#[derive(Debug)]
pub struct CodeMappings {
    rings: Vec<Ring>,
}

impl CodeMappings {
    /// Opens a ring on each processor that is online.
    ///
    /// # Errors
    /// The kernel refuses one: `EACCES` or `EPERM` without `CAP_PERFMON`.
    pub fn open() -> io::Result<Self> {
        let processors = aya::util::online_cpus().map_err(|(_, error)| error)?;
        let rings = processors.into_iter().map(Ring::open).collect::<io::Result<_>>()?;
        Ok(Self { rings })
    }

    /// Waits until there is something to read, at most `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let entry = |ring: &Ring| libc::pollfd {
            fd: ring.event.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut entries: Vec<libc::pollfd> = self.rings.iter().map(entry).collect();
        let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the pointer and the length are those of one vector, which lives through the call. Its outcome does not
        // matter: all rings are read afterwards, and an interrupted wait is a short one.
        let _ready = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout_ms) };
    }

    /// Hands over what the rings hold now, at most one ring's size of each. Returns how many records found no room before.
    pub fn drain(&mut self, mut take: impl FnMut(CodeMapping)) -> u64 {
        let mut lost = 0;
        for ring in &mut self.rings {
            ring.drain(|record| match parse(record) {
                Some(Parsed::Mapping(mapping)) => take(mapping),
                Some(Parsed::Lost(count)) => lost += count,
                None => {}
            });
        }
        lost
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parsed {
    Mapping(CodeMapping),
    Lost(u64),
}

/// What a record says; `None` for other kinds, and for memory that is no file's.
fn parse(record: &[u8]) -> Option<Parsed> {
    let u32_at = |at: usize| Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_ne_bytes(record.get(at..at + 8)?.try_into().ok()?));
    match u32_at(0)? {
        // header, id, lost
        RECORD_LOST => Some(Parsed::Lost(u64_at(16)?)),
        // header, pid, tid, addr, len, pgoff, maj, min, ino …
        RECORD_MMAP2 => {
            let (start, inode) = (u64_at(16)?, u64_at(MMAP2_INODE_END - 8)?);
            let mapping = CodeMapping {
                tgid: u32_at(8)?,
                start,
                end: start.checked_add(u64_at(24)?)?,
            };
            (inode != 0).then_some(Parsed::Mapping(mapping))
        }
        _ => None,
    }
}

/// One processor's event and the memory that the kernel writes its records to.
#[derive(Debug)]
struct Ring {
    event: OwnedFd,
    memory: NonNull<u8>,
    page_bytes: usize,
    /// A record that lies across the end of the ring, put together.
    record: Vec<u8>,
}

// SAFETY: the memory belongs to this ring alone and is reached through it alone.
unsafe impl Send for Ring {}

impl Ring {
    fn open(processor: u32) -> io::Result<Self> {
        let mut attributes = [0_u64; ATTR_BYTES as usize / 8];
        // Little and big endian alike: two 32-bit fields in the order of the structure.
        attributes[0] = u64::from_ne_bytes(pair(TYPE_SOFTWARE, ATTR_BYTES));
        attributes[1] = COUNT_DUMMY;
        attributes[5] = ATTR_FLAGS;
        // wakeup_events: wake at each record, since a new program should be found before it has done much.
        attributes[6] = u64::from_ne_bytes(pair(1, 0));
        let processor = libc::c_int::try_from(processor).map_err(io::Error::other)?;
        // SAFETY: the attributes are 64 bytes, as their size field says; pid −1 and a processor mean all its processes.
        let event = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                attributes.as_ptr(),
                -1 as libc::pid_t,
                processor,
                -1 as libc::c_int,
                FLAG_CLOEXEC,
            )
        };
        if event < 0 {
            return Err(io::Error::last_os_error());
        }
        let event = libc::c_int::try_from(event).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor, and nobody else has it.
        let event = unsafe { OwnedFd::from_raw_fd(event) };
        // SAFETY: asks for a number.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page_bytes = usize::try_from(page_bytes).map_err(io::Error::other)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let bytes = page_bytes * (1 + RING_PAGES);
        // SAFETY: a fresh mapping of the event's buffer, at an address that the kernel chooses.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED,
                event.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or_else(|| io::Error::other("the kernel mapped address 0"))?;
        Ok(Self {
            event,
            memory,
            page_bytes,
            record: Vec::new(),
        })
    }

    fn position(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: the offset is that of an aligned 64-bit field in the first page, which is mapped as long as `self` lives; the
        // kernel and this process both access it as a whole.
        unsafe { AtomicU64::from_ptr(self.memory.as_ptr().add(offset).cast()) }
    }

    fn drain(&mut self, mut take: impl FnMut(&[u8])) {
        let size = self.page_bytes * RING_PAGES;
        // The kernel's rule: data_head, then a read barrier, then the data, then a barrier, then data_tail.
        let head = self.position(HEAD_OFFSET).load(Ordering::Acquire);
        let mut tail = self.position(TAIL_OFFSET).load(Ordering::Relaxed);
        let mut record = std::mem::take(&mut self.record);
        while tail != head {
            self.copy(tail, HEADER_BYTES, size, &mut record);
            let length = usize::from(u16::from_ne_bytes([record[6], record[7]]));
            // Never so: the kernel writes whole records.
            if length < HEADER_BYTES || length as u64 > head.wrapping_sub(tail) {
                tail = head;
                break;
            }
            self.copy(tail, length, size, &mut record);
            take(&record);
            tail = tail.wrapping_add(length as u64);
        }
        self.record = record;
        fence(Ordering::SeqCst);
        self.position(TAIL_OFFSET).store(tail, Ordering::Release);
    }

    /// Copies `length` bytes from the position `at`, around the end of the ring where need be.
    fn copy(&self, at: u64, length: usize, size: usize, into: &mut Vec<u8>) {
        into.clear();
        into.resize(length, 0);
        let begin = (at % size as u64) as usize;
        let first = length.min(size - begin);
        // SAFETY: both parts lie within the `size` bytes after the first page, and `into` has the length of both. The kernel does
        // not touch what lies between tail and head, which these do, until the tail has been moved.
        unsafe {
            let data = self.memory.as_ptr().add(self.page_bytes);
            std::ptr::copy_nonoverlapping(data.add(begin), into.as_mut_ptr(), first);
            std::ptr::copy_nonoverlapping(data, into.as_mut_ptr().add(first), length - first);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping that `open` made, of the same length; nothing refers to it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.page_bytes * (1 + RING_PAGES)) };
    }
}

/// Two 32-bit fields that follow each other.
fn pair(first: u32, second: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u32, words: &[u64]) -> Vec<u8> {
        let length = (HEADER_BYTES + words.len() * 8) as u32;
        let mut bytes = pair(kind, length << 16).to_vec();
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        bytes
    }

    #[test]
    fn records_are_parsed_as_the_kernel_writes_them() {
        let process = u64::from_ne_bytes(pair(77, 78));
        for (record, expected) in [
            (
                record(RECORD_MMAP2, &[process, 0x1000, 0x200, 0, 0, 5, 0, 0, 0]),
                Some(Parsed::Mapping(CodeMapping {
                    tgid: 77,
                    start: 0x1000,
                    end: 0x1200,
                })),
            ),
            (record(RECORD_MMAP2, &[process, 0x1000, 0x200, 0, 0, 0, 0, 0, 0]), None),
            (record(RECORD_MMAP2, &[process, u64::MAX, 2, 0, 0, 5, 0, 0, 0]), None),
            (record(RECORD_MMAP2, &[process, 0x1000]), None),
            (record(RECORD_LOST, &[1, 9]), Some(Parsed::Lost(9))),
            (record(RECORD_LOST, &[1]), None),
            (record(3, &[process, 0, 0]), None),
            (Vec::new(), None),
        ] {
            assert_eq!(parse(&record), expected);
        }
    }
}
