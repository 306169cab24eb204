//! The headers of live tasks, from the program that collects them.
//!
//! In: a target, or stacks. Out: samples, as the kernel has them. What a header holds is for `memory` to read.

use super::{
    load::{Kernel, KernelError},
    tables::Table,
};
use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use leakmon_ebpf::abi::{
    CountKey, LiveKey, LiveSlot, LiveValue, SAMPLE_CHUNKS_MAX, SAMPLES_PER_CHUNK, Sample, TargetId, WANTED_ENTRIES_MAX,
    Wanted,
};
use zerocopy::FromBytes;

/// Name of the program.
pub(super) const PROGRAM: &str = "sample_live";

const CHUNK_BYTES: usize = SAMPLES_PER_CHUNK as usize * size_of::<Sample>();

/// Tasks that one pass collects.
pub const SAMPLES_MAX: u64 = SAMPLES_PER_CHUNK as u64 * SAMPLE_CHUNKS_MAX as u64;
/// Stacks that can be asked for at once.
pub const STACKS_MAX: usize = WANTED_ENTRIES_MAX as usize;
/// Passes for one target: 8,000,000 tasks or so.
const PARTS_MAX: u64 = 32;

/// Its maps.
pub(super) struct SampleMaps {
    wanted: Table<CountKey, Wanted, 16, { size_of::<Wanted>() }>,
    samples: Array<MapData, [u8; CHUNK_BYTES]>,
    sampled: Array<MapData, u64>,
    slots: Array<MapData, [u8; size_of::<LiveSlot>()]>,
    /// The two hashes of live tasks.
    live: [Table<LiveKey, LiveValue, 16, { size_of::<LiveValue>() }>; 2],
}

impl SampleMaps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let samples = ebpf.take_map("SAMPLES").ok_or(KernelError::NoMap("SAMPLES"))?;
        let sampled = ebpf.take_map("SAMPLED").ok_or(KernelError::NoMap("SAMPLED"))?;
        let slots = ebpf.take_map("LIVE_SLOTS").ok_or(KernelError::NoMap("LIVE_SLOTS"))?;
        Ok(Self {
            slots: Array::try_from(slots).map_err(|error| KernelError::Map("LIVE_SLOTS", error))?,
            wanted: Table::take(ebpf, "WANTED")?,
            samples: Array::try_from(samples).map_err(|error| KernelError::Map("SAMPLES", error))?,
            sampled: Array::try_from(sampled).map_err(|error| KernelError::Map("SAMPLED", error))?,
            live: [Table::take(ebpf, "LIVE")?, Table::take(ebpf, "LIVE_MORE")?],
        })
    }

    fn clear(&mut self) {
        for (key, _) in self.wanted.entries() {
            self.wanted.remove(&key);
        }
    }

    /// What is known of a live task; `None` where it is not live.
    fn find(&self, key: LiveKey) -> Option<LiveValue> {
        let bytes = self.slots.get(&key.slot(), 0).ok()?;
        let slot = LiveSlot::read_from_bytes(&bytes).ok()?;
        let is_here = slot.state & LiveSlot::PHASES == LiveSlot::FULL && slot.key == key;
        if is_here {
            return Some(slot.value);
        }
        self.live.iter().find_map(|table| table.get(&key))
    }

    /// Gives what the last pass found, one by one, and says how many there were: a list of them would be megabytes.
    fn read(&self, found: &mut impl FnMut(Sample)) -> Result<u64, KernelError> {
        let count = self
            .sampled
            .get(&0, 0)
            .map_err(|error| KernelError::Map("SAMPLED", error))?;
        let count = count.min(SAMPLES_MAX);
        let mut left = count as usize;
        for chunk in 0..count.div_ceil(u64::from(SAMPLES_PER_CHUNK)) {
            let bytes = self.samples.get(&(chunk as u32), 0);
            let bytes = bytes.map_err(|error| KernelError::Map("SAMPLES", error))?;
            let entries = bytes.chunks_exact(size_of::<Sample>()).take(left);
            entries
                .filter_map(|entry| Sample::read_from_bytes(entry).ok())
                .for_each(&mut *found);
            left = left.saturating_sub(SAMPLES_PER_CHUNK as usize);
        }
        Ok(count)
    }
}

impl Kernel {
    /// Gives the live tasks of stacks, as many of each as its [`Wanted`] says. Stacks beyond [`STACKS_MAX`] and tasks beyond
    /// [`SAMPLES_MAX`] are left out.
    ///
    /// # Errors
    /// Where the kernel can't run the program; some may have been given by then.
    pub fn sample(&mut self, wanted: &[(CountKey, Wanted)], mut found: impl FnMut(Sample)) -> Result<(), KernelError> {
        if wanted.is_empty() {
            return Ok(());
        }
        self.samples.clear();
        for (key, value) in wanted.iter().take(STACKS_MAX) {
            let inserted = self.samples.wanted.insert(key, value);
            inserted.map_err(|error| KernelError::Map("WANTED", error))?;
        }
        self.collect(0, 0, 0)?;
        self.samples.read(&mut found).map(drop)
    }

    /// All live tasks and threads of a target, header and time of birth; `None` where they are too many to be collected.
    ///
    /// # Errors
    /// Where the kernel can't run the program.
    pub fn live_tasks(&mut self, target: TargetId) -> Result<Option<Vec<(u64, u64)>>, KernelError> {
        let mut parts = 1;
        while parts <= PARTS_MAX {
            if let Some(all) = self.live_parts(target, parts)? {
                return Ok(Some(all));
            }
            parts *= 4;
        }
        Ok(None)
    }

    /// Whether a task is still live by the probes' account.
    #[must_use]
    pub fn is_live(&self, target: TargetId, header: u64, born_ns: u64) -> bool {
        let key = LiveKey {
            target: target.0,
            header,
        };
        self.samples.find(key).is_some_and(|value| value.born_ns == born_ns)
    }

    /// `None` where one of the parts does not fit.
    fn live_parts(&mut self, target: TargetId, parts: u64) -> Result<Option<Vec<(u64, u64)>>, KernelError> {
        let mut all = Vec::new();
        for part in 0..parts {
            self.collect(target.0, part, parts - 1)?;
            let count = self
                .samples
                .read(&mut |sample| all.push((sample.header, sample.born_ns)))?;
            if count >= SAMPLES_MAX {
                return Ok(None);
            }
        }
        Ok(Some(all))
    }

    fn collect(&mut self, target: u64, part: u64, parts_mask: u64) -> Result<(), KernelError> {
        self.execute(PROGRAM, &[target, part, parts_mask])
    }
}
