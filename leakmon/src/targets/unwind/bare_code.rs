//! Rules for code that no entry covers, reckoned from the code itself: musl is built without unwind information, and so is
//! assembly.
//!
//! In: the bytes of a gap between entries. Out: ranges whose rule is known, so that a walk gets through them. It counts what
//! pushes and pops do to the stack pointer. Where that can't be known (another register is moved into it, ways disagree, a `ret`
//! that does not find its return address) there is no range, and the walk tries the frame pointer as before.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use leakmon_ebpf::rows::{FRAME_POINTER_LOST, FRAME_POINTER_SAME, kind};

use super::frame_entries::{Range, Rule};

/// Passes over a gap: each learns what the jumps back of the one before told. In musl and glibc a fourth finds nothing.
const PASSES_MAX: usize = 4;
/// What compilers align functions to.
const FUNCTION_ALIGNMENT: u64 = 16;
/// A frame is smaller than this; greater ones are a miscount.
const FRAME_BYTES_MAX: u32 = 1 << 18;

/// A stretch of code without entries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gap<'a> {
    /// Address of its first byte.
    pub(super) address: u64,
    pub(super) bytes: &'a [u8],
    /// Whether an entry ends where it begins, so that a function begins here.
    pub(super) follows_function: bool,
    /// Where the program begins, be it here or not.
    pub(super) entry_point: Option<u64>,
    /// What code elsewhere calls, be it here or not.
    pub(super) called: &'a BTreeSet<u64>,
}

/// What code at an address seems to call within `places`, which are sorted. It is not decoded: a chance match makes a function of
/// the middle of another one, whose `ret` then does not find its return address.
pub(super) fn calls_into(bytes: &[u8], address: u64, places: &[std::ops::Range<u64>]) -> BTreeSet<u64> {
    const CALL: u8 = 0xe8;
    let target = |(at, window): (usize, &[u8])| {
        let [CALL, distance @ ..] = *window.first_chunk::<5>()? else {
            return None;
        };
        let behind = address.wrapping_add(at as u64 + 5);
        let target = behind.wrapping_add_signed(i64::from(i32::from_le_bytes(distance)));
        let place = places.partition_point(|place| place.start <= target).checked_sub(1)?;
        places[place].contains(&target).then_some(target)
    };
    let mut targets = BTreeSet::new();
    // One by one: many may be the same.
    for target in bytes.windows(5).enumerate().filter_map(target) {
        targets.insert(target);
    }
    targets
}

/// How far a function has moved the stack pointer, and where it saved the frame pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    /// Bytes from the stack pointer to the CFA.
    depth: u32,
    /// As in a row.
    frame_pointer: u8,
}

impl Frame {
    /// Only the return address is there.
    const AT_ENTRY: Self = Self {
        depth: 8,
        frame_pointer: FRAME_POINTER_SAME,
    };
    /// In code that nobody called: it ends a walk.
    const ROOT: Rule = Rule {
        kind: kind::END,
        frame_pointer: FRAME_POINTER_SAME,
        offset: 0,
    };

    fn rule(self, instruction: &Instruction, is_behind_system_call: bool) -> Option<Rule> {
        // What has taken its return address off the stack and calls has no caller: a thread's first function, behind the system
        // call that made it. `sigsetjmp` takes it off to put it back later.
        if self.depth < 8 {
            return (is_behind_system_call && is_call(instruction)).then_some(Self::ROOT);
        }
        (self.depth.is_multiple_of(8)).then_some(Rule {
            kind: kind::STACK_POINTER,
            frame_pointer: self.frame_pointer,
            offset: u16::try_from(self.depth / 8).ok()?,
        })
    }
}

/// The ranges of a gap, in ascending order.
pub(super) fn reckon(gap: Gap<'_>) -> Vec<Range> {
    let code = Code::decode(gap);
    let mut known = BTreeMap::new();
    let mut ranges = Vec::new();
    for _ in 0..PASSES_MAX {
        let before = known.clone();
        ranges = Pass::over(&code, &mut known);
        if known == before {
            break;
        }
    }
    ranges
}

/// The instructions of a gap, and what they say of each other.
struct Code {
    instructions: Vec<Instruction>,
    /// Functions begin here: they are called or their address is taken.
    starts: BTreeSet<u64>,
    /// Direct jumps lead here.
    jumped_to: BTreeSet<u64>,
    /// Where the program begins.
    entry_point: Option<u64>,
}

impl Code {
    fn decode(gap: Gap<'_>) -> Self {
        let mut decoder = Decoder::with_ip(64, gap.bytes, gap.address, DecoderOptions::NONE);
        let is_here = |called: &&u64| **called - gap.address < gap.bytes.len() as u64;
        let mut code = Self {
            instructions: Vec::new(),
            starts: gap.called.range(gap.address..).take_while(is_here).copied().collect(),
            jumped_to: BTreeSet::new(),
            entry_point: gap.entry_point,
        };
        while decoder.can_decode() {
            let instruction = decoder.decode();
            if is_call(&instruction) && is_direct(&instruction) {
                code.starts.insert(instruction.near_branch_target());
            } else if is_direct(&instruction) {
                code.jumped_to.insert(instruction.near_branch_target());
            } else if instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand() {
                code.starts.insert(instruction.ip_rel_memory_address());
            }
            code.instructions.push(instruction);
        }
        code.starts.retain(|start| !code.jumped_to.contains(start));
        if gap.follows_function {
            let first = code.instructions.iter().find(|instruction| !is_padding(instruction));
            code.starts.extend(first.map(Instruction::ip));
        }
        code
    }
}

/// One pass in ascending order of addresses.
struct Pass<'a> {
    code: &'a Code,
    /// Frames at the targets of jumps; `None` where jumps disagree.
    known: &'a mut BTreeMap<u64, Option<Frame>>,
    ranges: Vec<Range>,
    /// Of `ranges`, those of the functions that are done.
    settled: usize,
    /// Before the instruction; `None` where it is not known.
    frame: Option<Frame>,
    /// Whether the function jumps by a table: then code that no jump leads to may be a part of it.
    has_table: bool,
    /// Whether a `ret` did not find its return address, or two ways to a place disagree: then it is no function, or more than one.
    is_wrong: bool,
    /// Whether the program begins with this function: then it has no caller.
    is_root: bool,
    /// Whether the function has made a system call.
    has_system_call: bool,
}

impl<'a> Pass<'a> {
    fn over(code: &'a Code, known: &'a mut BTreeMap<u64, Option<Frame>>) -> Vec<Range> {
        let mut pass = Self {
            code,
            known,
            ranges: Vec::new(),
            settled: 0,
            frame: None,
            has_table: false,
            is_wrong: false,
            is_root: false,
            has_system_call: false,
        };
        let mut info = InstructionInfoFactory::new();
        let mut last = None;
        let mut is_padded = false;
        for instruction in &code.instructions {
            pass.arrive(instruction, last, is_padded);
            pass.cover(instruction);
            pass.execute(instruction, &mut info);
            is_padded = is_padding(instruction);
            if !is_padded {
                last = Some(instruction);
            }
        }
        pass.begin_function();
        pass.ranges
    }

    /// Finds the frame before an instruction, from jumps to it and from what comes before it, but for padding.
    fn arrive(&mut self, instruction: &Instruction, last: Option<&Instruction>, is_padded: bool) {
        if is_nothing(instruction) {
            self.frame = None;
            return;
        }
        let address = instruction.ip();
        // Within a function only what is jumped to is aligned: the call did not return.
        let is_behind_last_call = is_padded
            && last.is_some_and(is_call)
            && address.is_multiple_of(FUNCTION_ALIGNMENT)
            && !is_padding(instruction)
            && !self.code.jumped_to.contains(&address);
        let is_entry_point = self.code.entry_point == Some(address);
        if is_entry_point || self.code.starts.contains(&address) || is_behind_last_call {
            self.begin_function();
            self.is_root = is_entry_point;
            self.frame = (!self.is_root).then_some(Frame::AT_ENTRY);
            return;
        }
        let falls_through = last.is_none_or(|last| !ends(last));
        self.is_root &= falls_through;
        if let Some(jumped) = self.known.get(&address) {
            let is_sure = !falls_through || self.frame.is_none() || last.is_some_and(is_call);
            // A call before it may be one that does not return.
            self.frame = if is_sure || self.frame == *jumped {
                *jumped
            } else {
                None
            };
        } else if !falls_through {
            let is_next = !self.has_table
                && address.is_multiple_of(FUNCTION_ALIGNMENT)
                && !is_padding(instruction)
                && !self.code.jumped_to.contains(&address);
            self.frame = None;
            if is_next {
                self.begin_function();
                self.frame = Some(Frame::AT_ENTRY);
            }
        }
    }

    /// Ends the function so far: what was reckoned of it is kept or not.
    fn begin_function(&mut self) {
        if self.is_wrong {
            self.ranges.truncate(self.settled);
        }
        self.settled = self.ranges.len();
        (self.has_table, self.is_wrong, self.is_root) = (false, false, false);
        self.has_system_call = false;
    }

    /// Says how to leave the frame from this instruction.
    fn cover(&mut self, instruction: &Instruction) {
        let rule = match self.is_root {
            true => Some(Frame::ROOT),
            false => self
                .frame
                .and_then(|frame| frame.rule(instruction, self.has_system_call)),
        };
        if let Some(rule) = rule {
            self.add(instruction, rule);
        }
    }

    fn add(&mut self, instruction: &Instruction, rule: Rule) {
        let len = instruction.len() as u32;
        match self.ranges.get_mut(self.settled..).and_then(<[Range]>::last_mut) {
            Some(last) if last.rule == rule && last.start + u64::from(last.len) == instruction.ip() => last.len += len,
            _ => self.ranges.push(Range {
                start: instruction.ip(),
                len,
                rule,
            }),
        }
    }

    /// Moves on behind the instruction.
    fn execute(&mut self, instruction: &Instruction, info: &mut InstructionInfoFactory) {
        let flow = instruction.flow_control();
        self.has_system_call |= instruction.mnemonic() == Mnemonic::Syscall;
        let Some(frame) = self.frame else {
            self.has_table |= flow == FlowControl::IndirectBranch;
            return;
        };
        if flow == FlowControl::Return {
            self.is_wrong |= frame.depth != Frame::AT_ENTRY.depth;
        } else if flow == FlowControl::IndirectBranch {
            self.has_table |= frame.depth != Frame::AT_ENTRY.depth;
        } else if is_direct(instruction) && !is_call(instruction) {
            let target = instruction.near_branch_target();
            let jumped = self.known.entry(target).or_insert(Some(frame));
            if *jumped != Some(frame) {
                *jumped = None;
                self.is_wrong = true;
            }
        }
        self.frame = match is_call(instruction) {
            true => Some(frame),
            false => behind(frame, instruction, info),
        };
    }
}

/// The frame behind an instruction that is no call; `None` where it can't be known.
fn behind(frame: Frame, instruction: &Instruction, info: &mut InstructionInfoFactory) -> Option<Frame> {
    let mut after = frame;
    let writes = |register: Register, info: &mut InstructionInfoFactory| {
        info.info(instruction).used_registers().iter().any(|used| {
            used.register().full_register() == register
                && !matches!(
                    used.access(),
                    OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
                )
        })
    };
    if writes(Register::RSP, info) {
        let down = moved_down(instruction)?;
        after.depth = u32::try_from(i64::from(frame.depth) + down).ok()?;
        if after.depth > FRAME_BYTES_MAX {
            return None;
        }
    }
    let is_rbp = instruction.op0_register() == Register::RBP;
    match instruction.mnemonic() {
        Mnemonic::Push if is_rbp && frame.frame_pointer == FRAME_POINTER_SAME => {
            after.frame_pointer = slot(after.depth);
        }
        Mnemonic::Pop
            if is_rbp && frame.frame_pointer != FRAME_POINTER_LOST && frame.frame_pointer == slot(frame.depth) =>
        {
            after.frame_pointer = FRAME_POINTER_SAME;
        }
        _ if frame.frame_pointer == FRAME_POINTER_SAME && writes(Register::RBP, info) => {
            after.frame_pointer = FRAME_POINTER_LOST;
        }
        _ => {}
    }
    Some(after)
}

/// The slot of a row for the word that the stack pointer points to.
fn slot(depth: u32) -> u8 {
    u8::try_from(depth / 8).unwrap_or(FRAME_POINTER_LOST)
}

/// How far down an instruction moves the stack pointer; `None` where that depends on what is not known here.
fn moved_down(instruction: &Instruction) -> Option<i64> {
    let is_rsp = instruction.op0_register() == Register::RSP;
    match instruction.mnemonic() {
        Mnemonic::Sub if is_rsp => immediate(instruction),
        Mnemonic::Add if is_rsp => immediate(instruction).map(|bytes| -bytes),
        Mnemonic::Lea
            if is_rsp && instruction.memory_base() == Register::RSP && instruction.memory_index() == Register::None =>
        {
            Some((instruction.memory_displacement64() as i64).wrapping_neg())
        }
        Mnemonic::Push | Mnemonic::Pushfq => Some(-i64::from(instruction.stack_pointer_increment())),
        Mnemonic::Pop | Mnemonic::Popfq if !is_rsp => Some(-i64::from(instruction.stack_pointer_increment())),
        _ => None,
    }
}

fn immediate(instruction: &Instruction) -> Option<i64> {
    let kinds = [OpKind::Immediate8to64, OpKind::Immediate32to64];
    kinds
        .contains(&instruction.op1_kind())
        .then(|| instruction.immediate(1) as i64)
}

fn is_call(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::Call | FlowControl::IndirectCall
    ) && !matches!(instruction.mnemonic(), Mnemonic::Syscall | Mnemonic::Sysenter)
}

/// Whether it is a jump or a call whose target it names.
fn is_direct(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::NearBranch64
}

/// Whether nothing follows it: it returns, jumps away or stops.
fn ends(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::Return | FlowControl::UnconditionalBranch | FlowControl::IndirectBranch | FlowControl::Exception
    ) || matches!(instruction.mnemonic(), Mnemonic::Hlt | Mnemonic::Int3)
}

/// Data between functions. Two zeros decode as an instruction that no compiler emits.
fn is_nothing(instruction: &Instruction) -> bool {
    let is_zeros = instruction.len() == 2
        && instruction.code() == iced_x86::Code::Add_rm8_r8
        && instruction.memory_base() == Register::RAX
        && instruction.op1_register() == Register::AL;
    instruction.is_invalid() || is_zeros
}

fn is_padding(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3 | Mnemonic::Fnop)
        || (instruction.mnemonic() == Mnemonic::Xchg && instruction.op0_register() == instruction.op1_register())
}
