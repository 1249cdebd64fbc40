//! One call: which method, which model, and what it is answered.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use inference::Invalid;
use inference::grpc::{timeout, unbase64};
use inference::infer::InferRequest;
use inference::messages::{
    ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse,
    ServerLiveResponse, ServerMetadataResponse, ServerReadyResponse, TensorMetadata,
};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::oneshot;

use crate::encode::framed;
use crate::grpc::{Body, Caller, Ending, MessageLimits};
use crate::models::{Lease, Models, TensorSpec};
use crate::queue::{Pending, Place, Queue};
use crate::request::Request;
use crate::status::{Code, Status};

/// What calls share.
#[derive(Debug)]
pub struct Core {
    /// The models served.
    pub models: Mutex<Models>,
    /// The requests that wait.
    pub queue: Arc<Queue>,
    /// The bounds on messages.
    pub limits: MessageLimits,
    /// How long a batch may run.
    pub stuck_after: Duration,
    /// What has been counted.
    pub counts: Counts,
}

/// Totals since the start, and the connections of now.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Counts {
    pub requests: AtomicU64,
    pub batches: AtomicU64,
    pub rows: AtomicU64,
    pub refused: AtomicU64,
    pub connections: AtomicU64,
}

const SERVICE: &str = "/inference.GRPCInferenceService/";

/// Serves a call to its end.
pub async fn serve(head: Parts, mut body: Body, mut caller: Caller, core: Arc<Core>) {
    let is_grpc = head
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if !is_grpc {
        return caller.refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    let deadline = head
        .headers
        .get("grpc-timeout")
        .and_then(|value| timeout(value.as_bytes()))
        .and_then(|timeout| Instant::now().checked_add(timeout));
    let ending = tokio::select! {
        biased;
        ending = answer(&head, &mut body, deadline, &core) => ending.unwrap_or_else(|ending| ending),
        () = caller.left() => Ending::Gone,
        () = passed(deadline) => Ending::Failed(expired()),
    };
    caller.answer(ending);
}

async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn expired() -> Status {
    Status::new(
        Code::DeadlineExceeded,
        "The deadline passed before the model answered.",
    )
}

async fn answer(
    head: &Parts,
    body: &mut Body,
    deadline: Option<Instant>,
    core: &Core,
) -> Result<Ending, Ending> {
    let Some(method) = head.uri.path().strip_prefix(SERVICE) else {
        return Err(unimplemented(head.uri.path()).into());
    };
    match method {
        "ModelInfer" => infer(head, body, deadline, core).await,
        "ModelReady" => {
            let (message, _charge) = body.read_message(&core.limits).await?;
            let asked = ModelReadyRequest::decode(message)
                .map_err(|error| malformed("ModelReadyRequest", &error))?;
            lease(core, &head.headers, &asked.name)?;
            message_of(&ModelReadyResponse { ready: true })
        }
        "ModelMetadata" => {
            let (message, _charge) = body.read_message(&core.limits).await?;
            let asked = ModelMetadataRequest::decode(message)
                .map_err(|error| malformed("ModelMetadataRequest", &error))?;
            let lease = lease(core, &head.headers, &asked.name)?;
            message_of(&metadata(asked, &lease))
        }
        "ServerLive" => {
            body.read_message(&core.limits).await?;
            message_of(&ServerLiveResponse { live: true })
        }
        "ServerReady" => {
            body.read_message(&core.limits).await?;
            message_of(&ServerReadyResponse {
                ready: core.queue.is_open(),
            })
        }
        "ServerMetadata" => {
            body.read_message(&core.limits).await?;
            message_of(&ServerMetadataResponse {
                name: "modelmesh".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                extensions: Vec::new(),
            })
        }
        #[cfg(test)]
        "Panic" => panic!("as a test asked for"),
        _ => Err(unimplemented(head.uri.path()).into()),
    }
}

async fn infer(
    head: &Parts,
    body: &mut Body,
    deadline: Option<Instant>,
    core: &Core,
) -> Result<Ending, Ending> {
    let (message, charge) = body.read_message(&core.limits).await?;
    let (answer, receive) = oneshot::channel();
    let queued = check(head, message, core).and_then(|(request, lease)| {
        let model = Arc::clone(&lease);
        let place = core
            .queue
            .push(Pending::new(request, deadline, answer, lease, charge))?;
        let queue = &core.queue;
        Ok((Waiting { place, queue }, model))
    });
    let (waiting, model) = queued.inspect_err(|_| {
        core.counts.refused.fetch_add(1, Ordering::Relaxed);
    })?;
    core.counts.requests.fetch_add(1, Ordering::Relaxed);
    let answer = tokio::select! {
        biased;
        answer = receive => answer,
        () = model.given_up() => return Err(stuck(&model.id, core.stuck_after).into()),
    };
    waiting.answered();
    match answer {
        Ok(Ok(answered)) => Ok(Ending::Message {
            frame: answered.frame,
            execution_us: Some(answered.execution_us),
        }),
        Ok(Err(status)) => Err(status.into()),
        Err(_) if deadline.is_some_and(|deadline| deadline <= Instant::now()) => {
            Err(expired().into())
        }
        Err(_) => Err(Status::new(
            Code::Internal,
            "The model server lost the request; please report it.",
        )
        .into()),
    }
}

fn stuck(model: &str, bound: Duration) -> Status {
    let sentence = format!(
        "Model {model} did not answer within {} s and was given up; its worker is replaced. Send less at once, or look at \
         the model's code.",
        bound.as_secs_f64()
    );
    Status::new(Code::DeadlineExceeded, sentence)
}

fn check(head: &Parts, message: Bytes, core: &Core) -> Result<(Request, Lease), Status> {
    let message = InferRequest::decode(message).map_err(|error| broken(&head.headers, &error))?;
    let lease = lease(core, &head.headers, &message.model_name)?;
    let request = Request::check(message, &lease)?;
    Ok((request, lease))
}

fn broken(headers: &HeaderMap, error: &Invalid) -> Status {
    match model_id(headers) {
        Ok(Some(id)) => Status::invalid(format!("Model {id}: {error}")),
        _ => Status::invalid(error.to_string()),
    }
}

/// A request's place in the queue. Dropped before [`Waiting::answered`], the caller has left and so does the request.
struct Waiting<'a> {
    place: Place,
    queue: &'a Queue,
}

impl Waiting<'_> {
    fn answered(self) {
        std::mem::forget(self);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.queue.cancel(self.place);
    }
}

/// The model of the header `mm-model-id` or `mm-model-id-bin`; without them, of the name in the body.
fn lease(core: &Core, headers: &HeaderMap, name: &str) -> Result<Lease, Status> {
    let id = model_id(headers)?.unwrap_or(Cow::Borrowed(name));
    if id.is_empty() {
        return Err(Status::invalid(
            "The request names no model; give its name or the header mm-model-id.",
        ));
    }
    core.models
        .lock()
        .lease(&id)
        .ok_or_else(|| Status::not_here(&id))
}

fn model_id(headers: &HeaderMap) -> Result<Option<Cow<'_, str>>, Status> {
    if let Some(value) = headers.get("mm-model-id") {
        let id = std::str::from_utf8(value.as_bytes())
            .map_err(|_| Status::invalid("The header mm-model-id is not UTF-8."))?;
        return Ok(Some(Cow::Borrowed(id)));
    }
    let Some(value) = headers.get("mm-model-id-bin") else {
        return Ok(None);
    };
    let id = unbase64(value.as_bytes()).and_then(|bytes| String::from_utf8(bytes).ok());
    match id {
        Some(id) => Ok(Some(Cow::Owned(id))),
        None => Err(Status::invalid(
            "The header mm-model-id-bin is not the base64 of an UTF-8 id.",
        )),
    }
}

fn metadata(asked: ModelMetadataRequest, lease: &Lease) -> ModelMetadataResponse {
    let signature = &lease.signature;
    // A model that takes any name and datatype shows one that works, so that a client can build its request from this.
    let tensor = |spec: &TensorSpec| TensorMetadata {
        name: if spec.name.is_empty() {
            "input-0"
        } else {
            &spec.name
        }
        .to_owned(),
        datatype: spec
            .datatype
            .map_or("FP64", |datatype| datatype.name())
            .to_owned(),
        shape: if spec.shape.is_empty() {
            vec![-1]
        } else {
            spec.shape.to_vec()
        },
    };
    ModelMetadataResponse {
        name: asked.name,
        versions: if asked.version.is_empty() {
            Vec::new()
        } else {
            vec![asked.version]
        },
        platform: signature.platform.to_string(),
        inputs: signature.inputs.iter().map(tensor).collect(),
        outputs: signature.outputs.iter().map(tensor).collect(),
    }
}

fn message_of(message: &impl Message) -> Result<Ending, Ending> {
    Ok(Ending::Message {
        frame: framed(&message.encode_to_vec())?,
        execution_us: None,
    })
}

fn malformed(what: &str, error: &prost::DecodeError) -> Status {
    Status::invalid(format!("The request body is not a {what}: {error}."))
}

fn unimplemented(path: &str) -> Status {
    Status::new(
        Code::Unimplemented,
        format!("The method {path} is not offered by this model server."),
    )
}
