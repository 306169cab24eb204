//! Where a task is born: the branch after the allocation of its memory, or another cheap instruction close behind it.
//!
//! In: the vtables, and the functions that take their addresses. Out: one birth site for each place where a vtable is put into
//! new memory, or why there is none. Source of the code's form: `Cell::new` in tokio's `runtime/task/core.rs`, which is inlined
//! or not as the profile wants: it builds the cell on the stack, allocates, and moves it there, or builds it in place.

use super::{
    super::{
        code::{self, Function},
        flow::{CallEffect, Flow, OPAQUE, RAX, RDI, RDX, RSI, State, Value, address_of},
        image::Image,
        plan::ProbeSite,
        references::references,
    },
    vtables::{Shape, Vtable},
};
use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, UsedRegister};
use leakmon_ebpf::abi::{Condition, Role};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
};

/// Alignment of `Cell`: that of its fields, and a cache line's or two since 1.29 (`runtime/task/core.rs`); futures may ask more.
const ALIGNMENTS: std::ops::RangeInclusive<u64> = 8..=4096;
/// What a cell's size is rounded up to where the alignment does not show.
const ALIGNMENTS_USUAL: [u64; 6] = [8, 16, 32, 64, 128, 256];
/// What flags of jemalloc's `mallocx` that look like an alignment mean: they are its logarithm (`MALLOCX_LG_ALIGN`).
const FLAGS_8_ALIGNMENT: u64 = 1 << 8;
/// A cell is smaller than this: tokio boxes futures that are larger than 16 KiB, in its older versions only those of debug builds
/// (`util/trace.rs`, `BOX_FUTURE_THRESHOLD`).
const CELL_BYTES_MAX: u64 = 1 << 30;
/// Instructions from an allocation to its site.
const SITE_DISTANCE_MAX: usize = 64;
/// A function that only returns a vtable's address has fewer instructions than this.
const ACCESSOR_INSTRUCTIONS_MAX: usize = 12;

/// A birth site of one vtable.
#[derive(Debug)]
pub(super) struct Birth {
    /// Address of the vtable.
    pub(super) vtable: u64,
    /// Where; or why not.
    pub(super) site: Result<ProbeSite, &'static str>,
}

/// Finds the births of all vtables. A vtable whose address no code takes has none: it is no vtable.
pub(super) fn find(image: &Image<'_>, shape: &Shape, vtables: &[Vtable]) -> Vec<Birth> {
    let sizes: BTreeMap<u64, Option<u64>> = vtables
        .iter()
        .map(|vtable| (vtable.address, vtable.trailer_offset))
        .collect();
    let addresses: Vec<u64> = sizes.keys().copied().collect();
    let trailers = sizes.values().copied().flatten().collect();
    let mut search = Search {
        image,
        shape,
        sizes,
        trailers,
        accessors: BTreeMap::new(),
    };
    let mut functions = functions_naming(image, &addresses);
    functions.retain(|start| !search.note_accessor(*start));
    let accessors: BTreeSet<u64> = search.accessors.keys().copied().collect();
    if !accessors.is_empty() {
        let pointers = image
            .words
            .iter()
            .filter(|word| accessors.contains(&word.1))
            .map(|word| word.0);
        let named: Vec<u64> = accessors.iter().copied().chain(pointers).collect();
        functions.extend(functions_naming(image, &named));
    }
    functions.iter().flat_map(|start| search.births_in(*start)).collect()
}

/// Start addresses of the functions in which one of the addresses seems to be named.
fn functions_naming(image: &Image<'_>, addresses: &[u64]) -> BTreeSet<u64> {
    let places = references(image, addresses);
    places
        .iter()
        .filter_map(|reference| image.function(reference.place))
        .map(|function| function.start)
        .collect()
}

struct Search<'a> {
    image: &'a Image<'a>,
    shape: &'a Shape,
    /// Trailer offset by vtable address, where the vtable tells it.
    sizes: BTreeMap<u64, Option<u64>>,
    /// All trailer offsets.
    trailers: BTreeSet<u64>,
    /// `raw::vtable` of an unoptimised build: function address to vtable address.
    accessors: BTreeMap<u64, u64>,
}

/// What a function does with vtables and allocations, by index of the instruction.
#[derive(Default)]
struct Deeds {
    /// A vtable's address appears: `lea`, or the call of an accessor.
    taken: Vec<(usize, u64)>,
    /// It is stored, or moved on to be stored.
    stored: Vec<(usize, u64)>,
    /// It is stored into memory that is not the stack's: register of the header, and its value.
    placed: Vec<(usize, u64, u8, Value)>,
    /// Calls that could allocate a task.
    allocations: BTreeMap<usize, Allocation>,
}

/// An allocation with known arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Allocation {
    bytes: u64,
    /// `None` where it does not show in the call.
    alignment: Option<u64>,
}

impl Allocation {
    /// Whether it is for a `Cell` whose trailer begins at this offset; without one, whether a cell could be so small.
    fn fits(self, trailer_offset: Option<u64>, shape: &Shape) -> bool {
        let Some(trailer_offset) = trailer_offset else {
            let smallest = shape.header_bytes + shape.trailer_bytes.iter().min().copied().unwrap_or_default();
            let aligned = self.alignment.is_none_or(|alignment| ALIGNMENTS.contains(&alignment));
            return aligned && (smallest..CELL_BYTES_MAX).contains(&self.bytes) && self.bytes.is_multiple_of(8);
        };
        let fits = |alignment: u64| {
            shape
                .trailer_bytes
                .iter()
                .any(|trailer| (trailer_offset + trailer).next_multiple_of(alignment) == self.bytes)
        };
        match self.alignment {
            Some(8) => fits(8) || fits(FLAGS_8_ALIGNMENT),
            Some(alignment) => ALIGNMENTS.contains(&alignment) && alignment.is_power_of_two() && fits(alignment),
            None => ALIGNMENTS_USUAL.into_iter().any(fits),
        }
    }
}

impl Search<'_> {
    /// Notes a function that only returns a vtable's address.
    fn note_accessor(&mut self, start: u64) -> bool {
        let Some(function) = Function::around(self.image, start) else {
            return false;
        };
        let Some(ret) = function
            .instructions
            .iter()
            .position(|i| i.flow_control() == FlowControl::Return)
        else {
            return false;
        };
        let plain = function.instructions[..ret]
            .iter()
            .all(|i| i.flow_control() == FlowControl::Next);
        if !plain || ret >= ACCESSOR_INSTRUCTIONS_MAX {
            return false;
        }
        let result = Flow::through(self.image, &function, &|_, _, _| OPAQUE)
            .and_then(|flow| flow.state_at(ret))
            .map(|state| state.register(RAX));
        match result {
            Some(Value::Constant(vtable)) if self.sizes.contains_key(&vtable) => {
                self.accessors.insert(start, vtable);
                true
            }
            _ => false,
        }
    }

    fn births_in(&self, start: u64) -> Vec<Birth> {
        let Some(function) = Function::around(self.image, start) else {
            return Vec::new();
        };
        let calls =
            |instruction: &Instruction, target: Option<u64>, state: &State| self.call(instruction, target, state);
        let Some(flow) = Flow::through(self.image, &function, &calls) else {
            return self.unfollowed(&function);
        };
        let deeds = self.deeds(&function, &flow);
        let vtables: BTreeSet<u64> = deeds.taken.iter().map(|(_, vtable)| *vtable).collect();
        vtables
            .into_iter()
            .flat_map(|vtable| self.births_of(vtable, &function, &flow, &deeds))
            .collect()
    }

    /// What is said of a function whose values could not be followed.
    fn unfollowed(&self, function: &Function) -> Vec<Birth> {
        let taken = function.instructions.iter().filter_map(|instruction| {
            let address = instruction
                .is_ip_rel_memory_operand()
                .then(|| instruction.ip_rel_memory_address());
            let called = code::branch_target(instruction).and_then(|target| self.accessors.get(&target).copied());
            let address = address.or_else(|| code::absolute(instruction));
            called.or(address.filter(|address| self.sizes.contains_key(address)))
        });
        let vtables: BTreeSet<u64> = taken.collect();
        let site = Err("the code around it is too intricate");
        let birth = |vtable| Birth {
            vtable,
            site: site.clone(),
        };
        vtables.into_iter().map(birth).collect()
    }

    fn call(&self, instruction: &Instruction, target: Option<u64>, state: &State) -> CallEffect {
        if let Some(vtable) = target.and_then(|target| self.accessors.get(&target)) {
            return CallEffect {
                result: Value::Constant(*vtable),
                stored: None,
            };
        }
        let Some(allocation) = allocation(state) else {
            return OPAQUE;
        };
        if !self.is_any_cell(allocation) {
            return OPAQUE;
        }
        let value = Value::Allocation(instruction.ip());
        match state.register(RDI) {
            // posix_memalign(&slot, alignment, size): the result is an error number.
            slot @ Value::Stack { .. } => CallEffect {
                result: Value::Unknown,
                stored: Some((slot, value)),
            },
            _ => CallEffect {
                result: value,
                stored: None,
            },
        }
    }

    /// Whether the allocation fits the cell of any of the task types.
    fn is_any_cell(&self, allocation: Allocation) -> bool {
        if self.trailers.is_empty() {
            return allocation.fits(None, self.shape);
        }
        let slack = self.shape.trailer_bytes.iter().max().copied().unwrap_or_default()
            + allocation.alignment.unwrap_or_default().max(FLAGS_8_ALIGNMENT);
        let smallest = allocation.bytes.saturating_sub(slack);
        self.trailers
            .range(smallest..=allocation.bytes)
            .any(|trailer| allocation.fits(Some(*trailer), self.shape))
    }

    fn deeds(&self, function: &Function, flow: &Flow<'_>) -> Deeds {
        let mut deeds = Deeds::default();
        flow.visit(|index, state| {
            let instruction = &function.instructions[index];
            match (instruction.flow_control(), instruction.mnemonic()) {
                (FlowControl::Call | FlowControl::IndirectCall, _) => {
                    let target = flow.call_target(state, instruction);
                    if let Some(vtable) = target.and_then(|target| self.accessors.get(&target)) {
                        deeds.taken.push((index, *vtable));
                    } else if let Some(allocation) = allocation(state) {
                        deeds.allocations.insert(index, allocation);
                    }
                }
                (_, Mnemonic::Lea) => {
                    if let Value::Constant(address) = address_of(state, instruction)
                        && instruction.is_ip_rel_memory_operand()
                        && self.sizes.contains_key(&address)
                    {
                        deeds.taken.push((index, address));
                    }
                }
                (_, Mnemonic::Mov | Mnemonic::Movq) => {
                    let taken = code::absolute(instruction).filter(|address| self.sizes.contains_key(address));
                    deeds.taken.extend(taken.map(|address| (index, address)));
                    self.note_move(&mut deeds, index, instruction, state);
                }
                _ => {}
            }
        });
        deeds
    }

    fn note_move(&self, deeds: &mut Deeds, index: usize, instruction: &Instruction, state: &State) {
        let moved = match instruction.op1_kind() {
            OpKind::Register => code::number(instruction.op1_register()).map(|from| state.register(from)),
            // `mov qword ptr [...], VTABLE` of position-dependent code.
            OpKind::Immediate32to64 => Some(Value::Constant(instruction.immediate(1))),
            _ => None,
        };
        let Some(Value::Constant(vtable)) = moved else { return };
        if !self.sizes.contains_key(&vtable) {
            return;
        }
        if instruction.op0_kind() == OpKind::Memory {
            let base = code::number(instruction.memory_base());
            let plain = instruction.memory_displacement64() == self.shape.vtable_offset
                && instruction.memory_index() == Register::None;
            if let Some(base) = base.filter(|_| plain)
                && !matches!(state.register(base), Value::Stack { .. } | Value::Constant(_))
            {
                deeds.placed.push((index, vtable, base, state.register(base)));
            }
            deeds.stored.push((index, vtable));
        } else if code::number(instruction.op0_register()).is_none() {
            deeds.stored.push((index, vtable));
        }
    }

    fn births_of(&self, vtable: u64, function: &Function, flow: &Flow<'_>, deeds: &Deeds) -> Vec<Birth> {
        let trailer = self.sizes.get(&vtable).copied().flatten();
        let fitting = |index: usize| {
            deeds
                .allocations
                .iter()
                .any(|(at, found)| *at == index && found.fits(trailer, self.shape))
        };
        let mut sites = BTreeMap::new();
        for (index, _, base, value) in deeds.placed.iter().filter(|placed| placed.1 == vtable) {
            let allocated = match value {
                Value::Allocation(call) => function.index(*call).filter(|call| fitting(*call)),
                _ => None,
            };
            let site = match allocated {
                Some(call) => self.site_after(function, flow, call),
                None => self.site_after_store(function, *index, *base),
            };
            note(&mut sites, site);
        }
        if sites.is_empty() {
            let stored: Vec<usize> = of(&deeds.stored, vtable);
            let anchors = if stored.is_empty() {
                of(&deeds.taken, vtable)
            } else {
                stored
            };
            for anchor in anchors {
                let site = match self.nearest(flow, anchor, &fitting) {
                    Some(call) => self.site_after(function, flow, call),
                    None => Err("no allocation of its size follows"),
                };
                note(&mut sites, site);
            }
        }
        sites.into_values().map(|site| Birth { vtable, site }).collect()
    }

    /// The allocation that fewest instructions lead to.
    fn nearest(&self, flow: &Flow<'_>, from: usize, fitting: &dyn Fn(usize) -> bool) -> Option<usize> {
        let mut seen = BTreeSet::from([from]);
        let mut queue = VecDeque::from([from]);
        while let Some(index) = queue.pop_front() {
            if !self.image.pay(1) {
                return None;
            }
            if fitting(index) {
                return Some(index);
            }
            for next in flow.successors(index) {
                if seen.insert(next) {
                    queue.push_back(next);
                }
            }
        }
        None
    }

    /// The site after the allocating call at `call`: the branch of the null check, or the first cheap instruction.
    fn site_after(&self, function: &Function, flow: &Flow<'_>, call: usize) -> Result<ProbeSite, &'static str> {
        let value = Value::Allocation(function.instructions.get(call).map_or(0, Instruction::ip));
        let range = call + 1..call.saturating_add(SITE_DISTANCE_MAX);
        self.first_site(function, range, &|index| flow.state_at(index)?.register_with(value))
    }

    /// The site after the vtable was stored through `base` by the instruction at `store`: `base` holds the header until
    /// something writes it.
    fn site_after_store(&self, function: &Function, store: usize, base: u8) -> Result<ProbeSite, &'static str> {
        let mut info = InstructionInfoFactory::new();
        let mut end = store + 1;
        while let Some(instruction) = function.instructions.get(end) {
            let read_only = |used: &UsedRegister| matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
            let used = info.info(instruction).used_registers();
            end += 1;
            if used
                .iter()
                .any(|used| code::number(used.register()) == Some(base) && !read_only(used))
                || instruction.flow_control() != FlowControl::Next
                || end - store > SITE_DISTANCE_MAX
            {
                break;
            }
        }
        self.first_site(function, store + 1..end, &|_| Some(base))
    }

    /// Walks straight on: nothing may jump in between, so a hit is exactly one birth. `header` is the register that holds the
    /// header's address before an instruction.
    fn first_site(
        &self,
        function: &Function,
        range: Range<usize>,
        header: &dyn Fn(usize) -> Option<u8>,
    ) -> Result<ProbeSite, &'static str> {
        let mut slow = None;
        let mut tested = None;
        for index in range {
            let Some(instruction) = function.instructions.get(index) else {
                break;
            };
            if function.jump_targets.contains(&instruction.ip()) {
                break;
            }
            let register = header(index);
            let site = |register, condition| code::site(self.image, instruction, Role::Birth, register, condition);
            if let Some(register) = register {
                let condition = match tested {
                    Some(tested) if code::is_zero_branch(instruction) && tested == register => Condition::ZeroClear,
                    _ => Condition::Always,
                };
                if let Some(site) = site(register, condition).filter(|site| site.cheap) {
                    return Ok(site);
                }
                if slow.is_none() && code::is_probeable(instruction) {
                    slow = site(register, Condition::Always);
                }
            }
            if let Some(register) = code::null_tested(instruction) {
                tested = code::number(register);
            } else if instruction.rflags_modified() != 0 {
                tested = None;
            }
            if !code::falls_through(instruction) {
                break;
            }
        }
        slow.ok_or("its memory's address is in no register")
    }
}

/// The allocation that a call with these arguments makes, whatever the allocator.
///
/// `__rust_alloc(size, align)`, `exchange_malloc` and `box_new_uninit` in either order, `posix_memalign(&slot, align, size)`,
/// `malloc(size)`, `_rjem_mallocx(size, flags)`, whose flags are a small number. A cell has at least the bytes of its alignment.
fn allocation(state: &State) -> Option<Allocation> {
    let constant = |register| match state.register(register) {
        Value::Constant(value) => Some(value),
        _ => None,
    };
    let alignment = |value: u64| value.is_power_of_two() && ALIGNMENTS.contains(&value);
    match (constant(RDI), constant(RSI), constant(RDX)) {
        (Some(bytes), Some(align), _) if alignment(align) && bytes >= align => Some(Allocation {
            bytes,
            alignment: Some(align),
        }),
        (Some(align), Some(bytes), _) if alignment(align) && bytes >= align => Some(Allocation {
            bytes,
            alignment: Some(align),
        }),
        (None, Some(align), Some(bytes)) if alignment(align) && matches!(state.register(RDI), Value::Stack { .. }) => {
            Some(Allocation {
                bytes,
                alignment: Some(align),
            })
        }
        (Some(bytes), _, _) => Some(Allocation { bytes, alignment: None }),
        _ => None,
    }
}

fn of(deeds: &[(usize, u64)], vtable: u64) -> Vec<usize> {
    deeds
        .iter()
        .filter(|deed| deed.1 == vtable)
        .map(|deed| deed.0)
        .collect()
}

fn note(sites: &mut BTreeMap<u64, Result<ProbeSite, &'static str>>, site: Result<ProbeSite, &'static str>) {
    let address = site.as_ref().map_or(0, |site| site.address);
    sites.entry(address).or_insert(site);
}

#[cfg(test)]
mod tests;
