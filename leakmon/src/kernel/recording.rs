//! A recording of what the kernel told, so that a run can be replayed without root and without a kernel.
//!
//! In: ring records and readings of the counters, as bytes. Out: a file, and from such a file the same things again, in order.
//! Nothing of a target is in it but numbers.
//!
//! Each entry is a byte that says what it is, and a value of `abi` as it lies in memory (little endian): 0 a ring record;
//! 1 a counter's key and value; 2 the end of a reading, with the number of its sweep (0: none) and its time; 3 a stack's key and
//! the ages of its live tasks, where they were read.

use super::event::Event;
use leakmon_ebpf::abi::{Ages, CountKey, CountValue, Record};
use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};
use zerocopy::{FromBytes, IntoBytes};

/// A recording grows to this and no further.
const BYTES_MAX: u64 = 64 << 20;

const EVENT: u8 = 0;
const COUNT: u8 = 1;
const READING: u8 = 2;
const AGES: u8 = 3;

/// One thing that the kernel told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An event of the ring.
    Event(Event),
    /// One counter of a reading.
    Count(CountKey, CountValue),
    /// The ages of a stack's live tasks, of a reading.
    Ages(CountKey, Ages),
    /// All counters and ages of a reading have been told.
    Reading {
        /// Number of the sweep just before it.
        sweep: Option<u64>,
        /// `CLOCK_MONOTONIC`.
        now_ns: u64,
    },
}

/// Why a recording can't be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordingError {
    /// It ends within an entry.
    #[error("the recording is cut off at byte {0}; record it anew")]
    CutOff(usize),
    /// An entry is not of this version.
    #[error("the recording has an entry at byte {0} that this leakmon does not know; record it anew")]
    Unknown(usize),
}

/// Writes a recording.
#[derive(Debug)]
pub struct Recorder {
    out: BufWriter<File>,
    bytes: u64,
}

impl Recorder {
    /// Begins a recording.
    ///
    /// # Errors
    /// The file can't be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        let out = BufWriter::new(File::create(path)?);
        Ok(Self { out, bytes: 0 })
    }

    pub(super) fn event(&mut self, record: &[u8]) {
        self.entry(EVENT, &[record]);
    }

    /// Adds a reading of the counters, and of the ages, where they were read.
    pub fn reading(
        &mut self,
        counts: &[(CountKey, CountValue)],
        ages: &[(CountKey, Ages)],
        sweep: Option<u64>,
        now_ns: u64,
    ) {
        for (key, value) in counts {
            self.entry(COUNT, &[key.as_bytes(), value.as_bytes()]);
        }
        for (key, value) in ages {
            self.entry(AGES, &[key.as_bytes(), value.as_bytes()]);
        }
        self.entry(READING, &[&sweep.unwrap_or(0).to_le_bytes(), &now_ns.to_le_bytes()]);
    }

    fn entry(&mut self, kind: u8, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.bytes += 1 + len as u64;
        if self.bytes > BYTES_MAX {
            return;
        }
        let written = self.out.write_all(&[kind]);
        let written = parts
            .iter()
            .fold(written, |written, part| written.and_then(|()| self.out.write_all(part)));
        if let Err(error) = written {
            tracing::warn!("the recording ends here: {error}");
            self.bytes = BYTES_MAX;
        }
    }
}

/// Reads a recording.
///
/// # Errors
/// See [`RecordingError`].
pub fn read(bytes: &[u8]) -> Result<Vec<Entry>, RecordingError> {
    let mut entries = Vec::new();
    let mut rest = bytes;
    while let Some((kind, after)) = rest.split_first() {
        let at = bytes.len() - rest.len();
        let len = match *kind {
            EVENT => size_of::<Record>(),
            COUNT => size_of::<CountKey>() + size_of::<CountValue>(),
            READING => 2 * size_of::<u64>(),
            AGES => size_of::<CountKey>() + size_of::<Ages>(),
            _ => return Err(RecordingError::Unknown(at)),
        };
        let (value, next) = after.split_at_checked(len).ok_or(RecordingError::CutOff(at))?;
        entries.push(entry(*kind, value).ok_or(RecordingError::Unknown(at))?);
        rest = next;
    }
    Ok(entries)
}

fn entry(kind: u8, value: &[u8]) -> Option<Entry> {
    Some(match kind {
        EVENT => Entry::Event(Event::parse(value)?),
        COUNT => {
            let (key, value) = CountKey::read_from_prefix(value).ok()?;
            Entry::Count(key, CountValue::read_from_bytes(value).ok()?)
        }
        AGES => {
            let (key, value) = CountKey::read_from_prefix(value).ok()?;
            Entry::Ages(key, Ages::read_from_bytes(value).ok()?)
        }
        _ => {
            let (sweep, now_ns) = u64::read_from_prefix(value).ok()?;
            Entry::Reading {
                sweep: Some(sweep).filter(|sweep| *sweep != 0),
                now_ns: u64::read_from_bytes(now_ns).ok()?,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use leakmon_ebpf::abi::{RecordKind, TargetId};
    use proptest::prelude::*;

    #[test]
    fn what_was_recorded_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recording");
        let mut recorder = Recorder::create(&path).unwrap();
        let record = Record {
            kind: RecordKind::Exit as u32,
            tid: 1,
            time_ns: 5,
            target: 9,
            stack: 0,
            first: 0,
            second: 0,
        };
        let key = CountKey { target: 9, stack: 3 };
        let value = CountValue {
            born: 4,
            ended: 1,
            reported_ns: 0,
            cookie: 7,
            oldest_born_ns: 2,
            swept: 6,
        };
        recorder.event(record.as_bytes());
        let ages = Ages {
            swept: 6,
            classes: [1, 2, 0, 0, 0, 0, 0, 3],
        };
        recorder.reading(&[(key, value)], &[(key, ages)], Some(6), 11);
        recorder.reading(&[], &[], None, 12);
        drop(recorder);
        let bytes = std::fs::read(&path).unwrap();
        let expected = [
            Entry::Event(Event::Exit {
                target: TargetId(9),
                time_ns: 5,
            }),
            Entry::Count(key, value),
            Entry::Ages(key, ages),
            Entry::Reading {
                sweep: Some(6),
                now_ns: 11,
            },
            Entry::Reading {
                sweep: None,
                now_ns: 12,
            },
        ];
        assert_eq!(read(&bytes).unwrap(), expected);
        assert_eq!(
            read(&bytes[..bytes.len() - 1]),
            Err(RecordingError::CutOff(bytes.len() - 17))
        );
        assert_eq!(read(&[9]), Err(RecordingError::Unknown(0)));
    }

    #[test]
    fn a_recording_stops_at_its_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recording");
        let mut recorder = Recorder::create(&path).unwrap();
        recorder.bytes = BYTES_MAX - 17;
        recorder.reading(&[], &[], None, 1);
        recorder.reading(&[], &[], None, 2);
        drop(recorder);
        assert_eq!(
            read(&std::fs::read(&path).unwrap()).unwrap(),
            [Entry::Reading { sweep: None, now_ns: 1 }]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_give_entries_or_an_error(bytes in proptest::collection::vec(0..4_u8, 0..300)) {
            let _any = read(&bytes);
        }
    }
}
