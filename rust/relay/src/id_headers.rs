//! Headers that name models: which models a request asks for by them, and how they are written.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use inference::grpc::{base64, unbase64};

use crate::name::{Name, NameKind};
use crate::status::{Code, Status, percent_encode};

/// The concrete model, in requests to a model server and in responses.
pub const MODEL_ID: HeaderName = HeaderName::from_static("mm-model-id");
/// The same as base64, for ids that are no printable ASCII.
pub const MODEL_ID_BIN: HeaderName = HeaderName::from_static("mm-model-id-bin");
/// The vmodel a request is for.
pub const VMODEL_ID: HeaderName = HeaderName::from_static("mm-vmodel-id");
/// The same as base64.
pub const VMODEL_ID_BIN: HeaderName = HeaderName::from_static("mm-vmodel-id-bin");
/// What `mm-model-id` was called once.
pub const LEGACY_ID: HeaderName = HeaderName::from_static("tas-model-id");
/// Of a request for several models: whether all have to be known.
pub const REQUIRED: HeaderName = HeaderName::from_static("mm-required");

/// The names the headers ask for, in their order; none when they name nothing. Several: the request is for each of them.
///
/// # Errors
/// INVALID_ARGUMENT when they are contradictory, empty or unreadable.
pub fn names_of(headers: &HeaderMap) -> Result<Vec<Name>, Status> {
    let models = ids(headers, &MODEL_ID, &MODEL_ID_BIN, NameKind::ModelFirst)?;
    let vmodels = ids(headers, &VMODEL_ID, &VMODEL_ID_BIN, NameKind::VModel)?;
    match (models.is_empty(), vmodels.is_empty()) {
        (false, false) => Err(Status::new(
            Code::InvalidArgument,
            "The request names a model and a vmodel; send either mm-model-id or mm-vmodel-id.",
        )),
        (false, true) => Ok(models),
        (true, false) => Ok(vmodels),
        (true, true) => ids(headers, &LEGACY_ID, &LEGACY_ID, NameKind::ModelFirst),
    }
}

/// Whether a request for several models fails when one of them is unknown; else such a one is left out.
pub fn requires_all(headers: &HeaderMap) -> bool {
    headers
        .get(&REQUIRED)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"all"))
}

/// The ids in the plain header, else in the binary one.
pub fn ids(
    headers: &HeaderMap,
    plain: &HeaderName,
    binary: &HeaderName,
    kind: NameKind,
) -> Result<Vec<Name>, Status> {
    let name = |id: &str, header: &HeaderName| {
        if id.is_empty() {
            let sentence = format!("The header {header} is empty; name a model in it.");
            return Err(Status::new(Code::InvalidArgument, sentence));
        }
        Ok(Name::new(kind, id, ""))
    };
    let unreadable = || {
        let sentence = format!(
            "The header {plain} is not readable as text; send ASCII, or UTF-8 in {binary} as base64."
        );
        Status::new(Code::InvalidArgument, sentence)
    };
    if headers.contains_key(plain) {
        let values = headers.get_all(plain).iter();
        return values
            .map(|value| name(value.to_str().map_err(|_| unreadable())?, plain))
            .collect();
    }
    // Values of binary headers may be joined by commas on their way.
    let values = headers.get_all(binary).iter();
    values
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|value| name(&decoded(value).ok_or_else(unreadable)?, binary))
        .collect()
}

fn decoded(value: &[u8]) -> Option<String> {
    String::from_utf8(unbase64(value.trim_ascii())?).ok()
}

/// A header value for an id: as it is when printable, else percent-encoded. Never indexed: ids would flush HPACK's table.
pub fn id_header(id: &str) -> HeaderValue {
    let mut value = HeaderValue::from_str(id)
        .or_else(|_| HeaderValue::from_str(&percent_encode(id)))
        .unwrap_or_else(|_| HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

/// Whether an id can be the value of a plain header.
pub fn is_printable(id: &str) -> bool {
    id.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
}

/// The value of a binary header for an id.
pub fn base64_header(id: &str) -> HeaderValue {
    id_header(&base64(id.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).expect("printable"));
        }
        headers
    }

    fn names(pairs: &[(&'static str, &str)]) -> Vec<(NameKind, String)> {
        let names = names_of(&map(pairs)).expect("fine");
        names
            .into_iter()
            .map(|name| (name.kind, name.name.to_string()))
            .collect()
    }

    #[test]
    fn ids_come_from_headers_by_rank() {
        let model = |id: &str| vec![(NameKind::ModelFirst, id.to_owned())];
        assert_eq!(
            names(&[("mm-model-id", "a"), ("tas-model-id", "b")]),
            model("a")
        );
        assert_eq!(
            names(&[("mm-vmodel-id", "v")]),
            [(NameKind::VModel, "v".to_owned())]
        );
        assert_eq!(names(&[("tas-model-id", "b")]), model("b"));
        for encoded in ["w7w=", "w7w"] {
            assert_eq!(names(&[("mm-model-id-bin", encoded)]), model("ü"));
        }
        assert!(names(&[]).is_empty());
    }

    #[test]
    fn repeated_ids_name_several_models_in_their_order() {
        let ids = |pairs| -> Vec<String> { names(pairs).into_iter().map(|(_, id)| id).collect() };
        assert_eq!(
            ids(&[
                ("mm-model-id", "b"),
                ("mm-model-id", "a,c"),
                ("mm-model-id", "b")
            ]),
            ["b", "a,c", "b"]
        );
        assert_eq!(
            ids(&[("mm-vmodel-id-bin", "YQ==,YmI"), ("mm-vmodel-id-bin", "YQ")]),
            ["a", "bb", "a"]
        );
        assert!(requires_all(&map(&[("mm-required", "ALL")])));
        assert!(!requires_all(&map(&[("mm-required", "any")])) && !requires_all(&map(&[])));
    }

    #[test]
    fn contradictory_ids_are_refused() {
        for pairs in [
            &[("mm-model-id", "a"), ("mm-vmodel-id", "b")][..],
            &[("mm-model-id", "")],
            &[("mm-vmodel-id-bin", "!")],
            &[("mm-model-id", "a"), ("mm-model-id", "")],
            &[("mm-model-id-bin", "YQ,")],
        ] {
            let refused = names_of(&map(pairs)).expect_err("refused");
            assert_eq!(refused.code, Code::InvalidArgument);
        }
    }
}
