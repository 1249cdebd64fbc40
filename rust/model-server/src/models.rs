//! The models served: what each takes and returns, and who still needs one that was removed.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ahash::{HashMap, HashMapExt, HashSet, HashSetExt};
use inference::datatype::Datatype;
use tokio::sync::Notify;

/// One input or output as declared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    /// Its name; empty on the only input of a model that names none.
    pub name: Box<str>,
    /// `None`: any numeric one.
    pub datatype: Option<Datatype>,
    /// −1: any. Empty: any shape at all.
    pub shape: Box<[i64]>,
    /// Whether an output is returned when none is requested by name.
    pub by_default: bool,
}

/// What a model takes and returns. Equal ones are shared between models.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Signature {
    /// The format, free text of the metadata.
    pub platform: Box<str>,
    /// The inputs, in the order the model is given them.
    pub inputs: Box<[TensorSpec]>,
    /// The outputs; empty when it declares none and any may be requested.
    pub outputs: Box<[TensorSpec]>,
    /// Requests may be stacked along the first dimension.
    pub row_wise: bool,
}

impl Signature {
    /// Whether it takes one input of any name.
    #[must_use]
    pub fn takes_any_name(&self) -> bool {
        matches!(&*self.inputs, [only] if only.name.is_empty())
    }
}

/// A model that is, or was, served.
#[derive(Debug)]
pub struct Model {
    /// The id it was registered under.
    pub id: Box<str>,
    /// What the caller knows it by.
    pub handle: i64,
    /// Unique among all models this server has ever had: an id may come back as another model.
    pub serial: u64,
    /// What it takes and returns.
    pub signature: Arc<Signature>,
    batchable: AtomicBool,
    leases: AtomicUsize,
    stuck: Notify,
}

impl Model {
    /// Whether its requests may be stacked: it is row-wise and has not shown otherwise.
    #[must_use]
    pub fn batchable(&self) -> bool {
        self.batchable.load(Ordering::Relaxed)
    }

    /// Never stack its requests again.
    pub fn forbid_batching(&self) {
        self.batchable.store(false, Ordering::Relaxed);
    }

    /// A batch of it does not end: who waits for it now waits in vain.
    pub fn give_up(&self) {
        self.stuck.notify_waiters();
    }

    /// Resolves when it is given up after this was polled for the first time.
    pub async fn given_up(&self) {
        self.stuck.notified().await;
    }

    fn leases(&self) -> usize {
        self.leases.load(Ordering::Acquire)
    }
}

/// A request's hold on its model: counted until it is dropped.
#[derive(Debug)]
pub struct Lease(Arc<Model>);

impl Deref for Lease {
    type Target = Arc<Model>;

    fn deref(&self) -> &Arc<Model> {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.leases.fetch_sub(1, Ordering::Release);
    }
}

/// All models by id.
#[derive(Debug)]
pub struct Models {
    by_id: HashMap<Box<str>, Arc<Model>>,
    signatures: HashSet<Arc<Signature>>,
    /// Removed, with requests still queued or running.
    leaving: Vec<Arc<Model>>,
    next_serial: u64,
}

impl Models {
    /// No models.
    #[must_use]
    pub fn new() -> Self {
        Self {
            by_id: HashMap::new(),
            signatures: HashSet::new(),
            leaving: Vec::new(),
            next_serial: 0,
        }
    }

    /// Adds a model; false when the id is taken.
    pub fn add(&mut self, id: &str, handle: i64, signature: Signature) -> bool {
        if self.by_id.contains_key(id) {
            return false;
        }
        let signature = match self.signatures.get(&signature) {
            Some(shared) => shared.clone(),
            None => {
                let own = Arc::new(signature);
                self.signatures.insert(own.clone());
                own
            }
        };
        let model = Model {
            id: id.into(),
            handle,
            serial: self.next_serial,
            batchable: AtomicBool::new(signature.row_wise),
            signature,
            leases: AtomicUsize::new(0),
            stuck: Notify::new(),
        };
        self.next_serial += 1;
        self.by_id.insert(id.into(), Arc::new(model));
        true
    }

    /// Removes a model. Returns the requests that still hold this one or an earlier one of its id; asking again for a removed
    /// id tells how many are left.
    pub fn remove(&mut self, id: &str) -> usize {
        if let Some(model) = self.by_id.remove(id) {
            // Two are this model's own and the set's; a third would be another model's.
            if Arc::strong_count(&model.signature) == 2 {
                self.signatures.remove(&model.signature);
            }
            self.leaving.push(model);
        }
        self.leaving.retain(|model| model.leases() > 0);
        self.leaving
            .iter()
            .filter(|model| &*model.id == id)
            .map(|model| model.leases())
            .sum()
    }

    /// The model of this id, held until the lease is dropped.
    #[must_use]
    pub fn lease(&self, id: &str) -> Option<Lease> {
        let model = self.by_id.get(id)?.clone();
        model.leases.fetch_add(1, Ordering::Relaxed);
        Some(Lease(model))
    }
}

impl Default for Models {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(platform: &str) -> Signature {
        Signature {
            platform: platform.into(),
            inputs: Box::default(),
            outputs: Box::default(),
            row_wise: true,
        }
    }

    #[test]
    fn equal_signatures_are_shared_and_given_back() {
        let mut models = Models::new();
        assert!(models.add("a", 1, signature("x")));
        assert!(models.add("b", 2, signature("x")));
        assert!(models.add("c", 3, signature("y")));
        assert!(!models.add("a", 4, signature("x")));
        assert_eq!(models.signatures.len(), 2);
        models.remove("a");
        assert_eq!(models.signatures.len(), 2);
        models.remove("b");
        models.remove("c");
        assert_eq!((models.signatures.len(), models.by_id.len()), (0, 0));
    }

    #[test]
    fn a_removed_model_is_counted_until_its_requests_are_gone() {
        let mut models = Models::new();
        models.add("a", 1, signature("x"));
        let (first, second) = (models.lease("a").unwrap(), models.lease("a").unwrap());
        assert_eq!(models.remove("a"), 2);
        assert!(models.lease("a").is_none());
        models.add("a", 2, signature("x"));
        assert_ne!(models.lease("a").unwrap().serial, first.serial);
        drop(first);
        assert_eq!(models.remove("a"), 1);
        drop(second);
        assert_eq!(models.remove("a"), 0);
        assert!(models.leaving.is_empty());
    }
}
