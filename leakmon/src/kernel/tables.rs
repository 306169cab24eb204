//! The programs' maps, as typed tables.
//!
//! In: bytes of map values. Out: the structures of `abi`, parsed. Keys and values cross the boundary as byte arrays, so
//! there is no unsafe code here.

use super::load::KernelError;
use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use std::marker::PhantomData;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `BPF_NOEXIST` (`include/uapi/linux/bpf.h`).
const BPF_NOEXIST: u64 = 1;

/// A hash map with keys of `KEY` and values of `VALUE` bytes.
#[derive(Debug)]
pub struct Table<K, V, const KEY: usize, const VALUE: usize> {
    map: HashMap<MapData, [u8; KEY], [u8; VALUE]>,
    capacity: u32,
    types: PhantomData<(K, V)>,
}

impl<K, V, const KEY: usize, const VALUE: usize> Table<K, V, KEY, VALUE>
where
    K: FromBytes + IntoBytes + Immutable,
    V: FromBytes + IntoBytes + Immutable,
{
    pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, KernelError> {
        let map = ebpf.take_map(name).ok_or(KernelError::NoMap(name))?;
        let map = HashMap::try_from(map).map_err(|error| KernelError::Map(name, error))?;
        let capacity = info(&map).map_err(|error| KernelError::Map(name, error))?;
        Ok(Self {
            map,
            capacity,
            types: PhantomData,
        })
    }

    /// Value of a key; `None` where there is none.
    pub fn get(&self, key: &K) -> Option<V> {
        let value = self.map.get(&to_array(key)?, 0).ok()?;
        V::read_from_bytes(&value).ok()
    }

    /// Inserts or replaces.
    ///
    /// # Errors
    /// Where the map is full.
    pub fn insert(&mut self, key: &K, value: &V) -> Result<(), MapError> {
        self.put(key, value, 0)
    }

    /// Inserts where the key is not there yet.
    ///
    /// # Errors
    /// Where it is, or the map is full.
    pub fn insert_new(&mut self, key: &K, value: &V) -> Result<(), MapError> {
        self.put(key, value, BPF_NOEXIST)
    }

    fn put(&mut self, key: &K, value: &V, flags: u64) -> Result<(), MapError> {
        let (Some(key), Some(value)) = (to_array(key), to_array(value)) else {
            return Err(MapError::OutOfBounds {
                index: 0,
                max_entries: self.capacity,
            });
        };
        self.map.insert(key, value, flags)
    }

    /// Removes; a key that is not there is no error.
    pub fn remove(&mut self, key: &K) {
        if let Some(key) = to_array(key) {
            let _absent = self.map.remove(&key);
        }
    }

    /// All entries, in no order. An entry that goes meanwhile may be left out; nothing else is.
    pub fn entries(&self) -> Vec<(K, V)> {
        let parse = |(key, value): ([u8; KEY], [u8; VALUE])| {
            Some((K::read_from_bytes(&key).ok()?, V::read_from_bytes(&value).ok()?))
        };
        // The bound is the map's own: a key iteration that restarts can't go on for ever.
        self.map
            .iter()
            .take(self.capacity as usize)
            .filter_map(Result::ok)
            .filter_map(parse)
            .collect()
    }

    /// Entries that fit.
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }
}

fn to_array<const N: usize>(value: &(impl IntoBytes + Immutable)) -> Option<[u8; N]> {
    value.as_bytes().try_into().ok()
}

fn info<const KEY: usize, const VALUE: usize>(map: &HashMap<MapData, [u8; KEY], [u8; VALUE]>) -> Result<u32, MapError> {
    use aya::maps::IterableMap;
    Ok(map.map().info()?.max_entries())
}
