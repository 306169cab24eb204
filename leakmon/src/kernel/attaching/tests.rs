//! The thread with a kernel that answers when the test says so.

use super::*;
use leakmon_ebpf::abi::{Kind, Role};
use std::sync::mpsc::{Receiver as Answers, Sender as Asked, channel as unbounded};

/// The instruction of every site.
const BYTES: [u8; 2] = [0x74, 1];

/// The kernel: it says what it is asked to attach, and does nothing before it has an answer.
fn slow_kernel(asked: Asked<u64>, answers: Answers<Result<u64, String>>) -> Attacher<u64> {
    Attacher::start(move |_, hook| {
        asked.send(hook.file_offset).unwrap();
        answers.recv().unwrap_or_else(|_| Err("the test has ended".to_owned()))
    })
    .unwrap()
}

fn quick_kernel() -> Attacher<u64> {
    Attacher::start(|_, hook| Ok(hook.file_offset)).unwrap()
}

fn hook(file_offset: u64) -> Hook {
    Hook {
        program: "",
        file_offset,
        cookie: Cookie::new(0, Role::Birth, Condition::Always, Kind::Task, 0, 0),
    }
}

fn probe(index: usize, file_offset: u64) -> Probe {
    Probe {
        index,
        site: ProbeSite {
            role: Role::Birth,
            file_offset,
            address: 0,
            register: 0,
            condition: Condition::Always,
            task_type: None,
            bytes: BYTES.to_vec(),
            instruction: String::new(),
            cheap: true,
        },
        program: "",
        cookie: Some(hook(file_offset).cookie),
    }
}

/// An image that has the instruction at these offsets, each a site.
fn order(number: u32, offsets: &[u64]) -> Order {
    let file = tempfile::tempfile().unwrap();
    for offset in offsets {
        file.write_all_at(&BYTES, *offset).unwrap();
    }
    Order {
        number,
        file,
        entry: None,
        probes: offsets
            .iter()
            .enumerate()
            .map(|(index, at)| probe(index, *at))
            .collect(),
    }
}

#[tokio::test]
async fn nobody_waits_for_the_kernel_and_outcomes_come_in_sequence() {
    let ((asked, questions), (answer, answers)) = (unbounded(), unbounded());
    let mut attacher = slow_kernel(asked, answers);
    attacher.order(order(1, &[10, 20])).unwrap();
    // The kernel is asked, and does not answer; the next order is taken all the same.
    assert_eq!(questions.recv(), Ok(10));
    attacher.order(order(2, &[30])).unwrap();
    assert!(attacher.outcomes.try_recv().is_err());
    answer.send(Ok(1)).unwrap();
    assert_eq!(questions.recv(), Ok(20));
    assert!(attacher.outcomes.try_recv().is_err(), "an image comes when it is whole");
    answer.send(Err("no".to_owned())).unwrap();
    answer.send(Ok(3)).unwrap();
    let first = attacher.outcome().await.unwrap();
    assert_eq!(
        (first.number, first.sites),
        (1, vec![(0, Ok(1)), (1, Err("no".to_owned()))])
    );
    let second = attacher.outcome().await.unwrap();
    assert_eq!((second.number, second.sites), (2, vec![(0, Ok(3))]));
}

#[tokio::test]
async fn orders_wait_up_to_a_bound() {
    let ((asked, _questions), (answer, answers)) = (unbounded(), unbounded());
    let mut attacher = slow_kernel(asked, answers);
    for number in 0..ORDERS_MAX as u32 {
        assert!(attacher.has_room());
        attacher.order(order(number, &[0])).unwrap();
    }
    assert!(!attacher.has_room());
    assert!(attacher.order(order(99, &[0])).is_err());
    answer.send(Ok(0)).unwrap();
    assert_eq!(attacher.outcome().await.unwrap().number, 0);
    attacher.order(order(100, &[0])).unwrap();
}

#[test]
fn what_was_attached_before_it_was_stopped_is_handed_over() {
    let ((asked, questions), (answer, answers)) = (unbounded(), unbounded());
    let mut attacher = slow_kernel(asked, answers);
    attacher.order(order(1, &[10, 20, 30])).unwrap();
    attacher.order(order(2, &[40])).unwrap();
    assert_eq!(questions.recv(), Ok(10));
    answer.send(Ok(1)).unwrap();
    assert_eq!(questions.recv(), Ok(20));
    // It is in the kernel with the second probe, which comes once it has been told to stop.
    let stop = Arc::clone(&attacher.stop);
    let late = std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        answer.send(Ok(2)).unwrap();
    });
    let outcomes = attacher.stop();
    late.join().unwrap();
    let handed: Vec<_> = outcomes
        .into_iter()
        .map(|outcome| (outcome.number, outcome.sites))
        .collect();
    assert_eq!(handed, [(1, vec![(0, Ok(1)), (1, Ok(2))]), (2, vec![])]);
    assert!(attacher.order(order(3, &[0])).is_err());
    assert!(questions.recv().is_err(), "nobody attaches any more");
}

#[tokio::test]
async fn an_entry_point_comes_first_and_without_it_nothing_is_attached() {
    let ((asked, questions), (answer, answers)) = (unbounded(), unbounded());
    let mut attacher = slow_kernel(asked, answers);
    let entry = Some(hook(5));
    attacher
        .order(Order {
            entry,
            ..order(1, &[10])
        })
        .unwrap();
    answer.send(Err("no".to_owned())).unwrap();
    let outcome = attacher.outcome().await.unwrap();
    assert_eq!((outcome.entry, outcome.sites), (Some(Err("no".to_owned())), vec![]));
    assert_eq!(questions.try_iter().collect::<Vec<_>>(), [5]);
}

#[tokio::test]
async fn a_site_without_its_instruction_is_refused() {
    let mut attacher = quick_kernel();
    let mut order = order(1, &[10, 20, 30, 40, 50]);
    order.file.write_all_at(&[0x75], 20).unwrap();
    order.probes[2].site.file_offset = 1000;
    order.probes[3].site.condition = Condition::ZeroSet;
    order.probes[3].site.cheap = false;
    order.probes[4].cookie = None;
    attacher.order(order).unwrap();
    let sites = attacher.outcome().await.unwrap().sites;
    let refused = |index: usize, reason: &str| sites[index].1.as_ref().unwrap_err().contains(reason);
    assert_eq!(sites[0], (0, Ok(10)));
    assert!(refused(1, "has changed"), "{sites:?}");
    assert!(refused(2, "can't be read"), "{sites:?}");
    assert!(refused(3, "is no branch"), "{sites:?}");
    assert!(refused(4, "too many sites"), "{sites:?}");
}

#[tokio::test]
async fn who_waits_for_a_thread_that_has_ended_is_told() {
    let mut attacher: Attacher<u64> = Attacher::start(|_, _| panic!("as no kernel does")).unwrap();
    attacher.order(order(1, &[0])).unwrap();
    assert!(attacher.outcome().await.is_none());
    assert!(attacher.has_room());
    attacher.order(order(2, &[0])).unwrap_err();
}
