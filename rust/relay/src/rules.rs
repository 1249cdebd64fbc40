//! Which methods are let in and where their messages name the model, as the operator says (reference mesh.md 1.4): the
//! data-plane config. Swapped whole while calls run; those that are let in keep the rules they came under.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::AHashMap;
use parking_lot::RwLock;

/// What is said of one method.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The way to the id in the request message; empty: headers only.
    pub id_path: Arc<[u32]>,
    /// The id names a vmodel, and no model; else a model, and no vmodel.
    pub vmodel: bool,
}

/// An explicit config. Where there is none, every method is let in and the known protocols have paths of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MethodRules {
    /// By path as on the wire, with the leading slash.
    pub rules: AHashMap<Box<str>, Rule>,
    /// Whether methods without a rule are let in.
    pub allow_others: bool,
}

/// The rules in force. Loops remember what they derived from them, until the generation changes.
#[derive(Default)]
pub struct Rules {
    generation: AtomicU64,
    current: RwLock<Option<Arc<MethodRules>>>,
}

impl Rules {
    /// Puts others in force, for calls that come from now on. `None`: no config.
    pub fn set(&self, rules: Option<MethodRules>) {
        let mut current = self.current.write();
        *current = rules.map(Arc::new);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Changes whenever the rules do.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Those in force.
    pub fn current(&self) -> Option<Arc<MethodRules>> {
        self.current.read().clone()
    }
}
