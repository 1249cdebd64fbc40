//! Parking: who waits is told once, and everybody is woken by what concerns them and nothing else.

use std::task::{Context, Poll, Waker};

use super::*;
use crate::name::NameKind;

type Models = Space<Arc<str>, u32>;

fn models() -> (Models, Arc<Events>) {
    let events = Arc::new(Events::new().expect("descriptors"));
    (Space::new(events.clone()), events)
}

fn name(id: &str) -> Name {
    Name::new(NameKind::VModelFirst, id, "")
}

fn waiter(id: &str, seconds: u64) -> Waiter {
    Waiter {
        told: Box::default(),
        name: name(id),
        deadline: Instant::now() + Duration::from_secs(seconds),
    }
}

fn park<'a>(models: &'a Models, key: &str, waiter: Waiter) -> Ticket<'a, Arc<str>, u32> {
    match models.park(&Arc::from(key), waiter, |_| true) {
        Parked::Waiting(ticket) => ticket,
        Parked::Known(_) | Parked::Refused(_) => panic!("it should wait"),
    }
}

fn refused(models: &Models, key: &str, waiter: Waiter) -> Option<Status> {
    match models.park(&Arc::from(key), waiter, |_| true) {
        Parked::Refused(status) => Some(status),
        Parked::Known(_) | Parked::Waiting(_) => None,
    }
}

fn woken(ticket: &mut Ticket<'_, Arc<str>, u32>) -> Option<Wake> {
    match ticket.poll_woken(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(wake) => Some(wake),
        Poll::Pending => None,
    }
}

fn faults(events: &Events) -> (usize, usize) {
    let taken = events.take();
    let count = |abandoned: bool| {
        let is = |event: &&Event| match event {
            Event::Fault { .. } => !abandoned,
            Event::Abandoned { .. } => abandoned,
            _ => false,
        };
        taken.iter().filter(is).count()
    };
    (count(false), count(true))
}

#[test]
fn many_wait_and_one_fault_is_told() {
    let (models, events) = models();
    let mut tickets: Vec<_> = (0..64)
        .map(|_| park(&models, "m", waiter("n", 9)))
        .collect();
    assert_eq!(faults(&events), (1, 0));
    assert_eq!(models.waiting()[0].waiting, 64);
    assert_eq!(models.set(&Arc::from("m"), 1), None);
    assert!(
        tickets
            .iter_mut()
            .all(|ticket| matches!(woken(ticket), Some(Wake::Resume)))
    );
    drop(tickets);
    assert_eq!(faults(&events), (0, 0), "who was woken did not leave");
    assert!(models.waiting().is_empty());
    assert!(matches!(
        models.park(&Arc::from("m"), waiter("n", 9), |_| true),
        Parked::Known(1)
    ));
}

#[test]
fn what_is_known_but_of_no_use_is_waited_for() {
    let (models, events) = models();
    models.set(&Arc::from("m"), 1);
    let parked = models.park(&Arc::from("m"), waiter("n", 9), |_| false);
    assert!(matches!(parked, Parked::Waiting(_)));
    assert_eq!(faults(&events), (1, 0));
    assert_eq!(models.waiting_known(), vec![(Arc::from("m"), 1)]);
}

#[test]
fn the_last_to_leave_abandons() {
    let (models, events) = models();
    let first = park(&models, "m", waiter("n", 9));
    let second = park(&models, "m", waiter("n", 9));
    drop(first);
    assert_eq!(faults(&events), (1, 0));
    drop(second);
    assert_eq!(faults(&events), (0, 1));
    let again = park(&models, "m", waiter("n", 9));
    assert_eq!(faults(&events), (1, 0));
    drop(again);
}

#[test]
fn a_reused_slot_is_another_waiter() {
    let (models, events) = models();
    let old = park(&models, "m", waiter("n", 9));
    models.wake(&Arc::from("m"));
    let mut new = park(&models, "m", waiter("n", 9));
    assert_eq!((old.slot, new.slot), (0, 0));
    events.take();
    drop(old);
    assert_eq!(models.waiting()[0].waiting, 1);
    assert!(woken(&mut new).is_none());
}

#[test]
fn refusals_answer_who_waits_and_for_a_while_who_comes() {
    let (models, events) = models();
    let mut parked = park(&models, "m", waiter("n", 9));
    let status = Status::new(Code::NotFound, "no");
    models.refuse(&Arc::from("m"), status.clone(), Duration::from_secs(60));
    assert!(matches!(woken(&mut parked), Some(Wake::Refused(given)) if given == status));
    assert_eq!(refused(&models, "m", waiter("n", 9)), Some(status.clone()));
    models.set(&Arc::from("m"), 1);
    models.remove(&Arc::from("m"), false);
    assert_eq!(
        refused(&models, "m", waiter("n", 9)),
        None,
        "a route ends a refusal"
    );
    models.refuse(&Arc::from("m"), status, Duration::ZERO);
    assert_eq!(
        refused(&models, "m", waiter("n", 9)),
        None,
        "not remembered"
    );
    drop(parked);
    assert_eq!(faults(&events).0, 3);
}

#[test]
fn who_cannot_wait_long_enough_is_told_so() {
    let (models, events) = models();
    let mut hasty = park(&models, "m", waiter("n", 1));
    let mut patient = park(&models, "m", waiter("n", 100));
    models.expect(&Arc::from("m"), Duration::from_secs(10));
    match woken(&mut hasty) {
        Some(Wake::Refused(status)) => {
            assert_eq!(status.code, Code::ResourceExhausted);
            assert_eq!(status.retry_after, Some(Duration::from_secs(10)));
        }
        other => panic!("{other:?}"),
    }
    assert!(woken(&mut patient).is_none());
    assert!(refused(&models, "m", waiter("n", 2)).is_some());
    assert!(refused(&models, "m", waiter("n", 20)).is_none());
    drop((hasty, patient));
    assert_eq!(faults(&events), (1, 1));
    let mut hasty = park(&models, "other", waiter("n", 1));
    models.expect(&Arc::from("other"), Duration::from_secs(10));
    assert!(woken(&mut hasty).is_some());
    drop(hasty);
    assert_eq!(faults(&events), (1, 0), "to be answered is not to leave");
}

#[test]
fn only_who_asked_for_a_name_resolves_it_again() {
    let (models, events) = models();
    let mut one = park(&models, "m", waiter("one", 9));
    let mut other = park(&models, "m", waiter("other", 9));
    models.wake_where(&Arc::from("m"), |waiter| waiter.name == name("one"));
    assert!(woken(&mut one).is_some());
    assert!(woken(&mut other).is_none());
    assert_eq!(faults(&events), (1, 0));
    models.wake_where(&Arc::from("m"), |waiter| waiter.name == name("other"));
    assert_eq!(faults(&events), (0, 1));
}

#[test]
fn what_is_remembered_is_bounded() {
    let (models, _) = models();
    let status = Status::new(Code::NotFound, "no");
    let n = NOTES_MAX + 500;
    for key in 0..n {
        models.refuse(
            &Arc::from(key.to_string()),
            status.clone(),
            Duration::from_secs(600),
        );
    }
    let remembered: usize = models
        .shards
        .iter()
        .map(|shard| shard.read().notes.len())
        .sum();
    assert!(remembered <= NOTES_MAX, "{remembered}");
    assert!(
        refused(&models, "0", waiter("n", 9)).is_none(),
        "the oldest is forgotten"
    );
    assert!(refused(&models, &(n - 1).to_string(), waiter("n", 9)).is_some());
}
