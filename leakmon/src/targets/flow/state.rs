//! What is known of registers and stack slots at one place in a function.
//!
//! In: values as instructions set them. Out: what a register or a slot holds, and what two paths agree on. It decodes nothing.

use std::collections::BTreeMap;

/// Stack slots that are followed at once; more are forgotten.
const SLOTS_MAX: usize = 256;
/// Slots that are copied or compared in the time of following one instruction, about.
const SLOTS_PER_INSTRUCTION: usize = 4;

/// Machine encodings.
pub(in crate::targets) const RAX: u8 = 0;
pub(super) const RSP: u8 = 4;
pub(super) const RBP: u8 = 5;
pub(in crate::targets) const RSI: u8 = 6;
pub(in crate::targets) const RDI: u8 = 7;
pub(in crate::targets) const RDX: u8 = 2;
/// rax, rcx, rdx, rsi, rdi, r8–r11: a call destroys them (System V ABI, 3.2.1).
pub(super) const CALLER_SAVED: [u8; 9] = [0, 1, 2, 6, 7, 8, 9, 10, 11];

/// What is known of a 64-bit value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::targets) enum Value {
    /// Nothing.
    Unknown,
    /// This number, or this address in the image.
    Constant(u64),
    /// An address in the frame: `base` is 0 for the frame at entry, else the address of the instruction that aligned rsp, or
    /// at which ways with another rsp meet.
    Stack { base: u64, offset: i64 },
    /// The function's first argument.
    Argument,
    /// What the call at this address returned: memory that the finder asked to follow.
    Allocation(u64),
}

/// Registers and stack slots at one point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::targets) struct State {
    registers: [Value; 16],
    slots: BTreeMap<(u64, i64), Value>,
}

impl State {
    pub(super) fn at_entry() -> Self {
        let mut state = Self {
            registers: [Value::Unknown; 16],
            slots: BTreeMap::new(),
        };
        state.registers[usize::from(RSP)] = Value::Stack { base: 0, offset: 0 };
        state.registers[usize::from(RDI)] = Value::Argument;
        state
    }

    /// Only the frame survives: for code that an indirect jump leads to.
    pub(super) fn frame_only(&self) -> Self {
        let mut state = Self {
            registers: [Value::Unknown; 16],
            slots: BTreeMap::new(),
        };
        for register in [RSP, RBP] {
            if let value @ Value::Stack { .. } = self.register(register) {
                state.registers[usize::from(register)] = value;
            }
        }
        state
    }

    /// What it costs to copy or compare this state, in instructions.
    pub(super) fn price(&self) -> usize {
        self.slots.len() / SLOTS_PER_INSTRUCTION
    }

    pub(in crate::targets) fn register(&self, register: u8) -> Value {
        self.registers
            .get(usize::from(register))
            .copied()
            .unwrap_or(Value::Unknown)
    }

    pub(in crate::targets) fn set_register(&mut self, register: u8, value: Value) {
        if let Some(place) = self.registers.get_mut(usize::from(register)) {
            *place = value;
        }
    }

    /// A register that holds `value`, callee-saved ones last.
    pub(in crate::targets) fn register_with(&self, value: Value) -> Option<u8> {
        (0..16).find(|register| self.register(*register) == value)
    }

    pub(in crate::targets) fn slot(&self, address: Value) -> Value {
        match address {
            Value::Stack { base, offset } => self.slots.get(&(base, offset)).copied().unwrap_or(Value::Unknown),
            _ => Value::Unknown,
        }
    }

    pub(in crate::targets) fn set_slot(&mut self, address: Value, value: Value, length: usize) {
        let Value::Stack { base, offset } = address else { return };
        let end = offset.saturating_add(i64::try_from(length.max(1)).unwrap_or(i64::MAX));
        let touched: Vec<_> = self
            .slots
            .range((base, offset.saturating_sub(7))..(base, end))
            .map(|(key, _)| *key)
            .collect();
        for key in touched {
            self.slots.remove(&key);
        }
        if length == 8 && value != Value::Unknown && self.slots.len() < SLOTS_MAX {
            self.slots.insert((base, offset), value);
        }
    }

    /// Keeps what both agree on; says whether anything was lost.
    pub(super) fn meet(&mut self, other: &Self) -> bool {
        let mut changed = false;
        for (mine, theirs) in self.registers.iter_mut().zip(&other.registers) {
            if *mine != Value::Unknown && mine != theirs {
                *mine = Value::Unknown;
                changed = true;
            }
        }
        let before = self.slots.len();
        self.slots.retain(|key, value| other.slots.get(key) == Some(value));
        changed || self.slots.len() != before
    }
}
