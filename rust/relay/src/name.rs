//! What a request asks for, before the control plane has resolved it.

use std::sync::Arc;

/// Which spaces a name is looked up in, and in what order. The numbers are those of the Python `NameKind`.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NameKind {
    /// A model only.
    Model = 0,
    /// A vmodel only (`mm-vmodel-id`).
    VModel = 1,
    /// A model, then a vmodel (`mm-model-id`).
    ModelFirst = 2,
    /// A vmodel, then a model (a name from the body or from REST).
    VModelFirst = 3,
}

impl NameKind {
    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<NameKind> {
        [
            NameKind::Model,
            NameKind::VModel,
            NameKind::ModelFirst,
            NameKind::VModelFirst,
        ]
        .get(usize::from(number))
        .copied()
    }
}

/// What a request asked for. `version` is empty when none was given.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    /// Where to look it up.
    pub kind: NameKind,
    /// The id, as the client wrote it.
    pub name: Arc<str>,
    /// The version, or empty.
    pub version: Arc<str>,
}

impl Name {
    /// A name; an empty version means none was given.
    pub fn new(kind: NameKind, name: &str, version: &str) -> Name {
        Name {
            kind,
            name: Arc::from(name),
            version: Arc::from(version),
        }
    }

    /// The vmodel it is, given the model it stands for; `None`: that model's own id.
    pub fn as_vmodel_of(&self, model: &Arc<str>) -> Option<&Arc<str>> {
        (self.kind == NameKind::VModel || *model != self.name).then_some(&self.name)
    }
}
