use super::*;
use crate::testing::{fp64, lease, request, signature, spec, tensor};

fn refused(
    message: InferRequest,
    inputs: &[TensorSpec],
    outputs: &[TensorSpec],
    row_wise: bool,
) -> String {
    let lease = lease(signature(inputs, outputs, row_wise));
    Request::check(message, &lease).unwrap_err().to_string()
}

#[test]
fn inputs_come_in_the_order_of_the_signature() {
    let specs = ["a", "b", "c"].map(|name| spec(name, Some(Datatype::Fp64), &[-1]));
    let lease = lease(signature(&specs, &[], true));
    let inputs = ["c", "a", "b"].map(|name| fp64(name, &[1], &[0.0]));
    let checked = Request::check(request(inputs.into(), &[]), &lease).unwrap();
    let names: Vec<_> = checked.inputs.iter().map(|input| &input.name[..]).collect();
    assert_eq!(
        (names, checked.rows, checked.size_bytes),
        (vec!["a", "b", "c"], Some(1), 24)
    );
}

#[test]
fn wrong_inputs_are_refused_with_what_is_expected() {
    let two = [
        spec("a", Some(Datatype::Fp64), &[-1, 2]),
        spec("b", None, &[-1]),
    ];
    let a = || fp64("a", &[1, 2], &[0.0; 2]);
    let check = |inputs: Vec<Tensor>| refused(request(inputs, &[]), &two, &[], true);
    assert_eq!(
        check(vec![a()]),
        "InvalidArgument: Input 'b' of model m is missing; it takes 'a' (FP64, [-1, 2]), 'b' (any numeric, [-1])."
    );
    assert_eq!(
        check(vec![a(), fp64("z", &[1], &[0.0])]),
        "InvalidArgument: Model m has no input 'z'; it takes 'a' (FP64, [-1, 2]), 'b' (any numeric, [-1])."
    );
    assert_eq!(
        check(vec![fp64("a", &[1, 3], &[0.0; 3]), fp64("b", &[1], &[0.0])]),
        "InvalidArgument: Input 'a' of model m has the shape [1, 3], but the model takes [-1, 2] (-1: any size)."
    );
    assert!(
        check(vec![fp64("a", &[2], &[0.0; 2]), fp64("b", &[1], &[0.0])]).contains("takes [-1, 2]")
    );
    assert_eq!(
        check(vec![a(), fp64("b", &[2], &[0.0; 2])]),
        "InvalidArgument: Inputs 'a' and 'b' of model m have the shapes [1, 2] and [2], but need the same first dimension."
    );
    let half = || {
        tensor(
            "a",
            Datatype::Fp16,
            &[1, 2],
            TensorData::Fixed(vec![0; 4].into()),
        )
    };
    assert_eq!(
        check(vec![half(), fp64("b", &[1], &[0.0])]),
        "InvalidArgument: Input 'a' of model m is FP16, but the model takes FP64."
    );
    for datatype in [Datatype::Bf16, Datatype::Bytes] {
        let data = match datatype {
            Datatype::Bytes => TensorData::Elements(vec![Default::default()]),
            _ => TensorData::Fixed(vec![0; 2].into()),
        };
        assert!(
            check(vec![a(), tensor("b", datatype, &[1], data)])
                .ends_with("takes a numeric datatype.")
        );
    }
}

#[test]
fn a_nameless_input_takes_any_name_but_only_one() {
    let any = [spec("", None, &[])];
    let lease = lease(signature(&any, &[], true));
    let checked = Request::check(
        request(vec![fp64("whatever", &[3, 1, 1], &[0.0; 3])], &[]),
        &lease,
    )
    .unwrap();
    assert_eq!(checked.rows, Some(3));
    let two = vec![fp64("a", &[1], &[0.0]), fp64("b", &[1], &[0.0])];
    let expected = "InvalidArgument: Model m takes one input of any name, but 2 were sent.";
    assert_eq!(refused(request(two, &[]), &any, &[], true), expected);
}

#[test]
fn requests_without_rows_run_alone() {
    let lease = lease(signature(&[spec("", None, &[])], &[], true));
    for input in [fp64("x", &[], &[0.0]), fp64("x", &[0, 2], &[])] {
        let checked = Request::check(request(vec![input], &[]), &lease).unwrap();
        assert_eq!(checked.rows, None);
        assert!(!checked.stacks_with(&checked));
    }
}

#[test]
fn outputs_must_exist_and_be_asked_for_once() {
    let outputs = [spec("p", None, &[-1]), spec("q", None, &[-1])];
    let any = [spec("", None, &[])];
    let check = |names: &[&str]| {
        refused(
            request(vec![fp64("x", &[1], &[0.0])], names),
            &any,
            &outputs,
            true,
        )
    };
    assert_eq!(
        check(&["r"]),
        "InvalidArgument: Model m has no output 'r'; it has 'p' (any numeric, [-1]), 'q' (any numeric, [-1])."
    );
    assert_eq!(
        check(&["q", "q"]),
        "InvalidArgument: Output 'q' of model m is requested twice; request each once."
    );
}

#[test]
fn shared_memory_and_classification_are_not_offered() {
    let any = [spec("", None, &[])];
    let parameter = |key: &str| [(key.to_owned(), ParameterChoice::Int64(1).into())].into();
    let mut message = request(vec![fp64("x", &[1], &[0.0])], &["p"]);
    message.inputs[0].parameters = parameter("shared_memory_offset");
    assert!(refused(message, &any, &[], true).starts_with("Unimplemented: Tensor 'x' of model m"));
    for key in ["shared_memory_region", "classification"] {
        let mut message = request(vec![fp64("x", &[1], &[0.0])], &["p"]);
        message.outputs[0].parameters = parameter(key);
        let sentence = refused(message, &any, &[], true);
        assert!(
            sentence.starts_with("Unimplemented: ") && sentence.contains("'p'"),
            "{sentence}"
        );
    }
}

#[test]
fn what_stacks_differs_in_rows_only() {
    let lease = lease(signature(&[spec("", None, &[])], &[], true));
    let check = |message| Request::check(message, &lease).unwrap();
    let base = || request(vec![fp64("x", &[1, 2], &[0.0; 2])], &["p"]);
    let with = |key: &str, value: ParameterChoice| InferRequest {
        parameters: [(key.to_owned(), value.into())].into(),
        ..base()
    };
    let one = check(base());
    let alike = InferRequest {
        id: "other".into(),
        raw: false,
        ..request(vec![fp64("x", &[3, 2], &[1.0; 6])], &["p"])
    };
    assert!(one.stacks_with(&check(alike)));
    for other in [
        request(vec![fp64("x", &[1, 1, 2], &[0.0; 2])], &["p"]),
        request(vec![fp64("x", &[1, 3], &[0.0; 3])], &["p"]),
        request(vec![fp64("y", &[1, 2], &[0.0; 2])], &["p"]),
        request(vec![fp64("x", &[1, 2], &[0.0; 2])], &[]),
        request(
            vec![tensor(
                "x",
                Datatype::Int64,
                &[1, 2],
                TensorData::Fixed(vec![0; 16].into()),
            )],
            &["p"],
        ),
        with("k", ParameterChoice::Bool(true)),
    ] {
        assert!(!one.stacks_with(&check(other)));
    }
    let choices = [
        ParameterChoice::Int64(1),
        ParameterChoice::Uint64(1),
        ParameterChoice::Double(1.0),
    ];
    for (i, a) in choices.iter().enumerate() {
        for (j, b) in choices.iter().enumerate() {
            let (a, b) = (check(with("k", a.clone())), check(with("k", b.clone())));
            assert_eq!(a.stacks_with(&b), i == j);
        }
    }
}
