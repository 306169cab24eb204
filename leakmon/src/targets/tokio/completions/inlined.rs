//! Ends of tasks whose `Harness::complete` was inlined, in tokio before 1.10.
//!
//! In: the functions of the task types, and the sites that symbols of `complete` gave. Out: sites of what is left of it, where a
//! type comes to that by no `complete` that is known: `State::transition_to_terminal`, and where that was inlined as well, the
//! exchanges of the state word. What was seen to complete before is none of the live tasks when it gets there, so a site too many
//! counts nothing twice. Source: `runtime/task/harness.rs` and `state.rs`, the same from tokio 1.0.3 to 1.9.0.

use super::{
    super::super::{code::Function, image::Image, plan::ProbeSite},
    Completions, FLIP, Reach, Update, argument_site, exchange_sites, functions_with_exchange, released,
};
use iced_x86::Mnemonic;
use std::collections::{BTreeMap, BTreeSet};

/// `COMPLETE` is set: of a task whose output nobody awaits. The others were flipped before ([`FLIP`]).
const SET: Update = Update {
    mnemonic: Mnemonic::Or,
    modrm: 0xc8,
    operand: 2,
};
/// One reference is given up with it, or two: `REF_ONE` is 64.
const DROPS: [Update; 2] = [drop_by(-64), drop_by(-128)];

const fn drop_by(references: i64) -> Update {
    Update {
        mnemonic: Mnemonic::Add,
        modrm: 0xc0,
        operand: references as u64,
    }
}

/// Sites by the function that has them.
type Sites = BTreeMap<u64, Vec<ProbeSite>>;

impl Completions {
    /// Adds what ends the tasks whose `complete` was inlined into the functions at `starts`, or into others that they come to.
    pub(in super::super) fn add_inlined(&mut self, image: &Image<'_>, starts: &[u64]) {
        let terminals = terminals(image);
        let mut known = self.functions.clone();
        let goals = terminals.keys().copied().collect();
        if meets(image, starts, &goals, &known) {
            self.functions.extend(&goals);
            self.sites.extend(terminals.values().flatten().cloned());
        }
        known.extend(goals);
        let flips = exchanges(image, &[&[&FLIP]], &known);
        let [one, two] = &DROPS;
        let sets = exchanges(image, &[&[&SET, one], &[&SET, two]], &known);
        // Some tasks are awaited and some are not, and the function ends either.
        let ends_both = |start: &u64| {
            let named = || Function::around(image, *start).map_or_else(Vec::new, |function| function.named(image));
            flips.contains_key(start) || named().iter().any(|other| flips.contains_key(other))
        };
        let goals = sets.keys().copied().filter(ends_both).collect();
        if meets(image, starts, &goals, &known) {
            self.functions.extend(&goals);
            self.sites
                .extend(flips.into_values().chain(sets.into_values()).flatten());
        }
    }
}

/// Whether one of the functions at `starts` comes to a goal other than through the functions that are known.
fn meets(image: &Image<'_>, starts: &[u64], goals: &BTreeSet<u64>, known: &BTreeSet<u64>) -> bool {
    let mut reach = Reach {
        barriers: known.clone(),
        ..Reach::to(image, goals)
    };
    !goals.is_empty() && starts.iter().any(|start| reach.completes(*start))
}

/// The entries of `State::transition_to_terminal`, which `complete` calls at its end, and nobody else. Only symbols tell.
fn terminals(image: &Image<'_>) -> Sites {
    let symbols = image.symbols.iter().filter(|symbol| is_terminal(symbol.name));
    symbols
        .filter_map(|symbol| Some((symbol.address, vec![released(argument_site(image, symbol.address)?)])))
        .collect()
}

/// Where the state word is exchanged after all updates of one of these lists, outside the functions that are known. The lists
/// begin with the same update, by which functions are looked for.
fn exchanges(image: &Image<'_>, lists: &[&[&Update]], known: &BTreeSet<u64>) -> Sites {
    let Some(first) = lists.first().and_then(|updates| updates.first()) else {
        return Sites::new();
    };
    let functions = functions_with_exchange(image, first).into_iter();
    functions
        .filter(|start| !known.contains(start))
        .filter_map(|start| {
            let function = Function::around(image, start)?;
            let sites = lists
                .iter()
                .flat_map(|updates| exchange_sites(image, &function, updates));
            let released: Vec<ProbeSite> = sites.map(released).collect();
            (!released.is_empty()).then_some((start, released))
        })
        .collect()
}

/// `State::transition_to_terminal`, legacy or v0, and neither its closures nor the `SchedulerView`'s function of that name.
fn is_terminal(name: &[u8]) -> bool {
    let contains = |part: &[u8]| name.windows(part.len()).any(|window| window == part);
    let legacy = name.starts_with(b"_ZN") && contains(b"5State22transition_to_terminal17h");
    let v0 = name.starts_with(b"_RNv") && contains(b"5State22transition_to_terminal");
    contains(b"4task5state") && (legacy || v0)
}

#[cfg(test)]
mod tests {
    use super::{super::harnesses, *};
    use crate::targets::image::FunctionSymbol;
    use leakmon_ebpf::abi::{Condition, Role};

    const ADDRESS: u64 = 0x1000;

    #[test]
    fn where_complete_was_inlined_what_it_calls_at_its_end_is_a_site_too() {
        // Sixteen bytes each: poll calls complete, shutdown (complete inlined) calls terminal, complete calls terminal, terminal
        // returns.
        let [poll, shutdown, complete, terminal] = [ADDRESS, ADDRESS + 16, ADDRESS + 32, ADDRESS + 48];
        let call = |from: u64, to: u64| {
            let mut code = vec![0xe8];
            code.extend_from_slice(&(to.wrapping_sub(from + 5) as u32).to_le_bytes());
            code.resize(16, 0xc3);
            code
        };
        let pushes = [0x53, 0xc3].iter().copied().chain([0x90; 14]);
        let code: Vec<u8> = [call(poll, complete), call(shutdown, terminal), call(complete, terminal)]
            .concat()
            .into_iter()
            .chain(pushes)
            .collect();
        let functions = (0..4).map(|index| ADDRESS + 16 * index..ADDRESS + 16 * (index + 1));
        let mut image = Image::of_code(ADDRESS, &code, &[]).with_functions(functions);
        let symbol = |address: u64, name: &'static [u8]| FunctionSymbol { address, name };
        image.symbols = vec![
            symbol(
                complete,
                b"_ZN5tokio7runtime4task7harness20Harness$LT$T$C$S$GT$8complete17h0123456789abcdefE",
            ),
            symbol(
                terminal,
                b"_ZN5tokio7runtime4task5state5State22transition_to_terminal17h0123456789abcdefE",
            ),
        ];
        for (starts, expected) in [
            (&[poll][..], &[(complete, Role::End)][..]),
            (&[poll, shutdown], &[(complete, Role::End), (terminal, Role::Freed)]),
            (&[], &[(complete, Role::End)]),
        ] {
            let mut completions = harnesses(&image);
            completions.add_inlined(&image, starts);
            let sites: Vec<_> = completions.sites.iter().map(|site| (site.address, site.role)).collect();
            assert_eq!(sites, expected, "from {starts:x?}");
            let mut reach = Reach::new(&image, &completions);
            assert_eq!(reach.completes(shutdown), expected.len() == 2);
            assert!(reach.completes(poll));
        }
    }

    #[test]
    fn neither_closures_nor_the_function_of_the_same_name_are_terminal() {
        for (name, expected) in [
            (&b"_ZN5tokio7runtime4task5state5State22transition_to_terminal17h0123456789abcdefE"[..], true),
            (b"_RNvMNtNtNtNtCs1_5tokio7runtime4task5stateNtB2_5State22transition_to_terminal", true),
            (b"_ZN5tokio7runtime4task5state5State22transition_to_terminal28_$u7b$$u7b$closure$u7d$$u7d$17h0123456789abcdefE", false),
            (b"_RNCNvMNtNtNtNtCs1_5tokio7runtime4task5stateNtB4_5State22transition_to_terminal0B8_", false),
            (b"_ZN5tokio7runtime4task7harness26SchedulerView$LT$C$C$S$GT$22transition_to_terminal17h0123456789abcdefE", false),
            (b"_ZN5tokio7runtime4task5state5State22transition_to_complete17h0123456789abcdefE", false),
        ] {
            assert_eq!(is_terminal(name), expected, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn where_that_was_inlined_too_the_exchanges_are_sites() {
        // As tokio 1.4.0 with thin LTO has it: mov rcx, rax · xor rcx, 3 · lock cmpxchg [rbx], rcx · jne back
        let flip = &b"\x48\x89\xc1\x48\x83\xf1\x03\xf0\x48\x0f\xb1\x0b\x75\xf2"[..];
        // mov rsi, rax · or rsi, 2 · add rsi, -64 · lock cmpxchg [rbx], rsi · jne back
        let set = b"\x48\x89\xc6\x48\x83\xce\x02\x48\x83\xc6\xc0\xf0\x48\x0f\xb1\x33\x75\xee";
        // The same for two references.
        let set_two = b"\x48\x89\xc6\x48\x83\xce\x02\x48\x83\xc6\x80\xf0\x48\x0f\xb1\x33\x75\xee";
        // Only the bit: a lock's.
        let other = b"\x48\x89\xc6\x48\x83\xce\x02\xf0\x48\x0f\xb1\x33\x75\xf2";
        let branches = |code: &[&[u8]]| -> Vec<(u64, Role, Condition)> {
            let code = [code.concat(), vec![0xc3]].concat();
            let image = Image::of_code(ADDRESS, &code, &[]);
            let mut completions = Completions::default();
            completions.add_inlined(&image, &[ADDRESS]);
            let sites = completions.sites.iter();
            sites
                .map(|site| (site.address - ADDRESS, site.role, site.condition))
                .collect()
        };
        let site = |offset: usize| (offset as u64, Role::Freed, Condition::ZeroSet);
        let (at_flip, at_set) = (flip.len() - 2, set.len() - 2);
        assert_eq!(branches(&[flip, set]), [site(at_flip), site(flip.len() + at_set)]);
        assert_eq!(
            branches(&[flip, set, set_two]),
            [
                site(at_flip),
                site(flip.len() + at_set),
                site(flip.len() + set.len() + at_set)
            ]
        );
        // One of the two alone is none.
        assert_eq!(branches(&[flip]), []);
        assert_eq!(branches(&[set]), []);
        assert_eq!(branches(&[flip, other]), []);
    }
}
