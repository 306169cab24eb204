//! What the registers of a function hold: a forward flow of constants, stack addresses and the values that a finder follows.
//!
//! In: a function's code. Out: the state before each instruction that can be reached. Where two ways meet and disagree, a value
//! is unknown. Memory other than the function's own stack slots is not followed. Calls are modelled by the caller.

use super::{
    code::{Function, falls_through, jump_target, number},
    image::Image,
};
use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use std::collections::{BTreeSet, VecDeque};

mod state;
#[cfg(test)]
mod tests;

use state::{CALLER_SAVED, RBP, RSP};
pub(super) use state::{RAX, RDI, RDX, RSI, State, Value};

/// Visits of a block, on average, until a function is given up. Three suffice for all seen.
const VISITS_PER_BLOCK_MAX: usize = 64;
/// Places in a function where rsp is not the same on every way, as in a loop that probes a large frame page by page.
const FRAME_PLACES_MAX: usize = 16;

/// What a call does, as far as the finder knows.
pub(super) struct CallEffect {
    /// Left in rax.
    pub(super) result: Value,
    /// Stored through a pointer argument.
    pub(super) stored: Option<(Value, Value)>,
}

/// How a finder models calls: from the instruction, the target where it is known, and the state before it.
pub(super) type CallModel<'a> = &'a dyn Fn(&Instruction, Option<u64>, &State) -> CallEffect;

/// A call of which nothing is known.
pub(super) const OPAQUE: CallEffect = CallEffect {
    result: Value::Unknown,
    stored: None,
};

/// Why a flow did not come to rest.
enum Unsettled {
    /// Ways with another rsp meet at this address: begin again and reckon the frame from there.
    Frame(u64),
    TooLong,
}

/// The flow through one function.
pub(super) struct Flow<'a> {
    image: &'a Image<'a>,
    function: &'a Function,
    calls: CallModel<'a>,
    /// Index of each block's first instruction, ascending.
    blocks: Vec<usize>,
    /// Addresses of blocks from which the frame is reckoned anew.
    frames: BTreeSet<u64>,
    entry_states: Vec<Option<State>>,
}

impl<'a> Flow<'a> {
    /// Follows the values until nothing changes. `None` where that takes too long.
    pub(super) fn through(image: &'a Image<'a>, function: &'a Function, calls: CallModel<'a>) -> Option<Self> {
        let blocks = blocks(function);
        let mut frames = BTreeSet::new();
        while frames.len() < FRAME_PLACES_MAX {
            let entry_states = vec![None; blocks.len()];
            let mut flow = Self {
                image,
                function,
                calls,
                blocks: blocks.clone(),
                frames: frames.clone(),
                entry_states,
            };
            match flow.settle_all() {
                Ok(()) => return Some(flow),
                Err(Unsettled::Frame(place)) => frames.insert(place),
                Err(Unsettled::TooLong) => return None,
            };
        }
        None
    }

    fn settle_all(&mut self) -> Result<(), Unsettled> {
        let mut visits = self.blocks.len().saturating_mul(VISITS_PER_BLOCK_MAX);
        let mut frame = None;
        self.settle(0, State::at_entry(), &mut visits, &mut frame)?;
        // Only an indirect jump (a `match` over an async function's state) reaches what is left.
        let mut block = 0;
        while let Some(state) = frame.clone() {
            let Some(next) = (block..self.blocks.len()).find(|block| self.entry_states[*block].is_none()) else {
                break;
            };
            self.settle(next, state, &mut visits, &mut frame)?;
            block = next;
        }
        Ok(())
    }

    fn settle(
        &mut self,
        first: usize,
        state: State,
        visits: &mut usize,
        frame: &mut Option<State>,
    ) -> Result<(), Unsettled> {
        let Some(place) = self.entry_states.get_mut(first) else {
            return Ok(());
        };
        *place = Some(state);
        let mut queue = VecDeque::from([first]);
        let mut info = InstructionInfoFactory::new();
        while let Some(block) = queue.pop_front() {
            *visits = visits.checked_sub(1).ok_or(Unsettled::TooLong)?;
            let Some(mut state) = self.entry_states[block].clone() else {
                continue;
            };
            let range = self.block_range(block);
            self.pay(range.len() + state.price())?;
            for instruction in &self.function.instructions[range.clone()] {
                self.step(&mut state, instruction, &mut info);
                if instruction.flow_control() == FlowControl::IndirectBranch && frame.is_none() {
                    *frame = Some(state.frame_only());
                }
            }
            for next in self.successors(range.end - 1).collect::<Vec<_>>() {
                self.pay(state.price())?;
                let Ok(next) = self.blocks.binary_search(&next) else {
                    continue;
                };
                if self.enter(next, state.clone())? {
                    queue.push_back(next);
                }
            }
        }
        Ok(())
    }

    fn pay(&self, instructions: usize) -> Result<(), Unsettled> {
        self.image.pay(instructions).then_some(()).ok_or(Unsettled::TooLong)
    }

    /// Merges a state into a block's; says whether that changed it.
    fn enter(&mut self, block: usize, mut state: State) -> Result<bool, Unsettled> {
        let place = self.function.instructions[self.blocks[block]].ip();
        if self.frames.contains(&place) {
            state.set_register(RSP, Value::Stack { base: place, offset: 0 });
        }
        let Some(known) = &mut self.entry_states[block] else {
            self.entry_states[block] = Some(state);
            return Ok(true);
        };
        match (known.register(RSP), state.register(RSP)) {
            (mine @ Value::Stack { .. }, theirs @ Value::Stack { .. }) if mine != theirs => {
                Err(Unsettled::Frame(place))
            }
            _ => Ok(known.meet(&state)),
        }
    }

    fn block_range(&self, block: usize) -> std::ops::Range<usize> {
        let end = self
            .blocks
            .get(block + 1)
            .copied()
            .unwrap_or(self.function.instructions.len());
        self.blocks[block]..end
    }

    /// Indices of the instructions that can follow directly.
    pub(super) fn successors(&self, index: usize) -> impl Iterator<Item = usize> {
        let instruction = self.function.instructions.get(index);
        let next = instruction
            .filter(|instruction| falls_through(instruction))
            .map(|_| index + 1);
        let target = instruction
            .and_then(jump_target)
            .and_then(|target| self.function.index(target));
        next.filter(|next| *next < self.function.instructions.len())
            .into_iter()
            .chain(target)
    }

    /// Calls `visit` with each reachable instruction's index and the state before it.
    pub(super) fn visit(&self, mut visit: impl FnMut(usize, &State)) {
        let mut info = InstructionInfoFactory::new();
        for (block, state) in self.entry_states.iter().enumerate() {
            let Some(mut state) = state.clone() else { continue };
            for index in self.block_range(block) {
                visit(index, &state);
                self.step(&mut state, &self.function.instructions[index], &mut info);
            }
        }
    }

    /// The state before one instruction. `None` where it is not reached.
    pub(super) fn state_at(&self, index: usize) -> Option<State> {
        let block = self.blocks.partition_point(|first| *first <= index).checked_sub(1)?;
        let mut state = self.entry_states.get(block)?.clone()?;
        self.pay(index - self.blocks[block] + state.price()).ok()?;
        let mut info = InstructionInfoFactory::new();
        for instruction in self.function.instructions.get(self.blocks[block]..index)? {
            self.step(&mut state, instruction, &mut info);
        }
        Some(state)
    }

    fn step(&self, state: &mut State, instruction: &Instruction, info: &mut InstructionInfoFactory) {
        match instruction.flow_control() {
            FlowControl::Call | FlowControl::IndirectCall => return self.step_call(state, instruction),
            FlowControl::Next => {}
            _ => return,
        }
        let handled = match instruction.mnemonic() {
            Mnemonic::Mov => self.step_mov(state, instruction),
            Mnemonic::Lea => {
                let address = address_of(state, instruction);
                set(state, instruction, address)
            }
            Mnemonic::Push => {
                let value = self.source(state, instruction, 0);
                step_push(state, value);
                true
            }
            Mnemonic::Pop => {
                let stack = state.register(RSP);
                let value = state.slot(stack);
                state.set_register(RSP, offset(stack, 8));
                set(state, instruction, value)
            }
            Mnemonic::Add | Mnemonic::Sub | Mnemonic::And => step_arithmetic(state, instruction),
            Mnemonic::Xor => {
                let same = instruction.op1_kind() == OpKind::Register
                    && instruction.op0_register() == instruction.op1_register()
                    && instruction.op0_register().size() >= 4;
                same && set(state, instruction, Value::Constant(0))
            }
            Mnemonic::Leave => {
                let frame = state.register(RBP);
                let saved = state.slot(frame);
                state.set_register(RBP, saved);
                state.set_register(RSP, offset(frame, 8));
                true
            }
            _ => false,
        };
        if !handled {
            forget_written(state, instruction, info);
        }
    }

    fn step_mov(&self, state: &mut State, instruction: &Instruction) -> bool {
        let value = self.source(state, instruction, 1);
        match instruction.op0_kind() {
            OpKind::Register => set(state, instruction, value),
            OpKind::Memory => {
                let address = address_of(state, instruction);
                state.set_slot(address, value, instruction.memory_size().size());
                true
            }
            _ => false,
        }
    }

    fn step_call(&self, state: &mut State, instruction: &Instruction) {
        let effect = (self.calls)(instruction, self.call_target(state, instruction), state);
        for register in CALLER_SAVED {
            state.set_register(register, Value::Unknown);
        }
        state.set_register(RAX, effect.result);
        if let Some((address, value)) = effect.stored {
            state.set_slot(address, value, 8);
        }
    }

    /// Where a call leads, as far as is known.
    pub(super) fn call_target(&self, state: &State, instruction: &Instruction) -> Option<u64> {
        if instruction.op0_kind() == OpKind::NearBranch64 {
            return Some(instruction.near_branch64());
        }
        match self.source(state, instruction, 0) {
            Value::Constant(target) => Some(target),
            _ => None,
        }
    }

    /// Value of a 64-bit operand, or of an immediate.
    fn source(&self, state: &State, instruction: &Instruction, operand: u32) -> Value {
        match instruction.op_kind(operand) {
            OpKind::Register => {
                let register = instruction.op_register(operand);
                match (register.size(), number(register).map(|number| state.register(number))) {
                    (8, Some(value)) => value,
                    (4, Some(Value::Constant(value))) => Value::Constant(value & 0xffff_ffff),
                    _ => Value::Unknown,
                }
            }
            OpKind::Memory if instruction.memory_size().size() == 8 => match address_of(state, instruction) {
                Value::Constant(address) => self
                    .image
                    .relocated_word(address)
                    .map_or(Value::Unknown, Value::Constant),
                address => state.slot(address),
            },
            OpKind::Immediate8
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32
            | OpKind::Immediate32to64
            | OpKind::Immediate64 => Value::Constant(instruction.immediate(operand)),
            _ => Value::Unknown,
        }
    }
}

fn blocks(function: &Function) -> Vec<usize> {
    let mut first = vec![0];
    first.extend(
        function
            .jump_targets
            .iter()
            .filter_map(|target| function.index(*target)),
    );
    let ends = function.instructions.iter().enumerate().filter(|(_, instruction)| {
        !matches!(
            instruction.flow_control(),
            FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall
        )
    });
    first.extend(ends.map(|(index, _)| index + 1));
    first.sort_unstable();
    first.dedup();
    first.retain(|index| *index < function.instructions.len());
    first
}

/// The address that the memory operand names.
pub(super) fn address_of(state: &State, instruction: &Instruction) -> Value {
    if instruction.is_ip_rel_memory_operand() {
        return Value::Constant(instruction.ip_rel_memory_address());
    }
    if instruction.memory_index() != Register::None || instruction.segment_prefix() != Register::None {
        return Value::Unknown;
    }
    let Some(base) = number(instruction.memory_base()) else {
        return Value::Unknown;
    };
    offset(state.register(base), instruction.memory_displacement64() as i64)
}

fn offset(value: Value, by: i64) -> Value {
    match value {
        Value::Stack { base, offset } => Value::Stack {
            base,
            offset: offset.wrapping_add(by),
        },
        Value::Constant(constant) => Value::Constant(constant.wrapping_add_signed(by)),
        same if by == 0 => same,
        _ => Value::Unknown,
    }
}

/// Sets the first operand's register; false where it is none of 32 or 64 bits.
fn set(state: &mut State, instruction: &Instruction, value: Value) -> bool {
    let register = instruction.op0_register();
    let Some(number) = number(register) else { return false };
    let value = match (register.size(), value) {
        (8, value) => value,
        (4, Value::Constant(constant)) => Value::Constant(constant & 0xffff_ffff),
        _ => Value::Unknown,
    };
    state.set_register(number, value);
    true
}

fn step_push(state: &mut State, value: Value) {
    let stack = offset(state.register(RSP), -8);
    state.set_register(RSP, stack);
    state.set_slot(stack, value, 8);
}

/// `add`, `sub` and `and` with an immediate, on a register whose value is an address.
fn step_arithmetic(state: &mut State, instruction: &Instruction) -> bool {
    let immediate = matches!(instruction.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64);
    let register = instruction.op0_register();
    let Some(number) = number(register).filter(|_| immediate && register.size() == 8) else {
        return false;
    };
    let by = instruction.immediate(1) as i64;
    let value = match (instruction.mnemonic(), state.register(number)) {
        (Mnemonic::And, Value::Stack { .. }) if number == RSP => Value::Stack {
            base: instruction.ip(),
            offset: 0,
        },
        (Mnemonic::Add, value) => offset(value, by),
        (Mnemonic::Sub, value) => offset(value, by.wrapping_neg()),
        _ => Value::Unknown,
    };
    state.set_register(number, value);
    true
}

/// Any other instruction: what it writes is unknown afterwards.
fn forget_written(state: &mut State, instruction: &Instruction, info: &mut InstructionInfoFactory) {
    let writes = |access: OpAccess| {
        matches!(
            access,
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        )
    };
    let info = info.info(instruction);
    for used in info.used_registers().iter().filter(|used| writes(used.access())) {
        if let Some(number) = number(used.register()) {
            state.set_register(number, Value::Unknown);
        }
    }
    if info.used_memory().iter().any(|used| writes(used.access())) {
        let address = address_of(state, instruction);
        state.set_slot(address, Value::Unknown, instruction.memory_size().size());
    }
}
