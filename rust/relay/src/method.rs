//! Where a method's calls go, and where its messages name the model.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use ahash::AHashMap;

use crate::name::NameKind;
use crate::rules::MethodRules;
use crate::status::{Code, Status};

/// Where the calls of a method go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// To a model.
    Inference,
    /// To the control plane.
    Control,
    /// Nowhere: the runtime's own service, and on each port what is for another one.
    Forbidden,
    /// Nowhere: an explicit config does not list it.
    Unlisted,
    /// The path is no gRPC method.
    Malformed,
}

/// What is known of a method.
#[derive(Debug)]
pub struct Method {
    /// As on the wire, with the leading slash.
    pub path: Box<str>,
    /// Where its calls go.
    pub class: Class,
    /// Requests or responses are known to be streams: never held back, never replayed.
    pub streaming: bool,
    /// The way to the model's name in the request message; empty: headers only.
    pub id_path: Arc<[u32]>,
    /// The way to its version.
    pub version_path: &'static [u32],
    /// What a name from the message, or from REST, is.
    pub kind: NameKind,
    /// A name in the message wins over headers.
    pub message_first: bool,
    /// Its place among the labels of the metrics.
    pub label: usize,
}

const INFERENCE_SERVICE: &str = "inference.GRPCInferenceService";

/// What instances ask of each other's control planes.
const PEER_SERVICE: &str = "modelmesh.peers.v1.Peers";

impl Method {
    /// The method with this path, under an explicit config if there is one.
    pub fn of(path: &str, label: usize, rules: Option<&MethodRules>) -> Method {
        let mut method = Method::known(path, label);
        let (Class::Inference, Some(rules)) = (method.class, rules) else {
            return method;
        };
        match rules.rules.get(path) {
            Some(rule) => {
                method.message_first = !rule.id_path.is_empty();
                method.id_path = rule.id_path.clone();
                method.version_path = &[];
                if method.message_first {
                    method.kind = if rule.vmodel {
                        NameKind::VModel
                    } else {
                        NameKind::Model
                    };
                }
            }
            None if rules.allow_others => {
                method.id_path = Arc::default();
                method.version_path = &[];
            }
            None => method.class = Class::Unlisted,
        }
        method
    }

    /// What a request that names no model is told.
    pub fn nameless(&self) -> Status {
        let sentence = if self.id_path.is_empty() {
            "The request names no model; send its id in the header mm-model-id or mm-vmodel-id."
        } else {
            "The request names no model; put its id into the message, or into the header mm-model-id or mm-vmodel-id."
        };
        Status::new(Code::InvalidArgument, sentence)
    }

    /// The same on the port for other instances, where the peer service alone is of the control plane: whether the method is let
    /// in otherwise, the instance that the client called has judged.
    pub fn for_peers(path: &str, label: usize) -> Method {
        let mut method = Method::known(path, label);
        let service = path.trim_start_matches('/').split('/').next();
        method.class = match method.class {
            Class::Forbidden if service == Some(PEER_SERVICE) => Class::Control,
            Class::Control => Class::Forbidden,
            class => class,
        };
        method
    }

    fn known(path: &str, label: usize) -> Method {
        let method = |class| Method {
            path: path.into(),
            class,
            streaming: false,
            id_path: Arc::default(),
            version_path: &[],
            kind: NameKind::VModelFirst,
            message_first: false,
            label,
        };
        let Some((service, name)) = path.strip_prefix('/').and_then(|path| path.split_once('/'))
        else {
            return method(Class::Malformed);
        };
        if service.is_empty() || name.is_empty() || name.contains('/') {
            return method(Class::Malformed);
        }
        match (service, name) {
            ("mmesh.ModelRuntime" | "com.ibm.watson.tas.internal.proto.ModelServer", _) => {
                method(Class::Forbidden)
            }
            (PEER_SERVICE, _) => Method {
                streaming: true,
                ..method(Class::Forbidden)
            },
            ("mmesh.ModelMesh" | "com.ibm.watson.tas.proto.TasRuntime", _) => {
                method(Class::Control)
            }
            _ if service.starts_with("grpc.health.") || service.starts_with("grpc.reflection.") => {
                Method {
                    streaming: true,
                    ..method(Class::Control)
                }
            }
            (INFERENCE_SERVICE, "ServerLive" | "ServerReady" | "ServerMetadata" | "ModelReady") => {
                method(Class::Control)
            }
            (INFERENCE_SERVICE, _) if name.starts_with("Repository") => method(Class::Control),
            (INFERENCE_SERVICE, "ModelInfer" | "ModelMetadata") => Method {
                id_path: Arc::new([1]),
                version_path: &[2],
                ..method(Class::Inference)
            },
            (INFERENCE_SERVICE, "ModelStreamInfer") => Method {
                streaming: true,
                id_path: Arc::new([1]),
                version_path: &[2],
                ..method(Class::Inference)
            },
            ("tensorflow.serving.PredictionService", "Predict") => Method {
                id_path: Arc::new([1, 1]),
                ..method(Class::Inference)
            },
            ("org.pytorch.serve.grpc.inference.InferenceAPIsService", "Predictions") => Method {
                id_path: Arc::new([1]),
                ..method(Class::Inference)
            },
            _ => method(Class::Inference),
        }
    }
}

/// Methods one loop remembers; clients may invent any number, and those beyond are looked at anew each time.
const REMEMBERED_MAX: usize = 512;

/// The methods one loop has met.
#[derive(Default)]
pub struct Methods {
    met: RefCell<AHashMap<Box<str>, Rc<Method>>>,
    generation: Cell<u64>,
}

impl Methods {
    /// The method with this path, as it is `known` or was made under the rules of this generation.
    pub fn get(&self, path: &str, generation: u64, known: impl FnOnce() -> Method) -> Rc<Method> {
        if self.generation.replace(generation) != generation {
            self.met.borrow_mut().clear();
        }
        if let Some(method) = self.met.borrow().get(path) {
            return method.clone();
        }
        let method = Rc::new(known());
        let mut met = self.met.borrow_mut();
        if met.len() < REMEMBERED_MAX {
            met.insert(path.into(), method.clone());
        }
        method
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{Rule, Rules};

    #[test]
    fn methods_have_classes() {
        let class = |path| Method::of(path, 0, None).class;
        assert_eq!(class("/mmesh.ModelRuntime/loadModel"), Class::Forbidden);
        assert_eq!(
            class("/com.ibm.watson.tas.internal.proto.ModelServer/x"),
            Class::Forbidden
        );
        assert_eq!(class("/mmesh.ModelMesh/registerModel"), Class::Control);
        assert_eq!(class("/grpc.health.v1.Health/Watch"), Class::Control);
        assert_eq!(
            class("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
            Class::Control
        );
        assert_eq!(
            class("/inference.GRPCInferenceService/RepositoryIndex"),
            Class::Control
        );
        assert_eq!(
            class("/inference.GRPCInferenceService/ModelReady"),
            Class::Control
        );
        assert_eq!(
            class("/inference.GRPCInferenceService/ModelInfer"),
            Class::Inference
        );
        assert_eq!(class("/any.Service/Method"), Class::Inference);
        for path in ["", "/", "/a", "//b", "/a/", "a/b", "/a/b/c", "*"] {
            assert_eq!(class(path), Class::Malformed, "{path}");
        }
    }

    #[test]
    fn instances_ask_the_peer_service_and_send_on_what_is_for_models() {
        let both = |path| {
            let (client, peer) = (Method::of(path, 0, None), Method::for_peers(path, 0));
            (client.class, peer.class)
        };
        let (forbidden, control) = (Class::Forbidden, Class::Control);
        assert_eq!(
            both("/modelmesh.peers.v1.Peers/Follow"),
            (forbidden, control)
        );
        assert_eq!(both("/mmesh.ModelMesh/registerModel"), (control, forbidden));
        assert_eq!(both("/grpc.health.v1.Health/Check"), (control, forbidden));
        assert_eq!(
            both("/mmesh.ModelRuntime/loadModel"),
            (forbidden, forbidden)
        );
        assert_eq!(
            both("/any.Service/Method"),
            (Class::Inference, Class::Inference)
        );
        assert_eq!(
            both("modelmesh.peers.v1.Peers"),
            (Class::Malformed, Class::Malformed)
        );
    }

    fn explicit(allow_others: bool) -> MethodRules {
        let rule = |id_path: &[u32], vmodel| Rule {
            id_path: id_path.into(),
            vmodel,
        };
        let rules = [
            ("/a.B/ByMessage", rule(&[3, 1], false)),
            ("/a.B/ByVModel", rule(&[1], true)),
            ("/a.B/ByHeader", rule(&[], true)),
            ("/mmesh.ModelRuntime/loadModel", rule(&[1], false)),
        ];
        MethodRules {
            rules: rules.map(|(path, rule)| (path.into(), rule)).into(),
            allow_others,
        }
    }

    #[test]
    fn an_explicit_config_gates_and_says_what_ids_are() {
        let strict = explicit(false);
        let of = |path| Method::of(path, 0, Some(&strict));
        let listed = of("/a.B/ByMessage");
        assert_eq!(
            (&*listed.id_path, listed.kind),
            (&[3, 1][..], NameKind::Model)
        );
        assert!(listed.message_first);
        assert_eq!(of("/a.B/ByVModel").kind, NameKind::VModel);
        let by_header = of("/a.B/ByHeader");
        assert!(!by_header.message_first && by_header.id_path.is_empty());
        for path in ["/a.B/Other", "/inference.GRPCInferenceService/ModelInfer"] {
            assert_eq!(of(path).class, Class::Unlisted);
        }
        assert_eq!(of("/mmesh.ModelRuntime/loadModel").class, Class::Forbidden);
        assert_eq!(of("/mmesh.ModelMesh/registerModel").class, Class::Control);
        assert_eq!(of("/grpc.health.v1.Health/Check").class, Class::Control);
        let lenient = explicit(true);
        let other = Method::of(
            "/inference.GRPCInferenceService/ModelInfer",
            0,
            Some(&lenient),
        );
        assert_eq!(other.class, Class::Inference);
        assert!(
            other.id_path.is_empty(),
            "an explicit config replaces the default paths"
        );
    }

    #[test]
    fn what_is_remembered_is_forgotten_when_the_rules_change() {
        let (methods, rules) = (Methods::default(), Rules::default());
        let class = || {
            let of = || Method::of("/a.B/Other", 0, rules.current().as_deref());
            methods.get("/a.B/Other", rules.generation(), of).class
        };
        assert_eq!(class(), Class::Inference);
        rules.set(Some(explicit(false)));
        assert_eq!(class(), Class::Unlisted);
        rules.set(None);
        assert_eq!(class(), Class::Inference);
    }
}
