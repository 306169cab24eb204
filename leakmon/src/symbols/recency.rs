//! A table that forgets what was not asked for longest.
//!
//! In: keys and values, each with a weight. Out: the values, as long as they fit. It knows nothing of what it keeps.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Entries bounded in number and in total weight; the one used longest ago goes first.
#[derive(Debug)]
pub struct RecencyTable<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Keys by the time of their last use.
    order: BTreeMap<u64, K>,
    now: u64,
    weight: u64,
    entries_max: usize,
    weight_max: u64,
    evicted: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    used: u64,
    weight: u64,
}

impl<K: Clone + Eq + Hash, V> RecencyTable<K, V> {
    /// An empty table of at most `entries_max` entries that weigh at most `weight_max` together.
    #[must_use]
    pub fn new(entries_max: usize, weight_max: u64) -> Self {
        Self {
            entries: HashMap::new(),
            order: BTreeMap::new(),
            now: 0,
            weight: 0,
            entries_max,
            weight_max,
            evicted: 0,
        }
    }

    /// The value of `key`, which counts as a use of it.
    pub fn get(&mut self, key: &K) -> Option<&V> {
        let entry = self.entries.get_mut(key)?;
        self.now += 1;
        self.order.remove(&entry.used);
        entry.used = self.now;
        self.order.insert(self.now, key.clone());
        Some(&entry.value)
    }

    /// Keeps `value` under `key`, and forgets others until the bounds hold. What alone weighs more than the bound is
    /// not kept and counts as evicted.
    pub fn insert(&mut self, key: K, value: V, weight: u64) {
        self.remove(&key);
        if self.entries_max == 0 || weight > self.weight_max {
            self.evicted += 1;
            return;
        }
        while self.entries.len() >= self.entries_max || self.weight > self.weight_max - weight {
            let Some((_, oldest)) = self.order.pop_first() else {
                break;
            };
            if let Some(entry) = self.entries.remove(&oldest) {
                self.weight -= entry.weight;
                self.evicted += 1;
            }
        }
        self.now += 1;
        self.weight += weight;
        self.order.insert(self.now, key.clone());
        self.entries.insert(
            key,
            Entry {
                value,
                used: self.now,
                weight,
            },
        );
    }

    /// Forgets `key`.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.remove(key)?;
        self.order.remove(&entry.used);
        self.weight -= entry.weight;
        Some(entry.value)
    }

    /// Forgets all entries that weigh more than `weight`.
    pub fn remove_heavier(&mut self, weight: u64) {
        self.keep(|entry| entry.weight <= weight);
    }

    /// Forgets all entries for whose value `keep` is false.
    pub fn retain(&mut self, keep: impl Fn(&V) -> bool) {
        self.keep(|entry| keep(&entry.value));
    }

    fn keep(&mut self, keep: impl Fn(&Entry<V>) -> bool) {
        let dropped: Vec<K> = self
            .order
            .values()
            .filter(|key| !keep(&self.entries[*key]))
            .cloned()
            .collect();
        for key in &dropped {
            self.remove(key);
        }
    }

    /// Entries kept now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries given up so far to keep the bounds.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same table as a plain list, oldest use first.
    struct Naive {
        list: Vec<(u8, u32, u64)>,
        entries_max: usize,
        weight_max: u64,
        evicted: u64,
    }

    impl Naive {
        fn get(&mut self, key: u8) -> Option<u32> {
            let at = self.list.iter().position(|entry| entry.0 == key)?;
            let entry = self.list.remove(at);
            self.list.push(entry);
            Some(entry.1)
        }

        fn insert(&mut self, key: u8, value: u32, weight: u64) {
            self.list.retain(|entry| entry.0 != key);
            if self.entries_max == 0 || weight > self.weight_max {
                self.evicted += 1;
                return;
            }
            self.list.push((key, value, weight));
            while self.list.len() > self.entries_max
                || self.list.iter().map(|entry| entry.2).sum::<u64>() > self.weight_max
            {
                self.list.remove(0);
                self.evicted += 1;
            }
        }
    }

    proptest! {
        #[test]
        fn it_does_what_a_list_does(
            entries_max in 0_usize..6, weight_max in 0_u64..30,
            steps in proptest::collection::vec((0_u8..8, any::<bool>(), any::<u32>(), 0_u64..12), 0..200),
        ) {
            let mut table = RecencyTable::new(entries_max, weight_max);
            let mut naive = Naive { list: Vec::new(), entries_max, weight_max, evicted: 0 };
            for (key, read, value, weight) in steps {
                match (read, key) {
                    (true, 0) => {
                        table.remove_heavier(weight);
                        naive.list.retain(|entry| entry.2 <= weight);
                    }
                    (true, _) => prop_assert_eq!(table.get(&key).copied(), naive.get(key)),
                    (false, _) => {
                        table.insert(key, value, weight);
                        naive.insert(key, value, weight);
                    }
                }
                prop_assert_eq!(table.len(), naive.list.len());
                prop_assert_eq!(table.is_empty(), naive.list.is_empty());
                prop_assert_eq!(table.evicted(), naive.evicted);
                prop_assert_eq!(table.order.len(), table.entries.len());
            }
        }
    }
}
