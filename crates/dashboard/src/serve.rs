//! Serves a router to a bounded number of connections, each of which has to say what it wants in time and to take what it is told.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

/// Connections at once; more wait until one ends.
const CONNECTIONS: usize = 64;
/// How long a connection may be silent before and between its requests.
const SILENCE: Duration = Duration::from_secs(10);
/// How long what was sent may lie unread (tcp(7), `TCP_USER_TIMEOUT`).
const UNREAD: Duration = Duration::from_secs(30);
/// After a connection could not be taken, e.g. because no file descriptor is left.
const PAUSE: Duration = Duration::from_millis(200);

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, router: Router) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection to the dashboard was not taken");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let router = router.clone();
        connections.spawn(async move {
            one(stream, router).await;
            drop(place);
        });
    }
}

async fn one(stream: TcpStream, router: Router) {
    let unread = u32::try_from(UNREAD.as_millis()).unwrap_or(u32::MAX);
    // A system that can't is only a little more patient; and small events are not to wait for larger ones.
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, unread);
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to the dashboard ended");
    }
}
