//! The corpus: programs that leak, and healthy ones that look as if they did. Each has its known answer.
//!
//! In: a seed. Out: sites with the births and ends of their tasks. Rates, sizes and times differ from seed to seed within the
//! bounds that are written here. Thresholds were tuned on [`TUNING_SEEDS`] alone.

use super::simulation::{Random, Site, Task, Word};
use std::f64::consts::TAU;

/// Seeds that thresholds were tuned on; a failure with any of them was a reason to change a rule.
pub(crate) const TUNING_SEEDS: std::ops::Range<u64> = 1..111;

/// Seeds that results are reported on.
pub(crate) const REPORTED_SEEDS: std::ops::Range<u64> = 201..211;

const MINUTE: f64 = 60.0;
const HOUR: f64 = 3600.0;
const NEVER: f64 = f64::INFINITY;

/// One program.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) leaks: bool,
    /// How long it is watched.
    pub(crate) seconds: f64,
    /// The site that is looked at; others are beside it in every scenario.
    tasks: fn(&mut Random, f64) -> Vec<Task>,
}

impl Scenario {
    /// The sites of one seed; the first is the one that the scenario is about.
    pub(crate) fn sites(&self, seed: u64) -> Vec<Site> {
        let stream = self
            .name
            .bytes()
            .fold(0, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(byte));
        let random = &mut Random::new(seed, stream);
        let site = |name, leaks, tasks| Site { name, leaks, tasks };
        let rate = random.between(5.0, 30.0);
        vec![
            site("subject", self.leaks, (self.tasks)(random, self.seconds)),
            site("accept_loop", false, together(1, 0.2, NEVER)),
            site("heartbeat", false, together(1, 0.3, NEVER)),
            site("workers", false, together(8, 0.1, NEVER)),
            site(
                "requests",
                false,
                arrivals(random, self.seconds, |_| rate, |random| random.exponential(0.2)),
            ),
        ]
    }
}

const fn leaking(name: &'static str, minutes: f64, tasks: fn(&mut Random, f64) -> Vec<Task>) -> Scenario {
    Scenario {
        name,
        leaks: true,
        seconds: minutes * MINUTE,
        tasks,
    }
}

const fn healthy(name: &'static str, minutes: f64, tasks: fn(&mut Random, f64) -> Vec<Task>) -> Scenario {
    Scenario {
        name,
        leaks: false,
        seconds: minutes * MINUTE,
        tasks,
    }
}

/// All of them: as many leak as do not.
pub(crate) const SCENARIOS: [Scenario; 26] = [
    leaking(ONE_A_SECOND, 30.0, |random, end| leak(random, end, |_| 1.0)),
    leaking(ONE_A_SECOND_UNWAKEABLE, 5.0, |random, end| {
        with(Word::Doomed, leak(random, end, |_| 1.0))
    }),
    leaking("handles kept in a list, unwakeable", 40.0, |random, end| {
        let rate = random.between(0.3, 2.0);
        with(Word::Abortable, leak(random, end, |_| rate))
    }),
    leaking("one request in a hundred", 40.0, |random, end| {
        let (rate, share) = (random.between(10.0, 40.0), random.between(0.01, 0.03));
        mixed(random, end, rate, share, 2.0)
    }),
    leaking("some connections among long ones", 100.0, |random, end| {
        let (share, mean) = (random.between(0.1, 0.3), random.between(60.0, 150.0));
        mixed(random, end, 1.0, share, mean)
    }),
    leaking("two a minute", 120.0, |random, end| leak(random, end, |_| 1.0 / 30.0)),
    leaking("one in five minutes, unwakeable", 120.0, |random, end| {
        with(Word::Doomed, leak(random, end, |_| 1.0 / 300.0))
    }),
    leaking("twenty with each batch", 60.0, |random, end| {
        let every = random.between(60.0, 200.0);
        let batches = (end / every) as usize;
        (0..batches)
            .flat_map(|batch| together(20, (batch as f64 + 0.5) * every, NEVER))
            .collect()
    }),
    leaking("with the load of the day", 150.0, |random, end| {
        let (period, phase) = (random.between(1.0, 2.0) * HOUR, random.between(0.0, 6.0));
        leak(random, end, move |time| 0.5 + 0.4 * (time / period * TAU + phase).sin())
    }),
    leaking("faster and faster", 45.0, |random, end| {
        leak(random, end, |time| 0.2 + time / 2000.0)
    }),
    leaking("after half an hour without", 75.0, |random, end| {
        let mut tasks = arrivals(random, end, |_| 3.0, |random| random.exponential(8.0));
        tasks.extend(leak(random, end, |time| if time > 30.0 * MINUTE { 0.5 } else { 0.0 }));
        tasks
    }),
    leaking("subscribers that come in waves", 90.0, |random, end| {
        let period = random.between(100.0, 220.0);
        leak(
            random,
            end,
            move |time| if time % period < period / 3.0 { 1.0 } else { 0.0 },
        )
    }),
    leaking("beside a fixed pool", 40.0, |random, end| {
        let mut tasks = together(64, 0.5, NEVER);
        let rate = random.between(0.2, 1.0);
        tasks.extend(leak(random, end, |_| rate));
        tasks
    }),
    healthy("a fixed pool", 30.0, |random, _| {
        together(random.between(4.0, 300.0) as usize, 0.4, NEVER)
    }),
    healthy("a pool that fills when needed", 60.0, |random, _| {
        let (size, minutes) = (random.between(16.0, 64.0), random.between(3.0, 10.0));
        ramp(random, size as usize, 0.0, minutes * MINUTE)
    }),
    healthy("connections that follow the load", 60.0, |random, end| {
        let (rate, mean) = (random.between(0.5, 4.0), random.between(60.0, 300.0));
        arrivals(random, end, |_| rate, |random| random.exponential(mean))
    }),
    healthy("web sockets that stay for half an hour", 150.0, |random, end| {
        let (rate, mean) = (random.between(0.2, 0.6), random.between(15.0, 40.0) * MINUTE);
        arrivals(random, end, |_| rate, |random| random.exponential(mean))
    }),
    healthy("a batch every few minutes", 90.0, |random, end| {
        let every = random.between(240.0, 600.0);
        let batches = (end / every) as usize;
        let mut tasks = Vec::new();
        for batch in 0..batches {
            let (size, start) = (random.between(80.0, 200.0) as usize, batch as f64 * every + 20.0);
            let spread = random.between(20.0, 90.0);
            tasks.extend(ramp(random, size, start, spread).into_iter().map(|task| Task {
                ends: task.born + random.between(30.0, 120.0),
                ..task
            }));
        }
        tasks
    }),
    healthy("timers", 40.0, |random, end| {
        let time = random.between(10.0, 90.0);
        arrivals(random, end, |_| 5.0, |_| time)
    }),
    healthy("steps that stay", 75.0, |random, _| {
        let mut tasks = together(20, 1.0, NEVER);
        for step in 1..4 {
            let start = f64::from(step) * random.between(14.0, 18.0) * MINUTE;
            tasks.extend(ramp(random, 100, start, 10.0));
        }
        tasks
    }),
    healthy("bursts", 60.0, |random, end| {
        let mut tasks = arrivals(random, end, |_| 1.0, |random| random.exponential(1.0));
        let mut start = 0.0;
        while start < end - 2.0 * MINUTE {
            start += random.exponential(150.0) + 10.0;
            let mean = random.between(5.0, 30.0);
            tasks.extend(ramp(random, 200, start, 30.0).into_iter().map(|task| Task {
                ends: task.born + random.exponential(mean),
                ..task
            }));
        }
        tasks
    }),
    healthy("the load of the day", 180.0, |random, end| {
        let (period, phase) = (random.between(1.0, 2.0) * HOUR, random.between(0.0, 6.0));
        let mean = random.between(120.0, 300.0);
        let load = move |time: f64| 2.0 + 1.9 * (time / period * TAU + phase).sin();
        arrivals(random, end, load, |random| random.exponential(mean))
    }),
    healthy("reconnect storms", 90.0, |random, end| {
        let clients = random.between(200.0, 600.0) as usize;
        let mut tasks = Vec::new();
        let mut start = 1.0;
        while start < end {
            let until = start + random.between(10.0, 30.0) * MINUTE;
            tasks.extend(
                ramp(random, clients, start, 30.0)
                    .into_iter()
                    .map(|task| Task { ends: until, ..task }),
            );
            start = until;
        }
        tasks
    }),
    healthy("a cache of subscriptions with eviction", 60.0, |random, end| {
        let (size, rate) = (random.between(150.0, 400.0) as usize, random.between(0.6, 2.0));
        let mut tasks = leak(random, end, |_| rate);
        for index in size..tasks.len() {
            tasks[index - size].ends = tasks[index].born;
        }
        tasks
    }),
    healthy("a ramp of connections to a level", 60.0, |random, _| {
        let (size, minutes) = (random.between(200.0, 600.0) as usize, random.between(5.0, 12.0));
        ramp(random, size, 60.0, minutes * MINUTE)
    }),
    healthy("guards that nothing wakes", 60.0, |random, end| {
        let mut tasks = with(Word::Doomed, together(random.between(1.0, 12.0) as usize, 0.5, NEVER));
        let mean = random.between(20.0, 120.0);
        tasks.extend(with(
            Word::Abortable,
            arrivals(random, end, |_| 1.0, |random| random.exponential(mean)),
        ));
        tasks
    }),
];

/// What the acceptance speaks of.
pub(crate) const ONE_A_SECOND: &str = "one a second";
pub(crate) const ONE_A_SECOND_UNWAKEABLE: &str = "one a second, unwakeable";

/// So many at about one time.
fn together(count: usize, born: f64, ends: f64) -> Vec<Task> {
    let task = |number| Task {
        born: born + number as f64 * 0.01,
        ends,
        word: Word::Idle,
    };
    (0..count).map(task).collect()
}

/// So many spread over a time, for ever.
fn ramp(random: &mut Random, count: usize, start: f64, seconds: f64) -> Vec<Task> {
    let task = |_| Task {
        born: start + random.between(0.0, seconds),
        ends: NEVER,
        word: Word::Idle,
    };
    (0..count).map(task).collect()
}

/// A Poisson process with a rate a second, each with its lifetime.
fn arrivals(
    random: &mut Random,
    end: f64,
    rate: impl Fn(f64) -> f64,
    mut lifetime: impl FnMut(&mut Random) -> f64,
) -> Vec<Task> {
    let highest = (0..=1000)
        .map(|part| rate(end * f64::from(part) / 1000.0))
        .fold(0.01, f64::max);
    let mut tasks = Vec::new();
    let mut time = 0.0;
    loop {
        time += random.exponential(1.0 / highest);
        if time > end {
            return tasks;
        }
        if random.chance(rate(time) / highest) {
            tasks.push(Task {
                born: time,
                ends: time + lifetime(random),
                word: Word::Idle,
            });
        }
    }
}

/// Arrivals that never end.
fn leak(random: &mut Random, end: f64, rate: impl Fn(f64) -> f64) -> Vec<Task> {
    arrivals(random, end, rate, |_| NEVER)
}

/// Arrivals of which a share never ends.
fn mixed(random: &mut Random, end: f64, rate: f64, share: f64, mean: f64) -> Vec<Task> {
    let lifetime = |random: &mut Random| {
        if random.chance(share) {
            NEVER
        } else {
            random.exponential(mean)
        }
    };
    arrivals(random, end, |_| rate, lifetime)
}

fn with(word: Word, tasks: Vec<Task>) -> Vec<Task> {
    tasks.into_iter().map(|task| Task { word, ..task }).collect()
}
