//! x86-64 machine code of one function, and what the kernel makes of a probe on each instruction.
//!
//! In: an image and a function's range. Out: its instructions, who jumps where, and sites. It follows no values: `flow` does.

use super::{image::Image, plan::ProbeSite};
use iced_x86::{Code, Decoder, DecoderOptions, FastFormatter, FlowControl, Instruction, Mnemonic, OpKind, Register};
use leakmon_ebpf::abi::{Condition, Role};
use std::{collections::BTreeSet, ops::Range};

/// Functions larger than this are not decoded. The largest seen in real programs is below 200 KiB.
const FUNCTION_BYTES_MAX: u64 = 1 << 20;

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
        let function = Self::from_bytes(image.bytes(range.clone())?, range.start);
        image.pay(function.instructions.len()).then_some(function)
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

    /// Functions whose address the code names, by calling them or otherwise; not itself.
    pub(super) fn named(&self, image: &Image<'_>) -> Vec<u64> {
        let own = self.instructions.first().map(Instruction::ip);
        let mut found = BTreeSet::new();
        for instruction in &self.instructions {
            let target = branch_target(instruction).or_else(|| {
                let address = instruction
                    .is_ip_rel_memory_operand()
                    .then(|| instruction.ip_rel_memory_address())
                    .or_else(|| absolute(instruction))?;
                image.relocated_word(address).or(Some(address))
            });
            let other = target.and_then(|target| image.function(target).filter(|function| function.start == target));
            found.extend(other.map(|other| other.start).filter(|other| Some(*other) != own));
        }
        found.into_iter().collect()
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

/// Whether the instruction around `place` names `address`: as a branch target, relative to itself, or in an immediate.
pub(super) fn names(image: &Image<'_>, place: u64, address: u64) -> bool {
    let Some(function) = Function::around(image, place) else {
        return false;
    };
    let index = function
        .instructions
        .partition_point(|instruction| instruction.ip() <= place);
    let around = index.checked_sub(1).and_then(|index| function.instructions.get(index));
    around.is_some_and(|instruction| {
        let relative = instruction.is_ip_rel_memory_operand() && instruction.ip_rel_memory_address() == address;
        relative || branch_target(instruction) == Some(address) || absolute(instruction) == Some(address)
    })
}

/// The address that an immediate of 32 bits can be, as `mov esi, VTABLE` and `mov qword ptr [rsp], VTABLE` of position-dependent
/// code.
pub(super) fn absolute(instruction: &Instruction) -> Option<u64> {
    let wide = |operand: &u32| {
        matches!(
            instruction.op_kind(*operand),
            OpKind::Immediate32 | OpKind::Immediate32to64
        )
    };
    (0..instruction.op_count())
        .find(wide)
        .map(|operand| instruction.immediate(operand))
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
    if !is_probeable(instruction) {
        return None;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cheap_is_what_the_kernel_emulates() {
        for (bytes, cheap) in [
            (&[0x55][..], true),                // push rbp
            (&[0x41, 0x57], true),              // push r15
            (&[0x48, 0x55], false),             // push rbp with REX.W
            (&[0x66, 0x55], false),             // push bp
            (&[0x68, 1, 0, 0, 0], false),       // push 1
            (&[0xe8, 0, 0, 0, 0], true),        // call
            (&[0xe9, 0, 0, 0, 0], true),        // jmp
            (&[0xeb, 0], true),                 // jmp short
            (&[0x74, 0], true),                 // je short
            (&[0x0f, 0x85, 0, 0, 0, 0], true),  // jne
            (&[0x66, 0xe9, 0, 0, 0, 0], false), // a prefix
            (&[0x2e, 0x74, 0], false),          // branch hint
            (&[0xe3, 0], false),                // jrcxz
            (&[0x90], true),                    // nop
            (&[0x66, 0x90], false),             // xchg ax, ax
            (&[0xff, 0xd0], false),             // call rax
            (&[0xff, 0x15, 0, 0, 0, 0], false), // call [rip]
            (&[0xc3], false),                   // ret
            (&[0x48, 0x89, 0xc7], false),       // mov rdi, rax
            (&[], false),
        ] {
            assert_eq!(is_cheap(bytes), cheap, "{bytes:x?}");
        }
    }

    #[test]
    fn null_tests_are_recognised_on_whole_registers_only() {
        for (bytes, tested) in [
            (&[0x48, 0x85, 0xc0][..], Some(Register::RAX)),   // test rax, rax
            (&[0x4d, 0x85, 0xf6], Some(Register::R14)),       // test r14, r14
            (&[0x48, 0x83, 0xfb, 0x00], Some(Register::RBX)), // cmp rbx, 0
            (&[0x48, 0x83, 0xfb, 0x01], None),                // cmp rbx, 1
            (&[0x85, 0xc0], None),                            // test eax, eax
            (&[0x48, 0x85, 0xc8], None),                      // test rax, rcx
        ] {
            let function = Function::from_bytes(bytes, 0x1000);
            assert_eq!(null_tested(&function.instructions[0]), tested, "{bytes:x?}");
        }
    }

    #[test]
    fn a_function_at_the_bound_is_decoded_and_one_above_is_not() {
        for (length, decoded) in [(FUNCTION_BYTES_MAX, true), (FUNCTION_BYTES_MAX + 1, false)] {
            let code = vec![0x90; length as usize];
            let image = Image::of_code(0x1000, &code, &[]);
            assert_eq!(Function::around(&image, 0x1000).is_some(), decoded);
        }
    }

    #[test]
    fn work_beyond_what_is_paid_for_is_not_done() {
        let code = [0x90; 8];
        let image = Image::of_code(0x1000, &code, &[]).with_effort(9);
        assert!(Function::around(&image, 0x1003).is_some());
        assert!(image.is_searched());
        assert!(Function::around(&image, 0x1003).is_none());
        assert!(!image.is_searched());
    }
}
