use proptest::prelude::*;

use super::*;
use crate::batch::Batch;
use crate::testing::{Asked, LIMITS, Stand, fp64, request};

fn sizes(stand: &Stand) -> Vec<(i64, usize)> {
    let mut taken = Vec::new();
    while let Some(mut batch) = stand.take() {
        taken.push((batch.handle(), batch.n_requests()));
        batch.fail_all(&Status::invalid("done"));
    }
    taken
}

#[test]
fn what_waits_runs_together_oldest_model_first() {
    let stand = Stand::with_rows(&["a", "b"], LIMITS);
    let _asked = ["a", "b", "a", "b", "b"].map(|model| stand.ask_rows(model, 1));
    assert_eq!(sizes(&stand), [(0, 2), (1, 3)]);
}

#[test]
fn a_model_that_never_stops_asking_does_not_starve_another() {
    let stand = Stand::with_rows(&["a", "b"], LIMITS);
    let mut asked: Vec<_> = (0..20).map(|_| stand.ask_rows("a", 1)).collect();
    asked.push(stand.ask_rows("b", 1));
    asked.extend((0..20).map(|_| stand.ask_rows("a", 1)));
    assert_eq!(sizes(&stand)[..4], [(0, 8), (0, 8), (0, 8), (1, 1)]);
}

#[test]
fn limits_bound_a_batch_of_several_but_not_one_request() {
    let stand = Stand::with_rows(
        &["a"],
        Limits {
            batch_bytes_max: 4 * 16,
            ..LIMITS
        },
    );
    let _asked = [20, 1, 2, 2, 3].map(|rows| stand.ask_rows("a", rows));
    // 1 + 2 rows, then 2 are too many bytes; 2, then 3 are.
    assert_eq!(sizes(&stand), [(0, 1), (0, 2), (0, 1), (0, 1)]);
    let stand = Stand::with_rows(&["a"], LIMITS);
    let _asked = [5, 4, 3, 1].map(|rows| stand.ask_rows("a", rows));
    // 4 does not fit beside 5, the later 3 does; then 4 and 1.
    assert_eq!(sizes(&stand), [(0, 2), (0, 2)]);
}

#[test]
fn only_alike_requests_run_together_and_order_is_kept() {
    let stand = Stand::with_rows(&["a"], LIMITS);
    let ask = |output: &str| {
        let message = request(vec![fp64("x", &[1, 2], &[0.0; 2])], &[output]);
        stand.ask("a", message).unwrap()
    };
    let _asked = ["p", "q", "p", "q", "r"].map(ask);
    let mut order = Vec::new();
    while let Some(mut batch) = stand.take() {
        order.push((batch.outputs().to_vec(), batch.n_requests()));
        batch.fail_all(&Status::invalid("done"));
    }
    let expected = [("p", 2), ("q", 2), ("r", 1)].map(|(output, n)| (vec![output.to_owned()], n));
    assert_eq!(order, expected);
}

#[test]
fn the_cancelled_and_the_expired_leave() {
    let mut stand = Stand::with_rows(&["a"], LIMITS);
    let mut kept = stand.ask_rows("a", 1);
    let cancelled = stand.ask_rows("a", 1);
    let message = || request(vec![fp64("x", &[1, 2], &[0.0; 2])], &[]);
    let mut expired = stand
        .ask_until("a", message(), Some(Instant::now()))
        .unwrap();
    let mut in_time = stand
        .ask_until(
            "a",
            message(),
            Instant::now().checked_add(Duration::from_secs(60)),
        )
        .unwrap();
    assert!(stand.queue.cancel(cancelled.place).is_some());
    assert!(stand.queue.cancel(cancelled.place).is_none());
    assert_eq!(stand.queue.n_waiting(), 3);
    let mut batch = stand.take().unwrap();
    assert_eq!((batch.n_requests(), stand.queue.n_waiting()), (2, 0));
    assert!(stand.queue.cancel(kept.place).is_none());
    batch.fail(Code::Aborted, "").unwrap();
    // Requests of a batch that was halved can be cancelled as well.
    assert!(stand.queue.cancel(kept.place).is_some());
    stand.take().unwrap().fail(Code::Aborted, "").unwrap();
    stand.deliver();
    assert!(kept.answer().is_none() && expired.answer().is_none());
    assert_eq!(in_time.answer().unwrap().unwrap_err().code, Code::Aborted);
    assert!(stand.take().is_none());
    assert_eq!(stand.models.remove("a"), 0);
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let stand = Stand::with_rows(
        &["a"],
        Limits {
            queue_max: 2,
            ..LIMITS
        },
    );
    let _asked = [stand.ask_rows("a", 1), stand.ask_rows("a", 1)];
    let refused = stand
        .ask("a", request(vec![fp64("x", &[1, 2], &[0.0; 2])], &[]))
        .err()
        .unwrap();
    assert_eq!(
        (refused.code, refused.pushback_ms),
        (Code::ResourceExhausted, Some(PUSHBACK_MS))
    );
    assert!(refused.message.contains("Model a"), "{refused}");
}

#[test]
fn draining_takes_nothing_new_and_closing_refuses_the_rest() {
    let stand = Stand::with_rows(&["a"], LIMITS);
    let mut served = stand.ask_rows("a", 8);
    let mut refused = stand.ask_rows("a", 8);
    assert!(!stand.queue.drain(Duration::ZERO));
    let late = stand.ask("a", request(vec![fp64("x", &[1, 2], &[0.0; 2])], &[]));
    assert_eq!(late.err().unwrap().code, Code::Unavailable);
    let mut batch = stand.take().unwrap();
    stand.queue.close();
    assert_eq!(
        refused.answer().unwrap().unwrap_err().code,
        Code::Unavailable
    );
    batch.fail(Code::Aborted, "").unwrap();
    stand.deliver();
    assert_eq!(served.answer().unwrap().unwrap_err().code, Code::Aborted);
    assert!(stand.queue.next(Duration::from_secs(600)).is_none());
    assert!(stand.queue.drain(Duration::ZERO));
}

#[test]
fn draining_waits_for_what_runs() {
    let stand = Stand::with_rows(&["a"], LIMITS);
    let _asked = stand.ask_rows("a", 1);
    let batch = stand.take().unwrap();
    std::thread::scope(|scope| {
        let drained = scope.spawn(|| stand.queue.drain(Duration::from_secs(60)));
        drop(batch);
        assert!(drained.join().unwrap());
    });
}

#[test]
fn a_waiting_thread_is_woken() {
    let stand = Stand::with_rows(&["a"], LIMITS);
    let queue = stand.queue.clone();
    let waiting = std::thread::spawn(move || {
        queue
            .next(Duration::from_secs(60))
            .map(|taken| taken.requests.len())
    });
    let _asked = stand.ask_rows("a", 1);
    assert_eq!(waiting.join().unwrap(), Some(1));
}

#[derive(Clone, Debug)]
enum Step {
    Ask {
        model: usize,
        rows: i64,
    },
    Take,
    /// Of the batches that run, one ends: dropped, or failed (halved when it is of several).
    Drop(usize),
    Fail(usize),
    Cancel(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0usize..3, 1i64..4).prop_map(|(model, rows)| Step::Ask { model, rows }),
        2 => Just(Step::Take),
        1 => (0usize..8).prop_map(Step::Drop),
        2 => (0usize..8).prop_map(Step::Fail),
        1 => (0usize..40).prop_map(Step::Cancel),
    ]
}

#[derive(PartialEq)]
enum Where {
    Waits,
    Runs,
    Ended,
}

fn sequences(batch: &Batch) -> Vec<usize> {
    batch
        .sequences()
        .map(|sequence| sequence as usize)
        .collect()
}

proptest! {
    /// Against a naive record of where each request is: none is lost, none runs twice, the oldest goes first.
    #[test]
    fn each_request_waits_runs_and_ends_once(steps in prop::collection::vec(step(), 1..80)) {
        let models = ["a", "b", "c"];
        let stand = Stand::with_rows(&models, LIMITS);
        let mut asked: Vec<Asked> = Vec::new();
        let mut record: Vec<Where> = Vec::new();
        let mut running: Vec<Batch> = Vec::new();
        for step in steps.into_iter().chain((0..200).flat_map(|_| [Step::Take, Step::Fail(0)])) {
            match step {
                Step::Ask { model, rows } => {
                    asked.push(stand.ask_rows(models[model], rows));
                    record.push(Where::Waits);
                }
                Step::Take => {
                    let oldest = record.iter().position(|place| *place == Where::Waits);
                    let Some(batch) = stand.take() else {
                        prop_assert_eq!(oldest, None);
                        continue;
                    };
                    let taken = sequences(&batch);
                    prop_assert_eq!(taken.first().copied(), oldest);
                    for at in taken {
                        prop_assert!(record[at] == Where::Waits);
                        record[at] = Where::Runs;
                    }
                    running.push(batch);
                }
                Step::Drop(at) | Step::Fail(at) if at < running.len() => {
                    let mut batch = running.remove(at);
                    let halves = matches!(step, Step::Fail(_)) && batch.n_requests() > 1;
                    for at in sequences(&batch) {
                        record[at] = if halves { Where::Waits } else { Where::Ended };
                    }
                    if matches!(step, Step::Fail(_)) {
                        prop_assert_eq!(batch.fail(Code::Aborted, ""), Ok(!halves));
                    }
                }
                Step::Cancel(at) if at < asked.len() => {
                    let found = stand.queue.cancel(asked[at].place).is_some();
                    prop_assert_eq!(found, record[at] == Where::Waits);
                    if found {
                        record[at] = Where::Ended;
                    }
                }
                Step::Drop(_) | Step::Fail(_) | Step::Cancel(_) => {}
            }
            let waiting = record.iter().filter(|place| **place == Where::Waits).count();
            prop_assert_eq!(stand.queue.n_waiting(), waiting);
        }
        prop_assert!(record.iter().all(|place| *place == Where::Ended));
        prop_assert!(stand.queue.drain(Duration::ZERO));
    }
}
