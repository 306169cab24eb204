//! The rules of x86-64: one row of call frame information to one rule of the table.
//!
//! In: a row that `gimli` evaluated. Out: a [`Rule`], in the kinds of [`leakmon_ebpf::rows::kind`]. Another
//! architecture is another file with the same function, and its own kinds.

use gimli::{CfaRule, EhFrame, EndianSlice, LittleEndian, RegisterRule, UnwindTableRow, X86_64};
use leakmon_ebpf::rows::{FRAME_POINTER_LOST, FRAME_POINTER_SAME, kind};

use super::UnwindStats;
use super::frame_entries::{Rule, Storage};

/// `DW_OP_breg7 160; DW_OP_deref`: CFA = the rsp saved in a signal frame's context (glibc,
/// `sysdeps/unix/sysv/linux/x86_64/libc_sigaction.c`; rsp is 40 bytes above the rbp of
/// [`leakmon_ebpf::rows::SIGNAL_CONTEXT_OFFSET`]).
const SIGNAL_CFA: [u8; 4] = [0x77, 0xa0, 0x01, 0x06];

/// The rule of one row. Total: what can't be expressed is [`kind::UNSUPPORTED`], counted by its cause.
pub(super) fn rule_for_row(
    row: &UnwindTableRow<usize, Storage>,
    section: &EhFrame<EndianSlice<'_, LittleEndian>>,
    is_signal: bool,
    stats: &mut UnwindStats,
) -> Rule {
    let (kind, offset) = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            let kind = match *register {
                X86_64::RSP => kind::STACK_POINTER,
                X86_64::RBP => kind::FRAME_POINTER,
                _ => {
                    stats.unsupported_register += 1;
                    return Rule::UNSUPPORTED;
                }
            };
            match u16::try_from(*offset / 8) {
                Ok(words) if *offset >= 0 && *offset % 8 == 0 => (kind, words),
                _ => {
                    stats.unsupported_offset += 1;
                    return Rule::UNSUPPORTED;
                }
            }
        }
        CfaRule::Expression(expression) => match expression.get(section) {
            Ok(expression) if is_signal && expression.0.slice() == SIGNAL_CFA => {
                return Rule {
                    kind: kind::SIGNAL,
                    frame_pointer: FRAME_POINTER_SAME,
                    offset: 0,
                };
            }
            Ok(expression) if let Some(boundary) = linkage_boundary(expression.0.slice()) => {
                (kind::LINKAGE, u16::from(boundary))
            }
            _ => {
                stats.unsupported_expression += 1;
                return Rule::UNSUPPORTED;
            }
        },
    };
    match row.register(X86_64::RA) {
        RegisterRule::Offset(-8) => {}
        RegisterRule::Undefined => {
            return Rule {
                kind: kind::END,
                frame_pointer: FRAME_POINTER_SAME,
                offset: 0,
            };
        }
        _ => {
            stats.unsupported_return += 1;
            return Rule::UNSUPPORTED;
        }
    }
    let frame_pointer = frame_pointer_slot(&row.register(X86_64::RBP));
    stats.frame_pointer_lost += usize::from(frame_pointer == FRAME_POINTER_LOST);
    Rule {
        kind,
        frame_pointer,
        offset,
    }
}

/// Where the caller's rbp is. A register without a rule is the callee's to preserve (psABI, 3.2.1), and `gimli` gives
/// it as undefined.
fn frame_pointer_slot(rule: &RegisterRule<usize>) -> u8 {
    match rule {
        RegisterRule::Undefined | RegisterRule::SameValue => FRAME_POINTER_SAME,
        RegisterRule::Offset(offset) if *offset < 0 && *offset % 8 == 0 => {
            match u8::try_from(offset.unsigned_abs() / 8) {
                Ok(slot) if slot != FRAME_POINTER_LOST => slot,
                _ => FRAME_POINTER_LOST,
            }
        }
        _ => FRAME_POINTER_LOST,
    }
}

/// The linker's expression for a procedure linkage table, and from which byte of an entry on its `push` has been
/// executed: `breg7 8; breg16 0; lit15; and; litN; ge; lit3; shl; plus`.
fn linkage_boundary(expression: &[u8]) -> Option<u8> {
    const LIT0: u8 = 0x30;
    match expression {
        [
            0x77,
            8,
            0x80,
            0,
            0x3f,
            0x1a,
            literal @ LIT0..=0x3f,
            0x2a,
            0x33,
            0x24,
            0x22,
        ] => Some(literal - LIT0),
        _ => None,
    }
}
