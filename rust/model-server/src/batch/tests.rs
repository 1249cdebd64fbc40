use std::collections::BTreeMap;

use inference::infer::InferRequest;
use inference::messages::ParameterChoice;
use inference::tensor::Tensor;
use proptest::prelude::*;

use super::*;
use crate::encode::OutputData;
use crate::models::TensorSpec;
use crate::queue::Limits;
use crate::testing::{Asked, LIMITS, Stand, fp64, fp64_values, request, signature, spec, tensor};

/// A model that is plain to compute: `sum` (FP64, one per row), `text` (BYTES, one per row and not by default), `double`
/// (FP64, the input's shape). A negative value is an error. With `collapses`, `sum` is one number for the whole batch.
fn outputs_of(
    rows: &[f64],
    width: usize,
    names: &[&str],
    collapses: bool,
) -> Result<Vec<Tensor>, ()> {
    if rows.iter().any(|value| *value < 0.0) {
        return Err(());
    }
    let n_rows = rows.len() / width;
    let sums: Vec<f64> = rows.chunks(width).map(|row| row.iter().sum()).collect();
    let output = |name: &&str| match *name {
        "sum" if collapses => fp64("sum", &[1], &[sums.iter().sum()]),
        "sum" => fp64("sum", &[n_rows as i64], &sums),
        "double" => {
            let doubled: Vec<f64> = rows.iter().map(|value| value * 2.0).collect();
            fp64("double", &[n_rows as i64, width as i64], &doubled)
        }
        _ => {
            let texts = sums
                .iter()
                .map(|sum| Bytes::from(format!("{sum}")))
                .collect();
            tensor(
                "text",
                Datatype::Bytes,
                &[n_rows as i64],
                TensorData::Elements(texts),
            )
        }
    };
    Ok(names.iter().map(output).collect())
}

fn declared() -> Vec<TensorSpec> {
    let hidden = TensorSpec {
        by_default: false,
        ..spec("text", Some(Datatype::Bytes), &[-1])
    };
    vec![
        spec("sum", None, &[-1]),
        spec("double", None, &[-1, -1]),
        hidden,
    ]
}

const BY_DEFAULT: [&str; 2] = ["sum", "double"];

/// Runs a batch the way a worker does: all outputs computed, even those not asked for.
fn run(batch: &mut Batch, collapses: bool) {
    let input = batch.inputs().next().unwrap();
    let mut stacked = vec![0; input.size_bytes()];
    input.copy_into(&mut stacked);
    let width = input.shape[1] as usize;
    let values = fp64_values(&tensor(
        "x",
        Datatype::Fp64,
        &[],
        TensorData::Fixed(stacked.into()),
    ));
    assert_eq!(values.len(), input.shape.iter().product::<i64>() as usize);
    drop(input);
    match outputs_of(&values, width, &["text", "double", "sum"], collapses) {
        Ok(outputs) => reply(batch, &outputs).map(|_| ()).unwrap(),
        Err(()) => batch
            .fail(Code::OutOfRange, "a value is negative")
            .map(|_| ())
            .unwrap(),
    }
}

fn reply(batch: &mut Batch, outputs: &[Tensor]) -> Result<bool, String> {
    let fixed: Vec<Vec<u8>> = outputs
        .iter()
        .map(|tensor| match &tensor.data {
            TensorData::Fixed(bytes) => bytes.to_vec(),
            TensorData::Elements(_) => Vec::new(),
        })
        .collect();
    let elements: Vec<Vec<&[u8]>> = outputs
        .iter()
        .map(|tensor| match &tensor.data {
            TensorData::Fixed(_) => Vec::new(),
            TensorData::Elements(elements) => elements.iter().map(|element| &element[..]).collect(),
        })
        .collect();
    let whole: Vec<Output<'_>> = outputs
        .iter()
        .enumerate()
        .map(|(at, tensor)| Output {
            name: &tensor.name,
            datatype: tensor.datatype,
            shape: &tensor.shape,
            data: match &tensor.data {
                TensorData::Fixed(_) => OutputData::Fixed(&fixed[at]),
                TensorData::Elements(_) => OutputData::Elements(&elements[at]),
            },
        })
        .collect();
    batch.reply(&whole)
}

#[derive(Clone, Debug)]
struct Case {
    rows: usize,
    width: usize,
    bad: bool,
    names: Vec<&'static str>,
    parameter: Option<bool>,
    raw: bool,
    cancelled: bool,
}

fn case() -> impl Strategy<Value = Case> {
    let names = prop_oneof![
        Just(vec![]),
        Just(vec!["sum"]),
        Just(vec!["text", "double"]),
    ];
    let flags = (
        prop::bool::weighted(0.1),
        prop::option::weighted(0.3, any::<bool>()),
        any::<bool>(),
        prop::bool::weighted(0.1),
    );
    (0usize..5, 1usize..3, names, flags).prop_map(
        |(rows, width, names, (bad, parameter, raw, cancelled))| Case {
            rows,
            width,
            bad,
            names,
            parameter,
            raw,
            cancelled,
        },
    )
}

fn values(case: &Case, seed: usize) -> Vec<f64> {
    let mut values: Vec<f64> = (0..case.rows * case.width)
        .map(|at| (seed * 100 + at) as f64 / 8.0)
        .collect();
    if let Some(last) = values.last_mut()
        && case.bad
    {
        *last = -1.0;
    }
    values
}

fn message(case: &Case, seed: usize) -> InferRequest {
    let shape = [case.rows as i64, case.width as i64];
    let parameters = case
        .parameter
        .map(|value| ("p".to_owned(), ParameterChoice::Bool(value).into()));
    InferRequest {
        id: seed.to_string(),
        model_version: "3".into(),
        parameters: parameters.into_iter().collect(),
        raw: case.raw,
        ..request(vec![fp64("x", &shape, &values(case, seed))], &case.names)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn every_request_gets_what_it_would_get_alone(
        cases in prop::collection::vec(case(), 1..40),
        rows_max in 1usize..12,
        collapses in prop::bool::weighted(0.2),
    ) {
        let mut stand = Stand::new(Limits { batch_rows_max: rows_max, ..LIMITS });
        stand.models.add("m", 0, signature(&[spec("", None, &[-1, -1])], &declared(), true));
        let mut asked: BTreeMap<usize, Asked> = BTreeMap::new();
        for (seed, case) in cases.iter().enumerate() {
            asked.insert(seed, stand.ask("m", message(case, seed)).unwrap());
        }
        for (seed, case) in cases.iter().enumerate().filter(|(_, case)| case.cancelled) {
            prop_assert!(stand.queue.cancel(asked[&seed].place).is_some(), "{case:?}");
        }
        while let Some(mut batch) = stand.take() {
            let n_rows = batch.rows();
            prop_assert!(batch.n_requests() == 1 || n_rows <= rows_max);
            run(&mut batch, collapses);
        }
        stand.deliver();
        for (seed, case) in cases.iter().enumerate() {
            let answer = asked.get_mut(&seed).unwrap().answer();
            if case.cancelled {
                prop_assert!(answer.is_none());
                continue;
            }
            let names = if case.names.is_empty() { &BY_DEFAULT[..] } else { &case.names };
            match (outputs_of(&values(case, seed), case.width, names, collapses), answer.unwrap()) {
                (Ok(expected), Ok(response)) => {
                    let echoed = (&response.model_name[..], &response.model_version[..], response.id);
                    prop_assert_eq!(echoed, ("called", "3", seed.to_string()));
                    prop_assert_eq!(response.outputs, expected);
                }
                (Err(()), Err(status)) => prop_assert_eq!(status.code, Code::OutOfRange),
                (expected, answer) => prop_assert!(false, "{expected:?} but {answer:?}"),
            }
        }
        prop_assert_eq!(stand.models.remove("m"), 0);
    }
}

#[test]
fn a_bad_request_is_found_by_halving() {
    let stand = Stand::with_rows(&["m"], LIMITS);
    let _asked: Vec<_> = (0..8).map(|_| stand.ask_rows("m", 1)).collect();
    let mut batch = stand.take().unwrap();
    assert_eq!(batch.fail(Code::Internal, "bad"), Ok(false));
    assert_eq!((batch.n_requests(), stand.queue.n_waiting()), (0, 8));
    // What arrives meanwhile stays out of the halves, which come first.
    let _late = stand.ask_rows("m", 1);
    let first = stand.take().unwrap();
    let second = stand.take().unwrap();
    let third = stand.take().unwrap();
    assert_eq!(
        [first.n_requests(), second.n_requests(), third.n_requests()],
        [4, 4, 1]
    );
}

#[test]
fn outputs_without_rows_end_batching_for_good() {
    let stand = Stand::with_rows(&["m"], LIMITS);
    let mut asked = [stand.ask_rows("m", 1), stand.ask_rows("m", 2)];
    assert_eq!(
        reply(&mut stand.take().unwrap(), &[fp64("y", &[1], &[0.0])]),
        Ok(false)
    );
    for _ in 0..2 {
        let mut single = stand.take().unwrap();
        assert_eq!(single.n_requests(), 1);
        let rows = single.rows() as f64;
        assert_eq!(reply(&mut single, &[fp64("y", &[1], &[rows])]), Ok(true));
    }
    stand.deliver();
    let answers = asked
        .each_mut()
        .map(|asked| fp64_values(&asked.answer().unwrap().unwrap().outputs[0]));
    assert_eq!(answers, [[1.0], [2.0]]);
    let _later = [stand.ask_rows("m", 1), stand.ask_rows("m", 1)];
    assert_eq!(stand.take().unwrap().n_requests(), 1);
}

#[test]
fn a_wrong_reply_leaves_the_batch_unanswered() {
    let stand = Stand::with_rows(&["m"], LIMITS);
    let message = request(vec![fp64("x", &[1, 2], &[0.0; 2])], &["y"]);
    let mut asked = stand.ask("m", message).unwrap();
    let mut batch = stand.take().unwrap();
    let short = Tensor {
        shape: vec![2],
        ..fp64("y", &[1], &[0.0])
    };
    let texts = tensor("y", Datatype::Fp64, &[0], TensorData::Elements(vec![]));
    let negative = fp64("y", &[-1], &[]);
    for (wrong, sentence) in [
        (
            fp64("z", &[1], &[0.0]),
            "Model m: output 'y' was requested but is not in the reply.",
        ),
        (
            short,
            "Model m: Output 'y' (FP64, shape [2]) needs 16 bytes, but has 8.",
        ),
        (
            texts,
            "Model m: Output 'y' is FP64, so its data is a buffer, not a list.",
        ),
        (
            negative,
            "Model m: Tensor 'y' has the shape [-1]; write the actual size for -1.",
        ),
    ] {
        assert_eq!(reply(&mut batch, &[wrong]), Err(sentence.to_owned()));
    }
    assert_eq!(reply(&mut batch, &[fp64("y", &[1], &[7.0])]), Ok(true));
    let again = Err("The batch of model m has been answered already.".to_owned());
    assert_eq!(reply(&mut batch, &[]), again);
    assert_eq!(batch.fail(Code::Internal, ""), again);
    drop(batch);
    stand.deliver();
    assert_eq!(
        fp64_values(&asked.answer().unwrap().unwrap().outputs[0]),
        [7.0]
    );
}

#[test]
fn a_dropped_batch_fails() {
    let stand = Stand::with_rows(&["m"], LIMITS);
    let mut asked = [stand.ask_rows("m", 1), stand.ask_rows("m", 1)];
    drop(stand.take().unwrap());
    stand.deliver();
    for asked in &mut asked {
        assert_eq!(asked.answer().unwrap().unwrap_err().code, Code::Internal);
    }
    assert!(stand.queue.drain(std::time::Duration::ZERO));
}

#[test]
fn half_precision_is_answered_raw_and_typed_requests_typed() {
    let stand = Stand::with_rows(&["m"], LIMITS);
    let half = || {
        tensor(
            "y",
            Datatype::Fp16,
            &[1],
            TensorData::Fixed(vec![0, 0x3c].into()),
        )
    };
    let text = || {
        tensor(
            "t",
            Datatype::Bytes,
            &[1],
            TensorData::Elements(vec![Bytes::from_static(b"\xff")]),
        )
    };
    for outputs in [vec![half(), text()], vec![text()]] {
        let message = InferRequest {
            raw: false,
            ..request(vec![fp64("x", &[1, 2], &[0.0; 2])], &[])
        };
        let mut asked = stand.ask("m", message).unwrap();
        reply(&mut stand.take().unwrap(), &outputs).unwrap();
        stand.deliver();
        assert_eq!(asked.answer().unwrap().unwrap().outputs, outputs);
    }
}
