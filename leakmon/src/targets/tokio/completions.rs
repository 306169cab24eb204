//! Where a task completes: the state word turns from RUNNING to COMPLETE.
//!
//! In: an image with task vtables. Out: completion sites. Source: `State::transition_to_complete` in tokio's
//! `runtime/task/state.rs`: `fetch_xor(RUNNING | COMPLETE)` with the result used, on the word with which `Header` begins.

use super::super::{
    code::{self, Function},
    flow::{CallEffect, Flow, OPAQUE, RAX, RDI, State, Value},
    image::Image,
    plan::ProbeSite,
};
use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind, Register};
use leakmon_ebpf::abi::{Condition, Role};
use std::collections::{BTreeMap, BTreeSet};

/// `RUNNING | COMPLETE`.
const DELTA: u64 = 3;
/// The xor is at most so many instructions before the exchange.
const XOR_DISTANCE_MAX: usize = 4;
/// Functions with an exchange that are decoded; hostile code may consist of nothing else.
const EXCHANGES_MAX: usize = 1 << 18;
/// Calls within calls that are looked into for a returned argument.
const DEPTH_MAX: usize = 4;

/// Finds the sites of an image, by ascending address.
pub(super) fn find(image: &Image<'_>) -> Vec<ProbeSite> {
    let mut sites = BTreeMap::new();
    let mut covered = BTreeSet::new();
    for start in functions_with_exchange(image) {
        let Some(function) = Function::around(image, start) else {
            continue;
        };
        for site in exchange_sites(image, &function) {
            covered.insert(start);
            sites.insert(site.address, site);
        }
    }
    // Unoptimised, `fetch_xor` is a call: only the symbol tells of whom.
    for symbol in image.symbols.iter().filter(|symbol| is_transition(symbol.name)) {
        if covered.insert(symbol.address)
            && let Some(site) = unoptimised_site(image, symbol.address)
        {
            sites.insert(site.address, site);
        }
    }
    sites.into_values().collect()
}

fn is_transition(name: &[u8]) -> bool {
    let contains = |part: &[u8]| name.windows(part.len()).any(|window| window == part);
    contains(b"22transition_to_complete") && contains(b"5State")
}

/// Start addresses of the functions that have `lock cmpxchg` (F0, perhaps REX, 0F B1).
fn functions_with_exchange(image: &Image<'_>) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    for segment in image.segments.iter().filter(|segment| segment.executable) {
        for (index, window) in segment.data.windows(4).enumerate() {
            let matches = matches!(*window, [0xf0, 0x48..=0x4f, 0x0f, 0xb1]);
            if matches && let Some(function) = image.function(segment.address + index as u64) {
                found.insert(function.start);
                if found.len() >= EXCHANGES_MAX {
                    return found;
                }
            }
        }
    }
    found
}

/// `xor r, 3` · `lock cmpxchg [base], r` · `jne`: at the branch the zero flag says whether this try succeeded.
fn exchange_sites(image: &Image<'_>, function: &Function) -> Vec<ProbeSite> {
    let code = &function.instructions;
    let exchanges = code.iter().enumerate().filter(|(_, exchange)| is_exchange(exchange));
    let flipping = exchanges.filter(|(index, exchange)| {
        code[index.saturating_sub(XOR_DISTANCE_MAX)..*index]
            .iter()
            .any(|xor| flips(xor, exchange.op1_register()))
    });
    flipping
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

fn flips(instruction: &Instruction, register: Register) -> bool {
    instruction.mnemonic() == Mnemonic::Xor
        && instruction.op0_register() == register
        && matches!(instruction.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64)
        && instruction.immediate(1) == DELTA
}

/// The first cheap instruction of `transition_to_complete` itself at which its argument is in a register.
fn unoptimised_site(image: &Image<'_>, address: u64) -> Option<ProbeSite> {
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
