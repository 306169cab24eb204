//! Deep stacks: complete, or said to be cut.

use super::{host, observer};
use std::process::Stdio;

/// Frames that a stack keeps at most.
const FRAMES_MAX: usize = leakmon_ebpf::abi::FRAMES_MAX;
/// The victim's own.
const ASYNC_DEPTH: usize = 60;
const RECURSION: usize = 200;

/// One stack of folded output, outermost frame first.
struct Folded {
    truncated: bool,
    frames: Vec<String>,
    live: usize,
}

impl Folded {
    fn parse(line: &str) -> Self {
        let (stack, live) = line.rsplit_once(' ').unwrap();
        let mut frames: Vec<String> = stack.split(';').map(str::to_owned).collect();
        // The process is first, kind and type are last.
        frames.pop();
        frames.remove(0);
        let truncated = frames[0] == "[truncated]";
        if truncated {
            frames.remove(0);
        }
        Self {
            truncated,
            frames,
            live: live.parse().unwrap(),
        }
    }

    fn levels_of(&self, function: &str) -> usize {
        self.frames.iter().filter(|frame| frame.contains(function)).count()
    }
}

#[test]
fn deep_stacks_are_complete_or_said_to_be_cut() {
    let test = "deep_stacks_are_complete_or_said_to_be_cut";
    let Some(victim) = host::victim_for(test, "deep_stacks") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("folded");
    let output = observer::leakmon(&["run", "--format", "folded", "-o"])
        .arg(&file)
        .arg("--")
        .arg(&victim)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = std::fs::read_to_string(&file).unwrap();
    // The first thread, which nobody in the process made, has no stack.
    let of_tasks = text.lines().filter(|line| !line.contains(";[thread]"));
    let stacks: Vec<Folded> = of_tasks.map(Folded::parse).collect();
    for stack in &stacks {
        let outermost = stack.frames.first().unwrap().as_str();
        if stack.truncated {
            assert_eq!(stack.frames.len(), FRAMES_MAX, "{outermost}");
        } else {
            assert!(stack.frames.len() <= FRAMES_MAX);
            assert!(
                ["_start", "clone3", "__clone3", "clone"].contains(&outermost),
                "{outermost}"
            );
        }
    }
    let nested: Vec<&Folded> = stacks
        .iter()
        .filter(|stack| stack.levels_of("call_inwards") > 1)
        .collect();
    let [nested] = nested[..] else {
        panic!("{} stacks of nested async calls", nested.len());
    };
    assert!(nested.levels_of("call_inwards") >= ASYNC_DEPTH || nested.truncated);

    let recursive: Vec<&Folded> = stacks.iter().filter(|stack| stack.levels_of("::descend") > 0).collect();
    assert_eq!(recursive.iter().map(|stack| stack.live).sum::<usize>(), RECURSION);
    let mut depths: Vec<usize> = Vec::new();
    for stack in &recursive {
        if !stack.truncated {
            assert_eq!(stack.live, 1);
            depths.push(stack.levels_of("::descend"));
        }
    }
    depths.sort_unstable();
    let complete = depths.len();
    println!(
        "{complete} of {RECURSION} recursive stacks are complete; {ASYNC_DEPTH} nested async calls have {} frames, truncated: {}",
        nested.frames.len(),
        nested.truncated
    );
    assert_eq!(
        depths,
        (1..=complete).collect::<Vec<_>>(),
        "one complete stack for each depth that fits"
    );
    assert!(complete > FRAMES_MAX / 2 && complete < RECURSION);
}

#[test]
fn a_cut_stack_belongs_to_the_callsite_of_its_location_and_is_counted() {
    let test = "a_cut_stack_belongs_to_the_callsite_of_its_location_and_is_counted";
    let Some(victim) = host::victim_for(test, "deep_stacks") else {
        return;
    };
    let runs: Vec<_> = ["50", "200"]
        .map(|recursion| observer::Run::of(&[], &victim, &["--recursion", recursion]))
        .into();
    let [shallow, deep] = &runs[..] else { unreachable!() };
    // 50 levels fit, and then one level more is cut with each of the last.
    let cut = |run: &observer::Run| run.report.loss("stacks_truncated");
    assert!(cut(deep) >= cut(shallow) + 200 - FRAMES_MAX as u64);
    assert!(cut(deep) < cut(shallow) + 200);
    for run in &runs {
        assert_eq!(run.report.task(), run.truth().total());
        let of_descend: Vec<_> = run
            .report
            .callsites()
            .into_iter()
            .filter(|callsite| {
                callsite["location"]["function"]
                    .as_str()
                    .unwrap_or_default()
                    .ends_with("::descend")
            })
            .collect();
        let [callsite] = of_descend[..] else {
            panic!("{} callsites of one line", of_descend.len());
        };
        let spawned = run
            .truth()
            .sites()
            .into_iter()
            .find(|site| site.name == "bottom")
            .unwrap()
            .counts
            .spawned;
        assert_eq!(callsite["spawned"], spawned);
    }
}
