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

    /// What the last pass found.
    fn read(&self) -> Result<Vec<Sample>, KernelError> {
        let count = self
            .sampled
            .get(&0, 0)
            .map_err(|error| KernelError::Map("SAMPLED", error))?;
        let count = count.min(SAMPLES_MAX) as usize;
        let mut found = Vec::with_capacity(count);
        for chunk in 0..count.div_ceil(SAMPLES_PER_CHUNK as usize) {
            let bytes = self.samples.get(&(chunk as u32), 0);
            let bytes = bytes.map_err(|error| KernelError::Map("SAMPLES", error))?;
            let entries = bytes.chunks_exact(size_of::<Sample>()).take(count - found.len());
            found.extend(entries.filter_map(|entry| Sample::read_from_bytes(entry).ok()));
        }
        Ok(found)
    }
}

impl Kernel {
    /// The live tasks of stacks, as many of each as its [`Wanted`] says. Stacks beyond [`STACKS_MAX`] and tasks beyond
    /// [`SAMPLES_MAX`] are left out.
    ///
    /// # Errors
    /// Where the kernel can't run the program.
    pub fn sample(&mut self, wanted: &[(CountKey, Wanted)]) -> Result<Vec<Sample>, KernelError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        self.samples.clear();
        for (key, value) in wanted.iter().take(STACKS_MAX) {
            let inserted = self.samples.wanted.insert(key, value);
            inserted.map_err(|error| KernelError::Map("WANTED", error))?;
        }
        self.collect(0, 0, 0)?;
        self.samples.read()
    }

    /// All live tasks of a target; `None` where they are too many to be collected.
    ///
    /// # Errors
    /// Where the kernel can't run the program.
    pub fn live_tasks(&mut self, target: TargetId) -> Result<Option<Vec<Sample>>, KernelError> {
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
    fn live_parts(&mut self, target: TargetId, parts: u64) -> Result<Option<Vec<Sample>>, KernelError> {
        let mut all = Vec::new();
        for part in 0..parts {
            self.collect(target.0, part, parts - 1)?;
            let found = self.samples.read()?;
            if found.len() as u64 >= SAMPLES_MAX {
                return Ok(None);
            }
            all.extend(found);
        }
        Ok(Some(all))
    }

    fn collect(&mut self, target: u64, part: u64, parts_mask: u64) -> Result<(), KernelError> {
        self.execute(PROGRAM, &[target, part, parts_mask])
    }
}
