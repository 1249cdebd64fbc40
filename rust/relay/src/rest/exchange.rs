//! One REST call: the request's JSON to a message, through the relay, and the answer's message to JSON.

use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, EXPECT, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};
use inference::infer::{InferRequest, InferResponse};
use inference::messages::{
    ModelMetadataRequest, ModelReadyRequest, ModelReadyResponse, ServerLiveRequest,
    ServerLiveResponse, ServerMetadataRequest, ServerReadyRequest, ServerReadyResponse,
};
use inference::{Invalid, rest};
use prost::Message;
use tokio::sync::Semaphore;

use super::body::{Received, Upload};
use super::route::{Action, Endpoint, NoRoute, route};
use super::{body, headers};
use crate::deadline::deadline_of;
use crate::dispatch::{self, Dispatcher};
use crate::name::Name;
use crate::status::{Code, Status};

/// Conversions of more bytes than this leave the loop, which serves others meanwhile.
const ON_LOOP_BYTES_MAX: usize = 256 * 1024;

/// Conversions that may run beside the loops at once, in the whole process; more wait.
static OFF_LOOP: Semaphore = Semaphore::const_new(2);

/// A body, and the response headers that come with it.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

/// A call that failed; the headers are those that came with the failure.
struct Failure {
    status: Status,
    headers: HeaderMap,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure {
            status,
            headers: HeaderMap::new(),
        }
    }
}

/// Answer one request. Never fails: what goes wrong is an answer with `{"error": …}`.
pub async fn answer(dispatcher: &Dispatcher, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let mut upload = Upload::new(body);
    let answer = match route(&head.method, head.uri.path()) {
        Ok(endpoint) => call(dispatcher, &head, &mut upload, endpoint).await,
        Err(no_route) => Err(unrouted(no_route, &head)),
    };
    let mut response = match answer {
        Ok(answer) => respond(answer.status, answer.headers, answer.body),
        Err(failure) => refuse(failure),
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if !is_over(&head, &mut upload).await {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whether the client has sent all of its request. If not, the connection ends with the answer, which has to say so: a
/// client that sent its next request there would get a reset for it.
async fn is_over(head: &Parts, upload: &mut Upload<Incoming>) -> bool {
    if upload.is_read() {
        return true;
    }
    // Reading asks a client that waits for "100 Continue" to send what is refused.
    !head.headers.contains_key(EXPECT) && upload.read_out().await
}

fn respond(status: StatusCode, from: HeaderMap, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    headers::pass_back(from, response.headers_mut());
    response
}

fn refuse(failure: Failure) -> Response<Full<Bytes>> {
    let Failure { status, headers } = failure;
    let code =
        StatusCode::from_u16(status.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = respond(code, headers, rest::error(&status.message));
    if let Some(after) = status.retry_after {
        response
            .headers_mut()
            .insert(RETRY_AFTER, headers::retry_after(after));
    }
    response
}

fn unrouted(no_route: NoRoute, head: &Parts) -> Failure {
    let (method, path) = (&head.method, head.uri.path());
    let status = match no_route {
        NoRoute::UnknownPath => {
            let sentence =
                format!("There is nothing at {path}; calls are as in /v2/models/MODEL/infer.");
            Status::new(Code::Unimplemented, sentence).over_http(404)
        }
        NoRoute::Method { allow } => {
            let sentence = format!("{method} is not possible on {path}; use {allow}.");
            let status = Status::new(Code::Unimplemented, sentence).over_http(405);
            let headers = HeaderMap::from_iter([(ALLOW, HeaderValue::from_static(allow))]);
            return Failure { status, headers };
        }
        NoRoute::BadName => {
            let sentence =
                format!("A name in {path} is empty or not UTF-8; percent-encode the model's name.");
            Status::new(Code::InvalidArgument, sentence)
        }
        NoRoute::NotOffered { sentence } => Status::new(Code::Unimplemented, sentence),
    };
    status.into()
}

async fn call(
    dispatcher: &Dispatcher,
    head: &Parts,
    upload: &mut Upload<Incoming>,
    endpoint: Endpoint,
) -> Result<Answer, Failure> {
    let call = Call {
        dispatcher,
        head,
        deadline: deadline_of(&head.headers, Instant::now())?,
    };
    match endpoint {
        Endpoint::ServerLive => call.server_live().await,
        Endpoint::ServerReady => call.server_ready().await,
        Endpoint::ServerMetadata => call.server_metadata().await,
        Endpoint::Model {
            action: Action::Ready,
            name,
            version,
        } => call.model_ready(name, version).await,
        Endpoint::Model {
            action: Action::Metadata,
            name,
            version,
        } => call.model_metadata(name, version).await,
        Endpoint::Model {
            action: Action::Infer,
            name,
            version,
        } => call.infer(upload, name, version).await,
        Endpoint::RepositoryIndex => call.repository_index(upload).await,
        Endpoint::RepositoryLoad(name) => {
            call.repository_model(
                upload,
                "/inference.GRPCInferenceService/RepositoryModelLoad",
                &name,
            )
            .await
        }
        Endpoint::RepositoryUnload(name) => {
            call.repository_model(
                upload,
                "/inference.GRPCInferenceService/RepositoryModelUnload",
                &name,
            )
            .await
        }
    }
}

/// What all calls have.
struct Call<'a> {
    dispatcher: &'a Dispatcher,
    head: &'a Parts,
    deadline: Option<Instant>,
}

impl Call<'_> {
    async fn server_live(&self) -> Result<Answer, Failure> {
        let reply = self
            .control(
                "/inference.GRPCInferenceService/ServerLive",
                &ServerLiveRequest {},
            )
            .await?;
        let live = decoded::<ServerLiveResponse>(&reply)?.live;
        Ok(ok_if(live, reply.headers, rest::live(live)))
    }

    async fn server_ready(&self) -> Result<Answer, Failure> {
        let reply = self
            .control(
                "/inference.GRPCInferenceService/ServerReady",
                &ServerReadyRequest {},
            )
            .await?;
        let ready = decoded::<ServerReadyResponse>(&reply)?.ready;
        Ok(ok_if(ready, reply.headers, rest::ready(ready)))
    }

    async fn server_metadata(&self) -> Result<Answer, Failure> {
        let reply = self
            .control(
                "/inference.GRPCInferenceService/ServerMetadata",
                &ServerMetadataRequest {},
            )
            .await?;
        let body = rest::server_metadata(reply.message).map_err(bad_answer)?;
        Ok(ok_if(true, reply.headers, body))
    }

    async fn model_ready(&self, name: String, version: String) -> Result<Answer, Failure> {
        let request = ModelReadyRequest { name, version };
        let reply = self
            .control("/inference.GRPCInferenceService/ModelReady", &request)
            .await?;
        let ready = decoded::<ModelReadyResponse>(&reply)?.ready;
        Ok(ok_if(
            ready,
            reply.headers,
            rest::model_ready(&request.name, ready),
        ))
    }

    async fn model_metadata(&self, name: String, version: String) -> Result<Answer, Failure> {
        let asked = headers::name(&self.head.headers, &name, &version)?;
        let request = ModelMetadataRequest { name, version };
        let message = request.encode_to_vec().into();
        let reply = self
            .dispatch(
                "/inference.GRPCInferenceService/ModelMetadata",
                Some(asked),
                message,
            )
            .await?;
        let body = rest::model_metadata(reply.message, &request.name).map_err(bad_answer)?;
        Ok(ok_if(true, reply.headers, body))
    }

    async fn infer(
        &self,
        upload: &mut Upload<Incoming>,
        name: String,
        version: String,
    ) -> Result<Answer, Failure> {
        if self
            .head
            .headers
            .contains_key("inference-header-content-length")
        {
            let sentence = "Binary tensors over REST are not offered yet; send JSON without the header \
                            Inference-Header-Content-Length, or raw contents over gRPC.";
            return Err(Status::new(Code::Unimplemented, sentence).into());
        }
        let asked = headers::name(&self.head.headers, &name, &version)?;
        let received = self.read(upload).await?;
        let (parsed, name) = off_loop(received.bytes.len(), move || {
            let parsed = rest::parse_infer(&received.bytes, &name, &version);
            (parsed.map(InferRequest::encode), name)
        })
        .await;
        let message = parsed.map_err(|invalid| self.malformed(&invalid))?;
        let bytes_max = self.dispatcher.config().message_bytes_max;
        if message.len() > bytes_max {
            return Err(
                Status::too_large("request", message.len() as u64, bytes_max as u64).into(),
            );
        }
        let reply = self
            .dispatch(
                "/inference.GRPCInferenceService/ModelInfer",
                Some(asked),
                message,
            )
            .await?;
        let answer = reply.message;
        let body = off_loop(answer.len(), move || {
            let response = InferResponse::decode(answer).map_err(bad_answer)?;
            rest::infer(&response, &name)
                .map_err(|invalid| Status::new(Code::Unimplemented, invalid.to_string()))
        })
        .await?;
        Ok(ok_if(true, reply.headers, body))
    }

    async fn repository_index(&self, upload: &mut Upload<Incoming>) -> Result<Answer, Failure> {
        let body = self.read(upload).await?;
        let request = rest::parse_index(&body.bytes).map_err(|invalid| self.malformed(&invalid))?;
        let reply = self
            .control("/inference.GRPCInferenceService/RepositoryIndex", &request)
            .await?;
        let answer = reply.message;
        let body = off_loop(answer.len(), move || rest::index(answer))
            .await
            .map_err(bad_answer)?;
        Ok(ok_if(true, reply.headers, body))
    }

    async fn repository_model(
        &self,
        upload: &mut Upload<Incoming>,
        path: &'static str,
        name: &str,
    ) -> Result<Answer, Failure> {
        let body = self.read(upload).await?;
        let request = rest::parse_model_control(&body.bytes, name)
            .map_err(|invalid| self.malformed(&invalid))?;
        let reply = self.control(path, &request).await?;
        Ok(ok_if(true, reply.headers, b"{}".to_vec()))
    }

    async fn read(&self, upload: &mut Upload<Incoming>) -> Result<Received, Status> {
        body::read(
            &self.head.headers,
            upload,
            self.dispatcher.config().message_bytes_max,
        )
        .await
    }

    fn malformed(&self, invalid: &Invalid) -> Status {
        self.dispatcher.count_malformed();
        Status::new(Code::InvalidArgument, invalid.to_string())
    }

    async fn control(
        &self,
        path: &'static str,
        request: &impl Message,
    ) -> Result<dispatch::Reply, Failure> {
        self.dispatch(path, None, request.encode_to_vec().into())
            .await
    }

    async fn dispatch(
        &self,
        path: &'static str,
        name: Option<Name>,
        message: Bytes,
    ) -> Result<dispatch::Reply, Failure> {
        let headers = headers::passed_on(&self.head.headers);
        let request = dispatch::Request {
            path,
            headers,
            name,
            deadline: self.deadline,
            message,
        };
        let reply = self.dispatcher.dispatch(request).await;
        if reply.status.code == Code::Ok {
            Ok(reply)
        } else {
            Err(Failure {
                status: reply.status,
                headers: reply.headers,
            })
        }
    }
}

/// 200, or 503 when what was asked about is not (yet) so.
fn ok_if(so: bool, headers: HeaderMap, body: Vec<u8>) -> Answer {
    let status = if so {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    Answer {
        status,
        headers,
        body,
    }
}

fn decoded<M: Message + Default>(reply: &dispatch::Reply) -> Result<M, Status> {
    M::decode(reply.message.clone()).map_err(|error| {
        Status::new(
            Code::Internal,
            format!("The answer of the control plane is malformed: {error}."),
        )
    })
}

fn bad_answer(invalid: Invalid) -> Status {
    Status::new(
        Code::Internal,
        format!("The model server answered what breaks the protocol. {invalid}"),
    )
}

/// Runs a conversion of `bytes` bytes, beside the loop when they are many.
pub async fn off_loop<T: Send + 'static>(
    bytes: usize,
    convert: impl FnOnce() -> T + Send + 'static,
) -> T {
    if bytes <= ON_LOOP_BYTES_MAX {
        return convert();
    }
    let permit = OFF_LOOP.acquire().await.expect("it is never closed");
    let converted = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        convert()
    });
    match converted.await {
        Ok(converted) => converted,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
