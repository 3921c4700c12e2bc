//! The page's files, and the stream of events, behind headers that let nothing in from elsewhere.

use crate::board::{Begin, Board, Reader, Source, is_away};
use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use futures::{Stream, stream};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{sync::broadcast, task::JoinSet};

/// How many readers there may be at once.
const READERS: usize = 32;
/// A line that says nothing, so that proxies on the way know that the connection lives.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// What the page may do: load its own files, and hear of its own server. Nothing in it may become markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

const HEADERS: [(HeaderName, &str); 8] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
];

/// The files: name, kind, content.
const FILES: [(&str, &str, &str); 6] = [
    ("", "text/html; charset=utf-8", include_str!("../page/index.html")),
    ("style.css", "text/css; charset=utf-8", include_str!("../page/style.css")),
    ("page.js", "text/javascript; charset=utf-8", include_str!("../page/page.js")),
    ("model.js", "text/javascript; charset=utf-8", include_str!("../page/model.js")),
    ("draw.js", "text/javascript; charset=utf-8", include_str!("../page/draw.js")),
    ("icon.svg", "image/svg+xml", include_str!("../page/icon.svg")),
];

/// The page and the task that looks for its readers; both end when it is dropped.
#[derive(Debug)]
pub struct Dashboard {
    board: Arc<Board>,
    _looking: JoinSet<()>,
}

impl Dashboard {
    /// Begins to look as soon as there is a reader.
    pub fn new(source: impl Source) -> Self {
        let board = Board::new();
        let (source, shared) = (Arc::new(source), Arc::clone(&board));
        let mut looking = JoinSet::new();
        looking.spawn(async move { shared.run(source).await });
        Self { board, _looking: looking }
    }

    /// Everything that is served, below a path that begins with `/` and does not end with it, or is empty.
    pub fn router(&self, below: &str) -> Router {
        let mut router =
            Router::new().route(&format!("{below}/events"), get(events).with_state(Arc::clone(&self.board)));
        for (name, kind, content) in FILES {
            let file = move || async move { ([(header::CONTENT_TYPE, kind)], content) };
            router = router.route(&format!("{below}/{name}"), get(file));
        }
        router.layer(map_response(guarded))
    }
}

async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn events(State(board): State<Arc<Board>>) -> Response {
    let Some(reader) = board.reader(READERS) else {
        let said = "too many read this page at once: try again in a moment\n";
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "10")], said).into_response();
    };
    let kind = [
        (header::CONTENT_TYPE, "text/event-stream"),
        // The next one may be answered by another replica, which leads.
        (header::CONNECTION, "close"),
        // nginx would hold events back.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (kind, Body::from_stream(stream_of(board, reader))).into_response()
}

struct Reading {
    board: Arc<Board>,
    _reader: Reader,
    next: VecDeque<Bytes>,
    changes: Option<broadcast::Receiver<Bytes>>,
    over: bool,
}

fn stream_of(board: Arc<Board>, reader: Reader) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> {
    // The first bytes at once: a reader knows that it is heard, and after how long to come again.
    let next = VecDeque::from([Bytes::from_static(b"retry: 2000\n\n")]);
    let reading = Reading { board, _reader: reader, next, changes: None, over: false };
    stream::unfold(reading, |mut reading| async move {
        let event = reading.event().await?;
        Some((Ok(event), reading))
    })
}

impl Reading {
    async fn event(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.next.pop_front() {
                self.over = is_away(&event);
                return Some(event);
            }
            if self.over {
                return None;
            }
            let Some(changes) = &mut self.changes else {
                match tokio::time::timeout(HEARTBEAT, self.board.begin()).await {
                    Ok(Begin::Fleet(begin, changes)) => {
                        self.next.extend(begin);
                        self.changes = Some(changes);
                    }
                    Ok(Begin::Away(away)) => self.next.push_back(away),
                    Err(_) => return Some(heartbeat()),
                }
                continue;
            };
            match tokio::time::timeout(HEARTBEAT, changes.recv()).await {
                Ok(Ok(event)) => self.next.push_back(event),
                // Too slow for the changes: the whole again.
                Ok(Err(broadcast::error::RecvError::Lagged(_))) => self.changes = None,
                Ok(Err(broadcast::error::RecvError::Closed)) => return None,
                Err(_) => return Some(heartbeat()),
            }
        }
    }
}

const fn heartbeat() -> Bytes {
    Bytes::from_static(b": still here\n\n")
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
