//! Connections and answers of the test server.

use std::io::{self, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_RANGE, LOCATION, RANGE};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::{Fault, MAX_REMEMBERED, Request, Shared, lock};

pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;
type Pieces = BoxStream<'static, io::Result<Bytes>>;

const PIECE: usize = 128 << 10;

/// Takes connections and answers their requests until the task is aborted; its connections end with it.
pub(crate) async fn accept<F, A>(listener: TcpListener, acceptor: TlsAcceptor, answer: F)
where
    F: Fn(http::Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<Body>> + Send,
{
    let mut connections = JoinSet::new();
    loop {
        // Finished connections are let go, so that the set does not grow for ever.
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (acceptor, answer) = (acceptor.clone(), answer.clone());
        connections.spawn(async move {
            // A client that gives up or does not trust us is its own business.
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = hyper::service::service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, io::Error>(answer.await) }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

pub(super) async fn answer(shared: &Arc<Shared>, path: &str, headers: &HeaderMap) -> Response<Body> {
    let fault = fault_for(shared, path);
    let response = match respond(shared, path, headers, fault).await {
        Ok(response) => response,
        Err(error) if error.kind() == io::ErrorKind::NotFound => plain(StatusCode::NOT_FOUND),
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR),
    };
    let mut requests = lock(&shared.requests);
    if requests.len() < MAX_REMEMBERED {
        requests.push(Request {
            path: path.to_owned(),
            range: headers.get(RANGE).and_then(|value| value.to_str().ok()).map(str::to_owned),
            status: response.status().as_u16(),
        });
    }
    response
}

fn fault_for(shared: &Shared, path: &str) -> Option<Fault> {
    lock(&shared.faults)
        .iter_mut()
        .rev()
        .filter(|(part, _)| path.contains(part.as_str()))
        .find_map(|(_, fault)| fault.take().then(|| fault.clone()))
}

async fn respond(
    shared: &Arc<Shared>,
    path: &str,
    headers: &HeaderMap,
    fault: Option<Fault>,
) -> io::Result<Response<Body>> {
    match &fault {
        Some(Fault::Status(status) | Fault::StatusTimes { status, .. }) => {
            return Ok(plain(StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)));
        }
        Some(Fault::Redirect(to)) => {
            let mut response = plain(StatusCode::FOUND);
            response.headers_mut().insert(LOCATION, to.parse().map_err(io::Error::other)?);
            return Ok(response);
        }
        _ => {}
    }
    let (content, length, etag) = open(shared, path, &fault).await?;
    let asked = match &fault {
        Some(Fault::IgnoreRange) => None,
        Some(Fault::IgnoreIfRange) if headers.contains_key(IF_RANGE) => None,
        _ => range(headers, &etag, length),
    };
    let (start, end) = asked.unwrap_or((0, length));
    let mut pieces = content.read(start, end).await?;
    let mut announced = Some(end - start);
    let shift = u64::from(fault == Some(Fault::WrongRange));
    match fault {
        Some(Fault::Endless) => {
            announced = None;
            let zeros = Bytes::from_static(&[0; 64 << 10]);
            pieces = pieces.chain(stream::repeat_with(move || Ok(zeros.clone()))).boxed();
        }
        Some(Fault::Trickle { bytes, every }) => pieces = trickle(pieces, bytes, every),
        Some(Fault::Stall) => pieces = stream::pending().boxed(),
        Some(Fault::BreakAfter(bytes) | Fault::BreakAfterTimes { bytes, .. }) => pieces = break_after(pieces, bytes),
        _ => {}
    }
    let mut response = Response::new(counted(shared, path, pieces));
    let head = response.headers_mut();
    if let Some(length) = announced {
        head.insert(CONTENT_LENGTH, length.into());
    }
    head.insert(ETAG, etag.parse().map_err(io::Error::other)?);
    head.insert(ACCEPT_RANGES, http::HeaderValue::from_static("bytes"));
    if asked.is_some() {
        let value = format!("bytes {}-{}/{length}", start + shift, end - 1);
        head.insert(CONTENT_RANGE, value.parse().map_err(io::Error::other)?);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// What is served: a file, or bytes that stand in for it.
enum Content {
    File(PathBuf),
    Bytes(Bytes),
}

impl Content {
    async fn read(self, start: u64, end: u64) -> io::Result<Pieces> {
        let path = match self {
            Self::Bytes(bytes) => {
                let clamp = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                let part = bytes.slice(clamp(start)..clamp(end));
                return Ok(stream::iter([Ok(part)]).boxed());
            }
            Self::File(path) => path,
        };
        let mut file = File::open(path).await?;
        file.seek(SeekFrom::Start(start)).await?;
        let pieces = stream::try_unfold((file, end - start), |(mut file, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            let mut piece = bytes::BytesMut::with_capacity(PIECE);
            let mut limited = (&mut file).take(left.min(PIECE as u64));
            while limited.read_buf(&mut piece).await? > 0 {}
            let left = left - piece.len() as u64;
            Ok(Some((piece.freeze(), (file, left))))
        });
        Ok(pieces.boxed())
    }
}

async fn open(shared: &Shared, path: &str, fault: &Option<Fault>) -> io::Result<(Content, u64, String)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let file = locate(&shared.folder, path)?;
    let replaced = match fault {
        Some(Fault::Replace(bytes)) => Some(bytes.clone()),
        Some(Fault::FlipBit(offset)) => {
            let mut bytes = tokio::fs::read(&file).await?;
            let at = usize::try_from(*offset).unwrap_or(usize::MAX);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1;
            }
            Some(bytes)
        }
        _ => None,
    };
    if let Some(bytes) = replaced {
        let length = bytes.len() as u64;
        return Ok((Content::Bytes(bytes.into()), length, "\"replaced\"".to_owned()));
    }
    let metadata = tokio::fs::metadata(&file).await?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let changed = match fault {
        Some(Fault::ChangingEtag) => COUNTER.fetch_add(1, Ordering::Relaxed),
        _ => 0,
    };
    let written = metadata.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let etag = format!("\"{:x}-{written:x}-{changed:x}\"", metadata.len());
    Ok((Content::File(file), metadata.len(), etag))
}

/// The file behind a path; nothing outside the folder.
fn locate(folder: &Path, path: &str) -> io::Result<PathBuf> {
    let relative = Path::new(path.trim_start_matches('/'));
    if relative.components().all(|component| matches!(component, Component::Normal(_))) {
        Ok(folder.join(relative))
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// One `bytes=a-b` range, as half-open bounds. Anything else is answered with the whole file (RFC 9110, 14.2).
fn range(headers: &HeaderMap, etag: &str, length: u64) -> Option<(u64, u64)> {
    if headers.get(IF_RANGE).is_some_and(|value| value.as_bytes() != etag.as_bytes()) {
        return None;
    }
    let (start, end) = headers.get(RANGE)?.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    let start: u64 = start.parse().ok()?;
    let end = if end.is_empty() { length } else { end.parse::<u64>().ok()?.saturating_add(1).min(length) };
    (start < end).then_some((start, end))
}

fn trickle(pieces: Pieces, bytes: usize, every: Duration) -> Pieces {
    let state: (Pieces, Bytes) = (pieces, Bytes::new());
    stream::try_unfold(state, move |(mut pieces, mut rest)| async move {
        while rest.is_empty() {
            match pieces.next().await {
                None => return Ok(None),
                Some(piece) => rest = piece?,
            }
        }
        tokio::time::sleep(every).await;
        let now = rest.split_to(bytes.max(1).min(rest.len()));
        Ok(Some((now, (pieces, rest))))
    })
    .boxed()
}

fn break_after(pieces: Pieces, bytes: u64) -> Pieces {
    stream::try_unfold((pieces, bytes), |(mut pieces, left)| async move {
        if left == 0 {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let Some(piece) = pieces.next().await else { return Ok(None) };
        let mut piece = piece?;
        piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left - piece.len() as u64;
        // Let what was sent so far reach the client before the connection goes.
        tokio::task::yield_now().await;
        Ok(Some((piece, (pieces, left))))
    })
    .boxed()
}

fn counted(shared: &Arc<Shared>, path: &str, pieces: Pieces) -> Body {
    let (shared, path) = (Arc::clone(shared), path.to_owned());
    let frames = pieces.map(move |piece| {
        if let Ok(bytes) = &piece {
            *lock(&shared.sent).entry(path.clone()).or_default() += bytes.len() as u64;
        }
        piece.map(Frame::data)
    });
    StreamBody::new(frames).boxed_unsync()
}

fn plain(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}
