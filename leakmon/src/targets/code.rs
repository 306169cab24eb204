//! x86-64 machine code of one function, and what the kernel makes of a probe on each instruction.
//!
//! In: an image and a function's range. Out: its instructions, who jumps where, and sites. It follows no values: `flow` does.

use super::{image::Image, plan::ProbeSite};
use iced_x86::{Code, Decoder, DecoderOptions, FastFormatter, FlowControl, Instruction, Mnemonic, OpKind, Register};
use leakmon_ebpf::abi::{Condition, Role};
use std::{collections::BTreeSet, ops::Range};

/// Functions larger than this are not decoded. The largest seen in real programs is below 200 KiB.
const FUNCTION_BYTES_MAX: u64 = 4 << 20;

/// A decoded function.
#[derive(Debug, Default)]
pub(super) struct Function {
    /// By ascending address, from the function's start: so each is on an instruction boundary.
    pub(super) instructions: Vec<Instruction>,
    /// Addresses that direct jumps of this function lead to.
    pub(super) jump_targets: BTreeSet<u64>,
}

impl Function {
    /// Decodes the function around `address`, as `.eh_frame` delimits it.
    pub(super) fn around(image: &Image<'_>, address: u64) -> Option<Self> {
        Self::decode(image, image.function(address)?)
    }

    fn decode(image: &Image<'_>, range: Range<u64>) -> Option<Self> {
        if range.end.checked_sub(range.start)? > FUNCTION_BYTES_MAX || !image.is_code(range.start) {
            return None;
        }
        Some(Self::from_bytes(image.bytes(range.clone())?, range.start))
    }

    /// Decodes `bytes` as code at `address`.
    pub(super) fn from_bytes(bytes: &[u8], address: u64) -> Self {
        let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
        let mut function = Self::default();
        while decoder.can_decode() {
            let instruction = decoder.decode();
            // Data in code: what follows may be out of step.
            if instruction.is_invalid() {
                break;
            }
            if let Some(target) = jump_target(&instruction) {
                function.jump_targets.insert(target);
            }
            function.instructions.push(instruction);
        }
        function
    }

    /// Index of the instruction that begins at `address`.
    pub(super) fn index(&self, address: u64) -> Option<usize> {
        self.instructions.binary_search_by_key(&address, Instruction::ip).ok()
    }
}

/// Where a direct `jmp` or `jcc` leads.
pub(super) fn jump_target(instruction: &Instruction) -> Option<u64> {
    let jump = matches!(
        instruction.flow_control(),
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
    );
    branch_target(instruction).filter(|_| jump)
}

/// Where a direct `call`, `jmp` or `jcc` leads.
pub(super) fn branch_target(instruction: &Instruction) -> Option<u64> {
    (instruction.op0_kind() == OpKind::NearBranch64).then(|| instruction.near_branch64())
}

/// Whether execution can go on behind the instruction.
pub(super) fn falls_through(instruction: &Instruction) -> bool {
    !matches!(
        instruction.flow_control(),
        FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Return
            | FlowControl::Exception
            | FlowControl::Interrupt
    )
}

/// Number of a general-purpose register (any width) in machine encoding.
pub(super) fn number(register: Register) -> Option<u8> {
    register.is_gpr().then(|| register.full_register().number() as u8)
}

/// Whether the kernel emulates the instruction under a uprobe: no single step, ten times cheaper.
///
/// Source: Linux `arch/x86/kernel/uprobes.c`, `push_setup_xol_ops` and `branch_setup_xol_ops`: `push` of a register, without
/// prefix other than REX.B; `call rel32`, `jmp`, `jcc`, and the one-byte `nop`, without prefix 66. Any other prefix is refused
/// here as well: the compiler has no use for it.
pub(super) fn is_cheap(bytes: &[u8]) -> bool {
    matches!(
        *bytes,
        [0x50..=0x57]
            | [0x41, 0x50..=0x57]
            | [0xe8 | 0xe9, _, _, _, _]
            | [0xeb | 0x70..=0x7f, _]
            | [0x0f, 0x80..=0x8f, _, _, _, _]
            | [0x90]
    )
}

/// Whether the kernel accepts a probe there at all, and stepping it over is harmless.
///
/// Source: Linux `arch/x86/kernel/uprobes.c`, `good_insns_64` and `is_prefix_bad` (segment overrides and `lock` are refused).
pub(super) fn is_probeable(instruction: &Instruction) -> bool {
    instruction.segment_prefix() == Register::None
        && !instruction.has_lock_prefix()
        && !instruction.is_privileged()
        && !matches!(
            instruction.flow_control(),
            FlowControl::Exception | FlowControl::Interrupt | FlowControl::XbeginXabortXend
        )
}

/// `jcc` that branches on the zero flag alone.
pub(super) fn is_zero_branch(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Je | Mnemonic::Jne)
}

/// `test reg, reg` or `cmp reg, 0` on a 64-bit register: the zero flag says whether it is null.
pub(super) fn null_tested(instruction: &Instruction) -> Option<Register> {
    let register = instruction.op0_register();
    match instruction.code() {
        Code::Test_rm64_r64 if instruction.op1_register() == register && register != Register::None => Some(register),
        Code::Cmp_rm64_imm8 | Code::Cmp_rm64_imm32 if instruction.op0_kind() == OpKind::Register => {
            (instruction.immediate(1) == 0).then_some(register)
        }
        _ => None,
    }
}

/// Makes the site of an instruction. `None` where its bytes are not in the file.
pub(super) fn site(
    image: &Image<'_>,
    instruction: &Instruction,
    role: Role,
    register: u8,
    condition: Condition,
) -> Option<ProbeSite> {
    let address = instruction.ip();
    let bytes = image
        .bytes(address..address.checked_add(instruction.len() as u64)?)?
        .to_vec();
    let mut text = String::new();
    FastFormatter::new().format(instruction, &mut text);
    Some(ProbeSite {
        role,
        file_offset: image.file_offset(address)?,
        address,
        register,
        condition,
        task_type: None,
        cheap: is_cheap(&bytes),
        bytes,
        instruction: text,
    })
}
