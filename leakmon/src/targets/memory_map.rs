//! Which memory of a process is worth reading: its writable private mappings, their resident pages, and where its
//! executable was loaded.
//!
//! In: tgids. Out: plain ranges of addresses, from `/proc/PID/maps`, `pagemap` and `auxv`. It reads no byte of the memory
//! itself: that is `memory`'s. Everything needs the permission to read the process's memory map (`PTRACE_MODE_READ`).

use super::processes::{MAPS_LINES_MAX, Mapping, Permissions, ProcessError, each_mapping};
use std::{
    fs::File,
    io::{BufReader, Read},
    ops::Range,
    os::unix::fs::FileExt,
};

/// Bytes of a page on x86-64.
pub const PAGE_BYTES: u64 = 4096;

/// A word of `pagemap` (`Documentation/admin-guide/mm/pagemap.rst`): the page is in memory.
const PAGE_PRESENT: u64 = 1 << 63;
/// The page is in swap.
const PAGE_SWAPPED: u64 = 1 << 62;

/// Pages whose residence is asked for in one read.
const PAGES_AT_ONCE: usize = 8192;

/// Largest mapping without access that is taken for the guard below a stack: 1 MiB; the C libraries make one of a page
/// (`pthread_attr_setguardsize`).
const GUARD_BYTES_MAX: u64 = 1 << 20;

/// Where the C library's arenas begin (`HEAP_MAX_SIZE` of glibc's `malloc/arena.c` on 64 bits): no stack begins there.
const ARENA_ALIGNMENT: u64 = 64 << 20;

/// Words of `auxv` that are read; the kernel writes some twenty pairs.
const AUXV_BYTES_MAX: u64 = 4096;
/// `AT_ENTRY` (`include/uapi/linux/auxvec.h`): the address of the program's first instruction.
const AT_ENTRY: u64 = 9;

/// One writable private mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Whether it is a thread's stack, as far as can be seen: named so, or above a guard.
    pub stack: bool,
}

impl Region {
    /// Bytes of address space, resident or not.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.end - self.start
    }
}

/// The writable private mappings of a process, by ascending address. Empty while it exits.
///
/// # Errors
/// See [`ProcessError`].
pub fn writable_regions(tgid: u32) -> Result<Vec<Region>, ProcessError> {
    let file = File::open(format!("/proc/{tgid}/maps")).map_err(|source| ProcessError::new(tgid, "maps", source))?;
    let mut regions = Regions::default();
    each_mapping(BufReader::with_capacity(1 << 16, file), |mapping, permissions| {
        regions.add(&mapping, permissions);
    })
    .map_err(|source| ProcessError::new(tgid, "maps", source))?;
    Ok(regions.found)
}

/// Collects regions; remembers where the last mapping without access ends.
#[derive(Default)]
struct Regions {
    found: Vec<Region>,
    guard_end: Option<u64>,
}

impl Regions {
    fn add(&mut self, mapping: &Mapping, permissions: Permissions) {
        if permissions.read && permissions.write && permissions.private && self.found.len() < MAPS_LINES_MAX {
            let named = mapping.path.as_os_str() == "[stack]";
            let guarded = self.guard_end == Some(mapping.start) && !mapping.start.is_multiple_of(ARENA_ALIGNMENT);
            self.found.push(Region {
                start: mapping.start,
                end: mapping.end,
                stack: named || (guarded && !mapping.has_file()),
            });
        }
        let guard = !permissions.read && !permissions.write && !permissions.execute && !mapping.has_file();
        self.guard_end = (guard && mapping.end - mapping.start <= GUARD_BYTES_MAX).then_some(mapping.end);
    }
}

/// By how much a process's executable was moved when it was loaded: what is added to an address in the image. `entry` is the
/// image's `e_entry`.
///
/// # Errors
/// See [`ProcessError`]; `Malformed` where the kernel told no entry.
pub fn load_bias(tgid: u32, entry: u64) -> Result<u64, ProcessError> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{tgid}/auxv"))
        .and_then(|file| file.take(AUXV_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|source| ProcessError::new(tgid, "auxv", source))?;
    if bytes.is_empty() {
        return Err(ProcessError::Gone { tgid });
    }
    entry_of(&bytes)
        .map(|loaded| loaded.wrapping_sub(entry))
        .ok_or_else(|| ProcessError::Malformed {
            tgid,
            what: "auxv".to_owned(),
        })
}

/// The value of [`AT_ENTRY`] among pairs of words.
fn entry_of(auxv: &[u8]) -> Option<u64> {
    auxv.chunks_exact(16)
        .map(|pair| (word(pair), word(&pair[8..])))
        .find_map(|(key, value)| (key == AT_ENTRY).then_some(value))
}

fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().copied().map_or(0, u64::from_le_bytes)
}

/// Which pages of a process are in memory. It is bound to the program that the process ran when it was opened: once
/// that has ended or called exec, every question answers [`ProcessError::Gone`].
#[derive(Debug)]
pub struct Residence {
    tgid: u32,
    /// Keeps the kernel's description of the address space, not the memory itself.
    pagemap: File,
}

/// What is resident in a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Ranges of resident pages, by ascending address, neighbours joined.
    pub ranges: Vec<Range<u64>>,
    /// Bytes that are in swap: reading them would bring them back.
    pub swapped_bytes: u64,
}

impl Residence {
    /// Opens `/proc/PID/pagemap`.
    ///
    /// # Errors
    /// See [`ProcessError`].
    pub fn open(tgid: u32) -> Result<Self, ProcessError> {
        let pagemap =
            File::open(format!("/proc/{tgid}/pagemap")).map_err(|source| ProcessError::new(tgid, "pagemap", source))?;
        Ok(Self { tgid, pagemap })
    }

    /// Whether the program still runs; `address` is any address below 2^47.
    ///
    /// # Errors
    /// [`ProcessError::Gone`] where it does not.
    pub fn check(&self, address: u64) -> Result<(), ProcessError> {
        self.read(address, &mut [0; 8]).map(drop)
    }

    /// The resident pages of a range, both ends of which are rounded to whole pages.
    ///
    /// # Errors
    /// See [`ProcessError`].
    pub fn of(&self, range: Range<u64>) -> Result<Resident, ProcessError> {
        let mut resident = Resident::default();
        let mut buffer = vec![0; 8 * PAGES_AT_ONCE];
        let mut page = range.start / PAGE_BYTES;
        let end = range.end.div_ceil(PAGE_BYTES);
        while page < end {
            let count = usize::try_from(end - page).unwrap_or(usize::MAX).min(PAGES_AT_ONCE);
            let read = self.read(page * PAGE_BYTES, &mut buffer[..8 * count])?;
            for entry in buffer[..read].chunks_exact(8) {
                resident.add(page, word(entry));
                page += 1;
            }
        }
        Ok(resident)
    }

    /// Reads entries from that of `address` on: at least one, or the program is gone (`fs/proc/task_mmu.c`, `pagemap_read`
    /// returns 0 once the address space has no user).
    fn read(&self, address: u64, entries: &mut [u8]) -> Result<usize, ProcessError> {
        let offset = address / PAGE_BYTES * 8;
        let read = self
            .pagemap
            .read_at(entries, offset)
            .map_err(|source| ProcessError::new(self.tgid, "pagemap", source))?;
        match read {
            0..8 => Err(ProcessError::Gone { tgid: self.tgid }),
            _ => Ok(read / 8 * 8),
        }
    }
}

impl Resident {
    fn add(&mut self, page: u64, entry: u64) {
        let start = page * PAGE_BYTES;
        if entry & PAGE_SWAPPED != 0 {
            self.swapped_bytes += PAGE_BYTES;
        }
        if entry & PAGE_PRESENT == 0 {
            return;
        }
        match self.ranges.last_mut() {
            Some(last) if last.end == start => last.end += PAGE_BYTES,
            _ => self.ranges.push(start..start + PAGE_BYTES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn regions(text: &str) -> Vec<(u64, bool)> {
        let mut regions = Regions::default();
        each_mapping(Cursor::new(text), |mapping, permissions| {
            regions.add(&mapping, permissions);
        })
        .unwrap();
        regions
            .found
            .iter()
            .map(|region| (region.start, region.stack))
            .collect()
    }

    #[test]
    fn only_what_is_writable_and_private_is_read_and_stacks_are_told_apart() {
        let text = "\
55d0000-55d1000 r--p 00000000 fe:00 1 /usr/bin/app
55d1000-55d2000 rw-p 00001000 fe:00 1 /usr/bin/app
55d2000-55e0000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000021000 rw-p 00000000 00:00 0
7f0000021000-7f0004000000 ---p 00000000 00:00 0
7f0004000000-7f0004021000 rw-p 00000000 00:00 0
7f0004100000-7f0004101000 ---p 00000000 00:00 0
7f0004101000-7f0004301000 rw-p 00000000 00:00 0
7f0004301000-7f0004401000 rw-s 00000000 00:01 9 /dev/shm/x
7f0004500000-7f0004501000 ---p 00000000 00:00 0
7f0004502000-7f0004503000 rw-p 00000000 00:00 0
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]
";
        assert_eq!(
            regions(text),
            [
                (0x55d_1000, false),
                (0x55d_2000, false),
                (0x7f00_0000_0000, false),
                (0x7f00_0400_0000, false),
                (0x7f00_0410_1000, true),
                (0x7f00_0450_2000, false),
                (0x7ffd_0000_0000, true),
            ]
        );
    }

    #[test]
    fn resident_pages_are_joined_and_swapped_ones_counted() {
        let mut resident = Resident::default();
        for (page, entry) in [
            (0, PAGE_PRESENT),
            (1, PAGE_PRESENT | 5),
            (2, 0),
            (3, PAGE_SWAPPED),
            (4, PAGE_PRESENT),
        ] {
            resident.add(page, entry);
        }
        assert_eq!(resident.ranges, [0..0x2000, 0x4000..0x5000]);
        assert_eq!(resident.swapped_bytes, PAGE_BYTES);
    }

    #[test]
    fn the_entry_is_found_among_pairs() {
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(entry_of(&words(&[3, 7, AT_ENTRY, 0x5555, 0, 0])), Some(0x5555));
        assert_eq!(entry_of(&words(&[3, AT_ENTRY, 0, 0])), None);
        assert_eq!(entry_of(&words(&[AT_ENTRY])), None);
        assert_eq!(entry_of(b"short"), None);
    }

    #[test]
    fn a_page_that_was_touched_is_resident_and_a_program_that_has_ended_is_gone() {
        let page = vec![1_u8; 3 * PAGE_BYTES as usize];
        let start = (page.as_ptr() as u64).next_multiple_of(PAGE_BYTES);
        let residence = Residence::open(std::process::id()).unwrap();
        residence.check(start).unwrap();
        let resident = residence.of(start..start + 2 * PAGE_BYTES).unwrap();
        let whole = start..start + 2 * PAGE_BYTES;
        assert_eq!((resident.ranges.len(), resident.ranges.first()), (1, Some(&whole)));

        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let residence = Residence::open(child.id()).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        let error = residence.check(start).unwrap_err();
        assert!(error.is_gone(), "{error}");
    }
}
