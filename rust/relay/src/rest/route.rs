//! Which call a method and a path are.

use hyper::Method;

/// A call of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `GET /v2`
    ServerMetadata,
    /// `GET /v2/health/live`
    ServerLive,
    /// `GET /v2/health/ready`
    ServerReady,
    /// `/v2/models/{name}[/versions/{version}]` and what is below
    Model {
        /// What is asked of the model.
        action: Action,
        /// Not empty.
        name: String,
        /// Empty: none given.
        version: String,
    },
    /// `POST /v2/repository/index`
    RepositoryIndex,
    /// `POST /v2/repository/models/{name}/load`
    RepositoryLoad(String),
    /// `POST /v2/repository/models/{name}/unload`
    RepositoryUnload(String),
}

/// What can be asked of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `GET …/ready`
    Ready,
    /// `GET …`
    Metadata,
    /// `POST …/infer`
    Infer,
}

/// Why there is no call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// 404
    UnknownPath,
    /// 405; these are allowed.
    Method {
        /// The `Allow` header.
        allow: &'static str,
    },
    /// 400: a name in the path is empty or not UTF-8 once percent-decoded.
    BadName,
    /// 501: part of the protocol or its extensions, but not offered.
    NotOffered {
        /// Says so, and what to do instead.
        sentence: &'static str,
    },
}

const READ: &str = "GET, HEAD";
const WRITE: &str = "POST";

/// The call that `method` on `path` is. `path` is still percent-encoded; HEAD is GET.
pub fn route(method: &Method, path: &str) -> Result<Endpoint, NoRoute> {
    let path = path.strip_prefix("/v2").ok_or(NoRoute::UnknownPath)?;
    let path = path.strip_suffix('/').unwrap_or(path);
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let (endpoint, allow) = match *segments.as_slice() {
        [] if path.is_empty() => (Endpoint::ServerMetadata, READ),
        ["health", "live"] => (Endpoint::ServerLive, READ),
        ["health", "ready"] => (Endpoint::ServerReady, READ),
        ["models", name, ref below @ ..] => model(name, below)?,
        ["repository", "index"] => (Endpoint::RepositoryIndex, WRITE),
        ["repository", "models", name, "load"] => (Endpoint::RepositoryLoad(decoded(name)?), WRITE),
        ["repository", "models", name, "unload"] => {
            (Endpoint::RepositoryUnload(decoded(name)?), WRITE)
        }
        _ => return Err(NoRoute::UnknownPath),
    };
    let allowed = match allow {
        READ => method == Method::GET || method == Method::HEAD,
        _ => method == Method::POST,
    };
    if allowed {
        Ok(endpoint)
    } else {
        Err(NoRoute::Method { allow })
    }
}

fn model(name: &str, below: &[&str]) -> Result<(Endpoint, &'static str), NoRoute> {
    let (version, action) = match *below {
        ["versions", version, ref action @ ..] => (decoded(version)?, action),
        ref action => (String::new(), action),
    };
    let (action, allow) = match *action {
        [] => (Action::Metadata, READ),
        ["ready"] => (Action::Ready, READ),
        ["infer"] => (Action::Infer, WRITE),
        ["infer_stream" | "generate" | "generate_stream"] => {
            return Err(NoRoute::NotOffered {
                sentence: "Streaming and text generation over REST are not offered; call /infer.",
            });
        }
        ["stats" | "config"] => {
            return Err(NoRoute::NotOffered {
                sentence: "Statistics and configurations of models are not offered; the ops port has metrics.",
            });
        }
        _ => return Err(NoRoute::UnknownPath),
    };
    Ok((
        Endpoint::Model {
            action,
            name: decoded(name)?,
            version,
        },
        allow,
    ))
}

/// A path segment without percent-encoding. A `%` that begins no escape stands for itself.
fn decoded(segment: &str) -> Result<String, NoRoute> {
    match percent_encoding::percent_decode_str(segment).decode_utf8() {
        Ok(name) if !name.is_empty() => Ok(name.into_owned()),
        _ => Err(NoRoute::BadName),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(action: Action, name: &str, version: &str) -> Result<Endpoint, NoRoute> {
        Ok(Endpoint::Model {
            action,
            name: name.into(),
            version: version.into(),
        })
    }

    #[test]
    fn every_path_of_the_protocol() {
        for (path, endpoint) in [
            ("/v2", Ok(Endpoint::ServerMetadata)),
            ("/v2/", Ok(Endpoint::ServerMetadata)),
            ("/v2/health/live", Ok(Endpoint::ServerLive)),
            ("/v2/health/ready", Ok(Endpoint::ServerReady)),
            ("/v2/models/iris", model(Action::Metadata, "iris", "")),
            ("/v2/models/iris/", model(Action::Metadata, "iris", "")),
            ("/v2/models/iris/ready", model(Action::Ready, "iris", "")),
            (
                "/v2/models/iris/versions/3",
                model(Action::Metadata, "iris", "3"),
            ),
            (
                "/v2/models/iris/versions/3/ready",
                model(Action::Ready, "iris", "3"),
            ),
            (
                "/v2/models/a%2Fb%20%C3%A9/ready",
                model(Action::Ready, "a/b é", ""),
            ),
            ("/v2/models/50%/ready", model(Action::Ready, "50%", "")),
            ("/v2/models/ready/ready", model(Action::Ready, "ready", "")),
        ] {
            assert_eq!(route(&Method::GET, path), endpoint, "{path}");
            assert_eq!(route(&Method::HEAD, path), endpoint, "{path}");
            assert_eq!(
                route(&Method::POST, path),
                Err(NoRoute::Method { allow: READ }),
                "{path}"
            );
        }
        for (path, endpoint) in [
            ("/v2/models/iris/infer", model(Action::Infer, "iris", "")),
            (
                "/v2/models/iris/versions/v%2F1/infer",
                model(Action::Infer, "iris", "v/1"),
            ),
            ("/v2/repository/index", Ok(Endpoint::RepositoryIndex)),
            (
                "/v2/repository/models/iris/load",
                Ok(Endpoint::RepositoryLoad("iris".into())),
            ),
            (
                "/v2/repository/models/iris/unload",
                Ok(Endpoint::RepositoryUnload("iris".into())),
            ),
        ] {
            assert_eq!(route(&Method::POST, path), endpoint, "{path}");
            assert_eq!(
                route(&Method::GET, path),
                Err(NoRoute::Method { allow: WRITE }),
                "{path}"
            );
        }
    }

    #[test]
    fn what_is_no_path() {
        for path in [
            "",
            "/",
            "*",
            "/v1/models/iris:predict",
            "/v2x",
            "/v2//",
            "/v2/health",
            "/v2/models",
            "/v2/models/iris/predict",
            "/v2/models/iris/infer/more",
            "/v2/repository",
            "/v2/repository/models/iris",
            "/V2/health/live",
        ] {
            assert_eq!(
                route(&Method::GET, path),
                Err(NoRoute::UnknownPath),
                "{path}"
            );
        }
        for path in [
            "/v2/models//infer",
            "/v2/models/%FF/infer",
            "/v2/models/iris/versions//infer",
        ] {
            assert_eq!(route(&Method::POST, path), Err(NoRoute::BadName), "{path}");
        }
        let not_offered = route(&Method::POST, "/v2/models/iris/generate_stream");
        assert!(matches!(not_offered, Err(NoRoute::NotOffered { .. })));
    }
}
