//! Where a task completes: the state word turns from RUNNING to COMPLETE.
//!
//! In: an image with task vtables. Out: completion sites, and which of the functions lead to one. Source:
//! `State::transition_to_complete` in tokio's `runtime/task/state.rs`: `fetch_xor(RUNNING | COMPLETE)` with the result used, on
//! the word with which `Header` begins. Before 1.10, `Harness::complete` in `runtime/task/harness.rs`, and what is left of it
//! where it was inlined.

mod inlined;

use super::super::{
    code::{self, Function},
    flow::{CallEffect, Flow, OPAQUE, RAX, RDI, State, Value},
    image::Image,
    plan::ProbeSite,
};
use super::vtables::Completion;
use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind, Register};
use leakmon_ebpf::abi::{Condition, Role};
use std::collections::{BTreeMap, BTreeSet};

/// The update is at most so many instructions before the exchange.
const UPDATE_DISTANCE_MAX: usize = 4;
/// Functions with an exchange that are decoded; hostile code may consist of nothing else.
const EXCHANGES_MAX: usize = 1 << 18;
/// Calls within calls that are looked into for a returned argument.
const DEPTH_MAX: usize = 4;

/// Calls from a vtable's function to the completion: 6 in dev (`poll`, `Harness::poll`, `poll_inner`, `complete`, ...).
const REACH_DEPTH_MAX: usize = 8;
/// Functions looked at for one vtable's function; in dev the futures' own code is among them.
const REACH_FUNCTIONS_MAX: usize = 1 << 12;

/// What becomes of the state word before it is exchanged, on a register, by a sign-extended byte (REX, 83 /n, ib).
struct Update {
    mnemonic: Mnemonic,
    /// The ModRM byte without the register.
    modrm: u8,
    operand: u64,
}

/// `RUNNING | COMPLETE` change sides.
const FLIP: Update = Update {
    mnemonic: Mnemonic::Xor,
    modrm: 0xf0,
    operand: 3,
};

impl Update {
    /// Whether this may be the update, by its bytes.
    fn is_within(&self, bytes: &[u8]) -> bool {
        let operand = self.operand as u8;
        bytes
            .windows(3)
            .any(|bytes| bytes[0] == 0x83 && bytes[1] & 0xf8 == self.modrm && bytes[2] == operand)
    }

    fn is(&self, instruction: &Instruction, register: Register) -> bool {
        instruction.mnemonic() == self.mnemonic
            && instruction.op0_register() == register
            && matches!(instruction.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64)
            && instruction.immediate(1) == self.operand
    }
}

/// The completion sites of an image.
#[derive(Debug, Default)]
pub(super) struct Completions {
    /// By ascending address.
    pub(super) sites: Vec<ProbeSite>,
    /// Start addresses of the functions that have them.
    functions: BTreeSet<u64>,
}

/// Finds the sites of one way of completing.
pub(super) fn find(image: &Image<'_>, completion: Completion) -> Completions {
    match completion {
        Completion::Transition => transitions(image),
        Completion::Harness => harnesses(image),
    }
}

/// Which functions lead to a completion; what it learned of one function serves the next.
pub(super) struct Reach<'a> {
    image: &'a Image<'a>,
    goals: &'a BTreeSet<u64>,
    /// Functions that are not looked into.
    barriers: BTreeSet<u64>,
    callees: BTreeMap<u64, Vec<u64>>,
}

impl<'a> Reach<'a> {
    /// Nothing is known yet.
    pub(super) fn new(image: &'a Image<'a>, completions: &'a Completions) -> Self {
        Self::to(image, &completions.functions)
    }

    fn to(image: &'a Image<'a>, goals: &'a BTreeSet<u64>) -> Self {
        Self {
            image,
            goals,
            barriers: BTreeSet::new(),
            callees: BTreeMap::new(),
        }
    }

    /// Whether a completion is within a few calls from the function at `start`.
    pub(super) fn completes(&mut self, start: u64) -> bool {
        let image = self.image;
        let mut seen = BTreeSet::from([start]);
        let mut level = vec![start];
        for _ in 0..=REACH_DEPTH_MAX {
            if level.iter().any(|address| self.goals.contains(address)) {
                return true;
            }
            let mut next = Vec::new();
            for address in level {
                if !image.pay(1) {
                    return false;
                }
                let callees = self.callees.entry(address).or_insert_with(|| {
                    Function::around(image, address).map_or_else(Vec::new, |function| function.named(image))
                });
                for callee in callees {
                    if seen.len() < REACH_FUNCTIONS_MAX && !self.barriers.contains(callee) && seen.insert(*callee) {
                        next.push(*callee);
                    }
                }
            }
            level = next;
        }
        false
    }
}

/// Entries of `Harness<T, S>::complete`, of which only symbols tell: the first argument is the task.
fn harnesses(image: &Image<'_>) -> Completions {
    let mut completions = Completions::default();
    let mut refused = BTreeSet::new();
    for symbol in image.symbols.iter().filter(|symbol| is_harness_complete(symbol.name)) {
        if completions.functions.contains(&symbol.address) || refused.contains(&symbol.address) {
            continue;
        }
        match argument_site(image, symbol.address) {
            Some(site) => {
                completions.functions.insert(symbol.address);
                completions.sites.push(site);
            }
            None => _ = refused.insert(symbol.address),
        }
    }
    completions.sites.sort_by_key(|site| site.address);
    completions
}

/// Where tasks are freed: the entries of these functions, whose first argument is the task.
pub(super) fn freeing(image: &Image<'_>, functions: &BTreeSet<u64>) -> Vec<ProbeSite> {
    let sites = functions.iter().filter_map(|function| argument_site(image, *function));
    sites.map(released).collect()
}

/// The site, where a task that has completed may come as well as one that has not.
fn released(site: ProbeSite) -> ProbeSite {
    ProbeSite {
        role: Role::Freed,
        ..site
    }
}

/// `Harness<T,S>::complete`, legacy or v0, and none of its closures.
fn is_harness_complete(name: &[u8]) -> bool {
    let contains = |part: &[u8]| name.windows(part.len()).any(|window| window == part);
    let legacy = name.starts_with(b"_ZN") && contains(b"8complete17h");
    let v0 = (name.starts_with(b"_RNv") || name.starts_with(b"_RINv")) && contains(b"8complete");
    contains(b"4task7harness") && (legacy || v0)
}

fn transitions(image: &Image<'_>) -> Completions {
    let mut sites = BTreeMap::new();
    let mut covered = BTreeSet::new();
    for start in functions_with_exchange(image, &FLIP) {
        let Some(function) = Function::around(image, start) else {
            continue;
        };
        for site in exchange_sites(image, &function, &[&FLIP]) {
            covered.insert(start);
            sites.insert(site.address, site);
        }
    }
    // Unoptimised, `fetch_xor` is a call: only the symbol tells of whom.
    for symbol in image.symbols.iter().filter(|symbol| is_transition(symbol.name)) {
        if !covered.contains(&symbol.address)
            && let Some(site) = argument_site(image, symbol.address)
        {
            covered.insert(symbol.address);
            sites.insert(site.address, site);
        }
    }
    Completions {
        functions: covered,
        sites: sites.into_values().collect(),
    }
}

fn is_transition(name: &[u8]) -> bool {
    let contains = |part: &[u8]| name.windows(part.len()).any(|window| window == part);
    contains(b"22transition_to_complete") && contains(b"5State")
}

/// Start addresses of the functions that have `lock cmpxchg` (F0, REX, 0F B1) close behind what may be an update.
fn functions_with_exchange(image: &Image<'_>, update: &Update) -> BTreeSet<u64> {
    /// Instructions are at most 15 bytes long.
    const LOOKED_BACK_BYTES: usize = UPDATE_DISTANCE_MAX * 15;
    let mut found = BTreeSet::new();
    for segment in image.segments.iter().filter(|segment| segment.executable) {
        for (index, window) in segment.data.windows(4).enumerate() {
            if !matches!(*window, [0xf0, 0x48..=0x4f, 0x0f, 0xb1]) {
                continue;
            }
            let before = &segment.data[index.saturating_sub(LOOKED_BACK_BYTES)..index];
            if update.is_within(before)
                && let Some(function) = image.function(segment.address + index as u64)
            {
                found.insert(function.start);
                if found.len() >= EXCHANGES_MAX {
                    return found;
                }
            }
        }
    }
    found
}

/// Updates of `r` · `lock cmpxchg [base], r` · `jne`: at the branch the zero flag says whether this try succeeded.
fn exchange_sites(image: &Image<'_>, function: &Function, updates: &[&Update]) -> Vec<ProbeSite> {
    let code = &function.instructions;
    let exchanges = code.iter().enumerate().filter(|(_, exchange)| is_exchange(exchange));
    let updating = exchanges.filter(|(index, exchange)| {
        let before = &code[index.saturating_sub(UPDATE_DISTANCE_MAX)..*index];
        let is_there = |update: &&Update| before.iter().any(|other| update.is(other, exchange.op1_register()));
        updates.iter().all(is_there)
    });
    updating
        .filter_map(|(index, exchange)| {
            let branch = code.get(index + 1).filter(|branch| code::is_zero_branch(branch))?;
            let base = code::number(exchange.memory_base())?;
            code::site(image, branch, Role::End, base, Condition::ZeroSet).filter(|site| site.cheap)
        })
        .collect()
}

fn is_exchange(instruction: &Instruction) -> bool {
    instruction.code() == Code::Cmpxchg_rm64_r64
        && instruction.has_lock_prefix()
        && instruction.op0_kind() == OpKind::Memory
        && instruction.memory_displacement64() == 0
        && instruction.memory_index() == Register::None
        && !matches!(instruction.memory_base(), Register::RSP | Register::RIP)
        && instruction.segment_prefix() == Register::None
}

/// The first cheap instruction of a function at which its argument is in a register, before it branches.
fn argument_site(image: &Image<'_>, address: u64) -> Option<ProbeSite> {
    let function = Function::around(image, address)?;
    let calls = |_: &Instruction, target: Option<u64>, state: &State| call(image, target, state, DEPTH_MAX);
    let flow = Flow::through(image, &function, &calls)?;
    let mut slow = None;
    for (index, instruction) in function.instructions.iter().enumerate() {
        // The first instruction may be jumped to only by a loop, which this function hasn't.
        if function.jump_targets.contains(&instruction.ip()) {
            break;
        }
        let state = flow.state_at(index)?;
        if let Some(register) = state.register_with(Value::Argument)
            && let Some(site) = code::site(image, instruction, Role::End, register, Condition::Always)
        {
            if site.cheap {
                return Some(site);
            }
            if slow.is_none() && code::is_probeable(instruction) {
                slow = Some(site);
            }
        }
        if !matches!(
            instruction.flow_control(),
            FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall
        ) {
            break;
        }
    }
    slow
}

/// A call of a function that returns its argument, such as an unoptimised `deref`.
fn call(image: &Image<'_>, target: Option<u64>, state: &State, depth: usize) -> CallEffect {
    let argument = state.register(RDI);
    match target {
        Some(target) if argument == Value::Argument && returns_argument(image, target, depth) => CallEffect {
            result: argument,
            stored: None,
        },
        _ => OPAQUE,
    }
}

fn returns_argument(image: &Image<'_>, address: u64, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else {
        return false;
    };
    let Some(function) = Function::around(image, address) else {
        return false;
    };
    let calls = |_: &Instruction, target: Option<u64>, state: &State| call(image, target, state, depth);
    let Some(flow) = Flow::through(image, &function, &calls) else {
        return false;
    };
    let mut returns = 0;
    let mut same = true;
    flow.visit(|index, state| {
        if function.instructions[index].flow_control() == FlowControl::Return {
            returns += 1;
            same &= state.register(RAX) == Value::Argument;
        }
    });
    returns > 0 && same
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: u64 = 0x1000;

    /// The sites in one function at [`ADDRESS`]: address, register, condition.
    fn sites(code: &[u8]) -> Vec<(u64, u8, Condition)> {
        let image = Image::of_code(ADDRESS, code, &[]);
        let sites = transitions(&image).sites;
        assert!(sites.iter().all(|site| site.cheap && site.role == Role::End));
        sites
            .iter()
            .map(|site| (site.address, site.register, site.condition))
            .collect()
    }

    #[test]
    fn the_branch_behind_a_flipping_exchange_is_a_site() {
        // mov rcx, rax · xor rcx, 3 · lock cmpxchg [rdi], rcx · jne back
        let release = b"\x48\x89\xc1\x48\x83\xf1\x03\xf0\x48\x0f\xb1\x0f\x75\xf2\xc3";
        assert_eq!(sites(release), [(ADDRESS + 12, 7, Condition::ZeroSet)]);
        // The same with rbx and r8: mov r8, rax · xor r8, 3 · lock cmpxchg [rbx], r8 · jne back
        let other = b"\x49\x89\xc0\x49\x83\xf0\x03\xf0\x4c\x0f\xb1\x03\x75\xf2\xc3";
        assert_eq!(sites(other), [(ADDRESS + 12, 3, Condition::ZeroSet)]);
        // And with a register base that needs REX.B: lock cmpxchg [r14], rcx
        let high = b"\x48\x89\xc1\x48\x83\xf1\x03\xf0\x49\x0f\xb1\x0e\x75\xf2\xc3";
        assert_eq!(sites(high), [(ADDRESS + 12, 14, Condition::ZeroSet)]);
    }

    #[test]
    fn what_only_resembles_it_is_none() {
        for code in [
            // xor rcx, 1: another transition
            &b"\x48\x89\xc1\x48\x83\xf1\x01\xf0\x48\x0f\xb1\x0f\x75\xf2\xc3"[..],
            // xor rdx, 3, but rcx is exchanged
            b"\x48\x89\xc1\x48\x83\xf2\x03\xf0\x48\x0f\xb1\x0f\x75\xf2\xc3",
            // cmpxchg [rdi+8], rcx: not the state word
            b"\x48\x89\xc1\x48\x83\xf1\x03\xf0\x48\x0f\xb1\x4f\x08\x75\xf1\xc3",
            // 32 bits: lock cmpxchg [rdi], ecx
            b"\x48\x89\xc1\x48\x83\xf1\x03\xf0\x0f\xb1\x0f\x75\xf3\xc3",
            // no lock
            b"\x48\x89\xc1\x48\x83\xf1\x03\x48\x0f\xb1\x0f\x75\xf3\xc3",
            // no branch behind it
            b"\x48\x89\xc1\x48\x83\xf1\x03\xf0\x48\x0f\xb1\x0f\xc3",
            b"",
        ] {
            assert_eq!(sites(code), [], "{code:x?}");
        }
    }

    #[test]
    fn without_optimisation_the_call_of_fetch_xor_is_the_site() {
        // sub rsp, 24 · mov [rsp+8], rdi · mov esi, 3 · call +0 · add rsp, 24 · ret
        let code = b"\x48\x83\xec\x18\x48\x89\x7c\x24\x08\xbe\x03\x00\x00\x00\xe8\x00\x00\x00\x00\x48\x83\xc4\x18\xc3";
        let mut image = Image::of_code(ADDRESS, code, &[]);
        assert_eq!(transitions(&image).sites, []);
        let name = b"_ZN5tokio7runtime4task5state5State22transition_to_complete17h0123456789abcdefE";
        image
            .symbols
            .push(super::super::super::image::FunctionSymbol { address: ADDRESS, name });
        let sites = transitions(&image).sites;
        assert_eq!(sites.len(), 1);
        assert_eq!((sites[0].address, sites[0].register), (ADDRESS + 14, 7));
        assert_eq!((sites[0].condition, sites[0].cheap), (Condition::Always, true));
    }
}
