//! A process in a table of numbers: tasks are born and end at given times, and a kernel reads them once a second.
//!
//! In: sites with the births and ends of their tasks. Out: what the kernel would tell, as the entries of a recording, and what
//! reading the memory would tell. It knows nothing of verdicts.

use leakmon::{kernel::recording::Entry, live::States};
use leakmon_ebpf::abi::{AGE_CLASSES, Ages, CountKey, CountValue, TargetId, age_class};

/// The only process.
pub(crate) const TARGET: TargetId = TargetId::new(4711, 1);

/// When it begins; any time will do.
pub(crate) const BEGIN_NS: u64 = 1_000_000_000_000;

/// Stacks of one site that are told apart.
pub(crate) const STACKS: u64 = 2;

/// SplitMix64 (G. L. Steele and others, "Fast splittable pseudorandom number generators", 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ stream);
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Evenly from `low` to `high`.
    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (self.next() >> 11) as f64 / (1_u64 << 53) as f64 * (high - low)
    }

    /// With this mean, exponentially.
    pub(crate) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.between(0.0, 1.0)).ln()
    }

    pub(crate) fn chance(&mut self, share: f64) -> bool {
        self.between(0.0, 1.0) < share
    }
}

/// One task: seconds of its birth and its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) born: f64,
    /// `INFINITY` where it never ends.
    pub(crate) ends: f64,
    /// What its state word says.
    pub(crate) word: Word,
}

/// What reading a task's header shows, twice some seconds apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// It waits for something that can wake it.
    Idle,
    /// Nothing can wake it, and nobody can abort it.
    Doomed,
    /// Nothing can wake it, its handle can abort it.
    Abortable,
}

/// Seconds between two readings of the memory, and so the age from which a task can be known as unwakeable.
const MEMORY_INTERVAL: f64 = 5.0;

/// All tasks of one callsite.
pub(crate) struct Site {
    pub(crate) name: &'static str,
    pub(crate) leaks: bool,
    pub(crate) tasks: Vec<Task>,
}

/// A site as the kernel follows it.
pub(crate) struct Followed {
    tasks: Vec<Task>,
    /// Tasks that are born by now.
    next: usize,
    stacks: [Counted; STACKS as usize],
}

#[derive(Default)]
struct Counted {
    born: u64,
    ended: u64,
    alive: Vec<Task>,
    oldest_born_ns: u64,
    ages: [u32; AGE_CLASSES],
}

impl Followed {
    pub(crate) fn new(site: &Site) -> Self {
        let mut tasks = site.tasks.clone();
        tasks.sort_by(|left, right| left.born.total_cmp(&right.born));
        Self {
            tasks,
            next: 0,
            stacks: Default::default(),
        }
    }

    fn advance(&mut self, now: f64) {
        while let Some(task) = self.tasks.get(self.next).filter(|task| task.born <= now) {
            let stack = &mut self.stacks[self.next % STACKS as usize];
            stack.born += 1;
            stack.alive.push(*task);
            self.next += 1;
        }
        for stack in &mut self.stacks {
            let before = stack.alive.len();
            stack.alive.retain(|task| task.ends > now);
            stack.ended += (before - stack.alive.len()) as u64;
            stack.ages = [0; AGE_CLASSES];
            for task in &stack.alive {
                stack.ages[age_class(((now - task.born) * 1e9) as u64) as usize] += 1;
            }
            stack.oldest_born_ns = stack.alive.first().map_or(0, |task| at_ns(task.born));
        }
    }

    /// What reading the memory of a stack's tasks shows.
    fn states(&self, stack: usize, now: f64) -> States {
        let counted = &self.stacks[stack];
        let of = |word: Word| {
            let confirmed = |task: &&Task| task.word == word && now - task.born >= MEMORY_INTERVAL;
            counted.alive.iter().filter(confirmed).count() as u64
        };
        let sampled = counted.alive.len() as u64;
        States {
            sampled,
            idle: sampled,
            unwakeable: of(Word::Doomed) + of(Word::Abortable),
            abortable: of(Word::Abortable),
            ..States::default()
        }
    }
}

pub(crate) fn at_ns(second: f64) -> u64 {
    BEGIN_NS + (second * 1e9) as u64
}

/// The key of a site's stack; the site is `stack / STACKS`.
fn key(site: usize, stack: usize) -> CountKey {
    CountKey {
        target: TARGET.0,
        stack: site as u64 * STACKS + stack as u64,
    }
}

/// What the kernel tells at `now`, the `number`th reading, just after a sweep.
pub(crate) fn reading(sites: &mut [Followed], number: u64, now: f64) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (index, site) in sites.iter_mut().enumerate() {
        site.advance(now);
        for (stack, counted) in site.stacks.iter().enumerate().filter(|(_, counted)| counted.born > 0) {
            let swept = if counted.alive.is_empty() { number - 1 } else { number };
            let value = CountValue {
                born: counted.born,
                ended: counted.ended,
                reported_ns: 0,
                cookie: index as u64,
                oldest_born_ns: counted.oldest_born_ns,
                swept,
            };
            entries.push(Entry::Count(key(index, stack), value));
            let classes = counted.ages;
            entries.push(Entry::Ages(key(index, stack), Ages { swept, classes }));
        }
    }
    entries.push(Entry::Reading {
        sweep: Some(number),
        now_ns: at_ns(now),
    });
    entries
}

/// What reading the memory shows, in those rounds in which it is read.
pub(crate) fn memory(sites: &[Followed], number: u64, now: f64) -> Vec<(CountKey, States)> {
    if !number.is_multiple_of(MEMORY_INTERVAL as u64) {
        return Vec::new();
    }
    let stacks = sites
        .iter()
        .enumerate()
        .flat_map(|(index, site)| (0..STACKS as usize).map(move |stack| (key(index, stack), site.states(stack, now))));
    stacks.filter(|(_, states)| states.sampled > 0).collect()
}
