//! Which models a request is for: by its headers, else by its message.

use crate::body::Body;
use crate::call::Door;
use crate::frames::{PREFIX_BYTES, gunzip, parse_prefix};
use crate::headers::gzip;
use crate::id_headers;
use crate::method::Method;
use crate::name::Name;
use crate::status::{Code, Status};

/// Bytes of a message in which its id is looked for first; ids come early.
const ID_BYTES_FIRST: usize = 64 << 10;

/// The names a request asks for: one, or several by its headers.
///
/// # Errors
/// INVALID_ARGUMENT when there is none, or none that can be read.
pub async fn names_of(door: &Door<'_>, body: &mut Body<'_>) -> Result<Vec<Name>, Status> {
    if door.method.message_first
        && let Some(name) = name_in_message(door, body).await?
    {
        return Ok(vec![name]);
    }
    let names = id_headers::names_of(door.headers)?;
    if !names.is_empty() {
        return Ok(names);
    }
    let nameless = || door.method.nameless();
    if door.method.message_first || door.method.id_path.is_empty() {
        return Err(nameless());
    }
    let name = name_in_message(door, body).await?;
    Ok(vec![name.ok_or_else(nameless)?])
}

/// The name in the message; `None` when the message, looked through to its end, names nothing.
async fn name_in_message(door: &Door<'_>, body: &mut Body<'_>) -> Result<Option<Name>, Status> {
    let (method, config) = (door.method, &door.event_loop.plane.config);
    let Some((compressed, length)) = parse_prefix(&body.first(PREFIX_BYTES).await?) else {
        return Err(Status::new(
            Code::InvalidArgument,
            "The request holds no message; send one that names a model.",
        ));
    };
    let mut wanted = length.min(ID_BYTES_FIRST);
    loop {
        let bytes = body.first(PREFIX_BYTES + wanted).await?;
        let message = bytes.get(PREFIX_BYTES..).unwrap_or_default();
        let (named, whole) = if compressed {
            if !gzip(door.headers) {
                return Err(unreadable());
            }
            let (plain, all) = gunzip(
                message,
                config
                    .message_bytes_max
                    .min(ID_BYTES_FIRST.max(config.kept_body_bytes_max)),
            )
            .map_err(|_| unreadable())?;
            let whole = all && wanted == length;
            (named(method, &plain, whole)?, whole)
        } else {
            let whole = wanted == length;
            (named(method, message, whole)?, whole)
        };
        if named.is_some() || whole {
            return Ok(named);
        }
        if wanted == length || wanted >= config.kept_body_bytes_max {
            return Err(unreadable());
        }
        wanted = length.min(wanted * 4);
    }
}

fn unreadable() -> Status {
    Status::new(
        Code::InvalidArgument,
        "The model's id cannot be read from the message (compressed otherwise than by gzip, or far behind its start); send it in the header mm-model-id or mm-vmodel-id.",
    )
}

/// The name in (the start of) a message; `None`: it names nothing so far.
fn named(method: &Method, message: &[u8], whole: bool) -> Result<Option<Name>, Status> {
    let malformed = |error: inference::splice::SpliceError| {
        Status::new(Code::InvalidArgument, error.to_string())
    };
    let id = match inference::splice::extract(&method.id_path, message) {
        Ok(Some("")) => return Err(method.nameless()),
        Ok(Some(id)) => id,
        Err(error) if whole => return Err(malformed(error)),
        Ok(None) | Err(_) => return Ok(None),
    };
    let version = match inference::splice::extract(method.version_path, message) {
        Ok(version) => version.unwrap_or_default(),
        Err(error) if whole => return Err(malformed(error)),
        // A version behind the start of a large message is not looked for.
        Err(_) => "",
    };
    Ok(Some(Name::new(method.kind, id, version)))
}
