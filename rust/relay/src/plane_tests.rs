//! Routes, replicas and their retirement, and how one is picked.

use super::*;
use crate::circuit::FAILURES_MAX;
use crate::event::Event;
use crate::pick::{self, Lease, Pick, pick};
use crate::replica::{Address, TargetMethods};

fn plane(targets: &[(u64, u32)]) -> Plane {
    let plane = Plane::new(Config::default()).expect("descriptors");
    let address = || Address::parse("unix:/nowhere");
    plane.add_targets(targets.iter().map(|(id, bound)| {
        Arc::new(Target::new(
            *id,
            address(),
            *bound,
            true,
            TargetMethods::default(),
        ))
    }));
    plane
}

fn listed(id: u64, target: u64, max_concurrency: u32) -> Listed {
    Listed {
        id,
        target,
        max_concurrency,
    }
}

fn route(plane: &Plane) -> Arc<Route> {
    plane.models.get(&Arc::from("m")).expect("published")
}

fn lease(plane: &Plane) -> Option<Lease> {
    match pick(&route(plane), &[], false, plane.now_ms(), 0) {
        Pick::Lease(lease) => Some(lease),
        Pick::Full | Pick::Nobody => None,
    }
}

fn retire(plane: &Plane, id: u64, token: u64) {
    plane.replica(id).expect("held").retire(token);
}

fn retired(plane: &Plane) -> Vec<(u64, u64, bool)> {
    let is = |event| match event {
        Event::Retired {
            replica,
            token,
            clean,
        } => Some((replica, token, clean)),
        _ => None,
    };
    plane.events.take().into_iter().filter_map(is).collect()
}

#[test]
fn the_less_busy_of_two_serves() {
    let plane = plane(&[(1, 0)]);
    plane.publish("m", &[listed(1, 1, 0), listed(2, 1, 0)]);
    let leases: Vec<Lease> = (0..10).filter_map(|_| lease(&plane)).collect();
    let by_first = leases.iter().filter(|lease| lease.replica.id == 1).count();
    assert_eq!((leases.len(), by_first), (10, 5));
}

#[test]
fn bounds_hold_for_replicas_and_targets() {
    let plane = plane(&[(1, 3), (2, 0)]);
    plane.publish("m", &[listed(1, 1, 2), listed(2, 1, 2)]);
    let leases: Vec<Lease> = (0..9).filter_map(|_| lease(&plane)).collect();
    assert_eq!(leases.len(), 3, "the target's bound");
    assert!(matches!(pick(&route(&plane), &[], false, 0, 0), Pick::Full));
    plane.publish("m", &[listed(3, 2, 2)]);
    let more: Vec<Lease> = (0..9).filter_map(|_| lease(&plane)).collect();
    assert_eq!(more.len(), 2, "the replica's bound");
    drop((leases, more));
    assert!(lease(&plane).is_some());
    assert_eq!(plane.replica(3).map(|replica| replica.in_flight()), Some(0));
}

#[test]
fn retirement_waits_for_what_is_in_flight() {
    let plane = plane(&[(1, 0)]);
    plane.publish("m", &[listed(1, 1, 0)]);
    let held = lease(&plane).expect("free");
    retire(&plane, 1, 77);
    assert!(lease(&plane).is_none());
    assert!(retired(&plane).is_empty());
    drop(held);
    assert_eq!(retired(&plane), [(1, 77, true)]);
    retire(&plane, 1, 78);
    assert_eq!(
        retired(&plane),
        [(1, 78, true)],
        "nothing in flight: at once"
    );
}

#[test]
fn publishing_revives() {
    let plane = plane(&[(1, 0)]);
    plane.publish("m", &[listed(1, 1, 0)]);
    let held = lease(&plane).expect("free");
    plane.publish("m", &[]);
    retire(&plane, 1, 77);
    plane.publish("m", &[listed(1, 1, 0)]);
    let again = lease(&plane).expect("revived");
    assert_eq!(
        again.replica.in_flight(),
        2,
        "the same replica, counts and all"
    );
    drop((held, again));
    plane.replica(1).expect("held").retirement_timed_out(77);
    assert!(retired(&plane).is_empty(), "the retirement is forgotten");
}

#[test]
fn a_retirement_that_took_too_long_says_so_once() {
    let plane = plane(&[(1, 0)]);
    plane.publish("m", &[listed(1, 1, 0)]);
    let held = lease(&plane).expect("free");
    let replica = held.replica.clone();
    retire(&plane, 1, 5);
    replica.retirement_timed_out(4);
    assert!(retired(&plane).is_empty(), "an older token");
    replica.retirement_timed_out(5);
    assert_eq!(retired(&plane), [(1, 5, false)]);
    assert!(
        lease(&plane).is_none(),
        "not acquirable until it is published anew"
    );
    drop(held);
    assert!(retired(&plane).is_empty());
}

#[test]
fn replicas_are_forgotten_when_nothing_holds_them() {
    let plane = plane(&[(1, 0)]);
    for id in 0..1000 {
        plane.publish("m", &[listed(id, 1, 0)]);
    }
    assert!(plane.replica(0).is_none());
    assert!(plane.replica(999).is_some());
    assert!(plane.replicas.lock().by_id.len() < 200);
}

#[test]
fn not_here_and_lost_targets_are_skipped() {
    let plane = plane(&[(1, 0), (2, 0)]);
    plane.publish("m", &[listed(1, 1, 0), listed(2, 2, 0)]);
    plane.replica(1).expect("held").is_not_here();
    plane.replica(1).expect("held").is_not_here();
    assert_eq!(plane.events.take().len(), 1, "told once");
    assert!(
        (0..9)
            .filter_map(|_| lease(&plane))
            .all(|lease| lease.replica.id == 2)
    );
    plane.remove_target(2);
    assert!(matches!(
        pick(&route(&plane), &[], false, 0, 0),
        Pick::Nobody
    ));
    plane.publish("m", &[listed(1, 1, 0)]);
    assert!(lease(&plane).is_some(), "published anew, it is there again");
}

#[test]
fn a_target_is_lost_with_its_last_connection_and_back_with_the_first() {
    let plane = plane(&[]);
    let target = Target::new(
        7,
        Address::parse("unix:/nowhere"),
        0,
        true,
        TargetMethods::default(),
    );
    target.link_up(&plane.events);
    target.link_up(&plane.events);
    target.link_down(true, false, &plane.events);
    assert!(target.is_there());
    target.link_down(true, false, &plane.events);
    target.link_down(false, false, &plane.events);
    assert!(!target.is_there());
    assert!(target.link_up(&plane.events));
    assert!(target.is_there());
    let told: Vec<Event> = plane.events.take().into();
    assert_eq!(
        told,
        [
            Event::TargetLost { target: 7 },
            Event::TargetBack { target: 7 }
        ]
    );
}

#[test]
fn an_instance_is_lost_while_one_connection_is_suspected() {
    let plane = plane(&[]);
    let target = Target::of_peer(7, Address::parse("there:8080"));
    let lost = || Event::TargetLost { target: 7 };
    let back = || Event::TargetBack { target: 7 };
    let told = || -> Vec<Event> { plane.events.take().into() };
    target.link_up(&plane.events);
    target.link_up(&plane.events);
    assert!(!target.suspect(true, &plane.events));
    assert!(!target.suspect(true, &plane.events));
    assert!(!target.is_there());
    assert!(!target.suspect(false, &plane.events));
    assert_eq!(told(), [lost()]);
    assert!(target.suspect(false, &plane.events));
    assert!(target.is_there());
    assert_eq!(told(), [back()]);
    // One is given up: the other is not suspected.
    target.suspect(true, &plane.events);
    assert!(target.link_down(true, true, &plane.events));
    assert_eq!(told(), [lost(), back()]);
    // The last one is given up: nobody is told twice.
    target.suspect(true, &plane.events);
    assert!(!target.link_down(true, true, &plane.events));
    assert_eq!(told(), [lost()]);
}

#[test]
fn what_is_here_is_preferred_to_what_is_elsewhere() {
    let plane = plane(&[(1, 2)]);
    plane.add_targets([Arc::new(Target::of_peer(2, Address::parse("there:8080")))]);
    let elsewhere = (10..20).map(|id| listed(id, 2, 0));
    let all: Vec<Listed> = elsewhere.chain([listed(1, 1, 0)]).collect();
    plane.publish("m", &all);
    let pick = |local, random| match pick(&route(&plane), &[], local, 0, random) {
        Pick::Lease(lease) => Some(lease),
        Pick::Full | Pick::Nobody => None,
    };
    let id = |lease: &Option<Lease>| lease.as_ref().map(|lease| lease.replica.id);
    // As far as it is looked at: eight of eleven.
    for random in 3..11 {
        assert_eq!(id(&pick(false, random)), Some(1));
    }
    let held = pick(true, 0);
    assert_eq!(id(&held), Some(1));
    let other = pick(false, 10);
    assert!(id(&other) >= Some(10), "others have less to do");
    let last = pick(true, 10);
    assert_eq!(id(&last), Some(1));
    assert!(
        pick(true, 10).is_none(),
        "it is full, and the others do not count"
    );
}

#[test]
fn at_most_half_of_the_copies_are_ejected() {
    let plane = plane(&[(1, 0)]);
    plane.publish("m", &[listed(1, 1, 0), listed(2, 1, 0), listed(3, 1, 0)]);
    let route = route(&plane);
    for replica in &route.replicas {
        for _ in 0..2 * FAILURES_MAX {
            pick::failed(replica, &route, &plane);
        }
    }
    assert_eq!(plane.counters.ejections.get(), 1);
    let served: Vec<u64> = (0..30)
        .filter_map(
            |random| match pick(&route, &[], false, plane.now_ms(), random) {
                Pick::Lease(lease) => Some(lease.replica.id),
                Pick::Full | Pick::Nobody => None,
            },
        )
        .collect();
    assert!(served.len() == 30 && served.iter().all(|id| *id != 1));
}

#[test]
fn a_lone_copy_is_never_ejected() {
    let plane = plane(&[(1, 0)]);
    plane.publish("m", &[listed(1, 1, 0)]);
    let route = route(&plane);
    (0..100).for_each(|_| pick::failed(&route.replicas[0], &route, &plane));
    assert!(lease(&plane).is_some());
}

#[test]
fn usage_comes_from_a_list_of_what_was_used() {
    let plane = plane(&[(1, 0)]);
    plane.publish("m", &[listed(1, 1, 0)]);
    plane.publish("idle", &[listed(2, 1, 0)]);
    let held = lease(&plane).expect("free");
    plane.touch(&held.replica);
    plane.touch(&held.replica);
    let ids = |plane: &Plane| {
        plane
            .take_dirty()
            .iter()
            .map(|replica| replica.id)
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&plane), [1]);
    assert_eq!(ids(&plane), [1], "in flight");
    drop(held);
    assert_eq!(ids(&plane), [1], "its last reading had it in flight");
    assert!(ids(&plane).is_empty());
}

#[test]
fn a_name_that_moves_wakes_only_its_own_waiters() {
    let plane = plane(&[]);
    let name = Name::new(crate::name::NameKind::VModelFirst, "v", "");
    plane.publish_name(&name, Meaning::Model(Arc::from("m@1")));
    let waiter = || crate::space::Waiter {
        told: Box::default(),
        name: name.clone(),
        deadline: Instant::now() + Duration::from_secs(9),
    };
    let parked = plane.models.park(&Arc::from("m@1"), waiter(), |_| true);
    plane.publish_name(&name, Meaning::Model(Arc::from("m@1")));
    assert_eq!(plane.models.waiting().len(), 1);
    plane.publish_name(&name, Meaning::Model(Arc::from("m@2")));
    assert!(plane.models.waiting().is_empty());
    drop(parked);
    let parked = plane.models.park(&Arc::from("m@2"), waiter(), |_| true);
    plane.forget_name(&name);
    assert!(plane.models.waiting().is_empty());
    assert!(plane.names.is_empty());
    drop(parked);
}

#[test]
fn looking_in_vain_wakes_nobody() {
    let plane = plane(&[(1, 1)]);
    plane.publish("m", &[listed(1, 1, 2)]);
    let route = route(&plane);
    let held = lease(&plane).expect("free");
    let deadline = Instant::now() + Duration::from_secs(9);
    let mut place =
        crate::gate::Place::take(&route.queue, &route.targets, deadline, 8).expect("room");
    let mut kicked = |expected: bool| {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let polled = std::pin::pin!(place.kicked()).poll(&mut context);
        assert_eq!(polled.is_ready(), expected);
    };
    for _ in 0..3 {
        assert!(matches!(pick(&route, &[], false, 0, 0), Pick::Full));
        kicked(false);
    }
    drop(held);
    kicked(true);
}
