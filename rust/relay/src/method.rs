//! Where a method's calls go, and where its messages name the model.

use std::cell::RefCell;
use std::rc::Rc;

use ahash::AHashMap;

/// Where the calls of a method go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// To a model.
    Inference,
    /// To the control plane.
    Control,
    /// Nowhere: the runtime's own service, never for clients.
    Forbidden,
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
    pub id_path: &'static [u32],
    /// The way to its version.
    pub version_path: &'static [u32],
    /// Its place among the labels of the metrics.
    pub label: usize,
}

const INFERENCE_SERVICE: &str = "inference.GRPCInferenceService";

impl Method {
    /// The method with this path.
    pub fn of(path: &str, label: usize) -> Method {
        let method = |class| Method {
            path: path.into(),
            class,
            streaming: false,
            id_path: &[],
            version_path: &[],
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
                id_path: &[1],
                version_path: &[2],
                ..method(Class::Inference)
            },
            (INFERENCE_SERVICE, "ModelStreamInfer") => Method {
                streaming: true,
                id_path: &[1],
                version_path: &[2],
                ..method(Class::Inference)
            },
            ("tensorflow.serving.PredictionService", "Predict") => Method {
                id_path: &[1, 1],
                ..method(Class::Inference)
            },
            ("org.pytorch.serve.grpc.inference.InferenceAPIsService", "Predictions") => Method {
                id_path: &[1],
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
}

impl Methods {
    /// The method with this path. `label` numbers the methods of all loops.
    pub fn get(&self, path: &str, label: impl FnOnce(&str) -> usize) -> Rc<Method> {
        if let Some(method) = self.met.borrow().get(path) {
            return method.clone();
        }
        let method = Rc::new(Method::of(path, label(path)));
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

    #[test]
    fn methods_have_classes() {
        let class = |path| Method::of(path, 0).class;
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
}
