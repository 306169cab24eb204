//! A victim's own record, and leakmon's report, side by side.

use serde_json::Value;
use std::collections::BTreeMap;

/// Spawned, ended and live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) spawned: u64,
    pub(crate) ended: u64,
    pub(crate) live: u64,
}

impl Counts {
    pub(crate) fn of(value: &Value) -> Self {
        let field = |name: &str| value[name].as_u64().unwrap_or_else(|| panic!("no {name} in {value}"));
        Self {
            spawned: field("spawned"),
            ended: field("ended"),
            live: field("live"),
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.spawned += other.spawned;
        self.ended += other.ended;
        self.live += other.live;
    }
}

/// The victim's record of one function.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) name: String,
    pub(crate) kind: String,
    /// Function that spawned them.
    pub(crate) spawned_by: String,
    /// Offset in the file of an instruction in the machine code that spawned them.
    pub(crate) spawned_at: Option<u64>,
    pub(crate) counts: Counts,
}

/// What a victim printed.
#[derive(Clone, Debug)]
pub(crate) struct Truth(Value);

impl Truth {
    /// The last line of a victim's output.
    pub(crate) fn parse(line: &str) -> Self {
        Self(serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}")))
    }

    /// All tasks, the runtime's own workers included.
    pub(crate) fn total(&self) -> Counts {
        let mut total = Counts::of(&self.0["total"]);
        total.add(self.workers());
        total
    }

    /// The tasks that were born in the second phase.
    pub(crate) fn second_phase(&self) -> Counts {
        Counts::of(&self.0["total"]["phase2"])
    }

    /// Tasks of the first phase that ended in the second.
    pub(crate) fn older_ended(&self) -> u64 {
        self.0["total"]["phase2"]["older_ended"].as_u64().unwrap()
    }

    /// The runtime's own tasks.
    pub(crate) fn workers(&self) -> Counts {
        let workers = self.0["runtime_tasks"].as_u64().unwrap();
        Counts {
            spawned: workers,
            ended: 0,
            live: workers,
        }
    }

    /// All but the runtime's own tasks, which are older than an attach before the first phase.
    pub(crate) fn without_workers(&self) -> Counts {
        let (mut total, workers) = (self.total(), self.workers());
        total.spawned -= workers.spawned;
        total.live -= workers.live;
        total
    }

    pub(crate) fn sites(&self) -> Vec<Site> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let site = |row: &Value| Site {
            name: text(&row["site"]),
            kind: text(&row["kind"]),
            spawned_by: text(&row["spawned_by"]),
            spawned_at: row["spawned_at"].as_u64(),
            counts: Counts::of(row),
        };
        self.0["truth"].as_array().unwrap().iter().map(site).collect()
    }
}

/// A report of `--format json`.
#[derive(Clone, Debug)]
pub(crate) struct Report(pub(crate) Value);

impl Report {
    pub(crate) fn parse(text: &str) -> Self {
        Self(serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text:?}")))
    }

    /// The only target.
    pub(crate) fn target(&self) -> &Value {
        let targets = self.0["targets"].as_array().unwrap();
        assert_eq!(targets.len(), 1, "{targets:#?}");
        &targets[0]
    }

    pub(crate) fn task(&self) -> Counts {
        Counts::of(&self.target()["task"])
    }

    pub(crate) fn loss(&self, name: &str) -> u64 {
        self.0["loss"][name].as_u64().unwrap()
    }

    /// The callsites of tasks.
    pub(crate) fn callsites(&self) -> Vec<&Value> {
        self.callsites_where(|kind| kind != "thread")
    }

    /// The callsites of threads.
    pub(crate) fn threads(&self) -> Vec<&Value> {
        self.callsites_where(|kind| kind == "thread")
    }

    fn callsites_where(&self, wanted: impl Fn(&str) -> bool) -> Vec<&Value> {
        let all = self.0["callsites"].as_array().unwrap();
        all.iter()
            .filter(|site| wanted(site["kind"].as_str().unwrap()))
            .collect()
    }

    /// Every stack that is shown.
    pub(crate) fn stacks(&self) -> impl Iterator<Item = &Value> {
        self.callsites()
            .into_iter()
            .flat_map(|callsite| callsite["stacks"].as_array().unwrap())
    }

    /// All callsites, for a failure's message.
    pub(crate) fn locations(&self) -> Value {
        let location = |callsite: &Value| serde_json::json!([callsite["location"]["function"], callsite["spawned"]]);
        self.callsites().into_iter().map(location).collect()
    }

    /// All callsites of a kind, summed.
    pub(crate) fn of_kinds(&self, kinds: &[&str]) -> Counts {
        self.sum(|callsite| kinds.contains(&callsite["kind"].as_str().unwrap()))
    }

    /// Callsites whose task type is this function's future, by type name; closures of blocking tasks are named by the
    /// function that holds them.
    pub(crate) fn by_task_type(&self) -> BTreeMap<String, Counts> {
        let mut sums: BTreeMap<String, Counts> = BTreeMap::new();
        for callsite in self.callsites() {
            let name = callsite["task_type"].as_str().unwrap_or("?").to_owned();
            sums.entry(name).or_default().add(Counts::of(callsite));
        }
        sums
    }

    fn sum(&self, wanted: impl Fn(&Value) -> bool) -> Counts {
        let mut sum = Counts::default();
        for callsite in self.callsites().into_iter().filter(|callsite| wanted(callsite)) {
            sum.add(Counts::of(callsite));
        }
        sum
    }
}
