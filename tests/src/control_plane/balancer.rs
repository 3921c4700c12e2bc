//! The balancer in front of several API servers, as HAProxy or kube-vip stand there in production: TCP, one address, the
//! connections in turn to the servers whose `/readyz` agrees. One that does not any more gets no new ones. Those that it has are
//! its own to end, as an API server does that goes in order; what it has not ended a little later is cut (HAProxy's
//! `shutdown-sessions`), so that clients with one long connection notice a server that is gone without a word.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::ControlPlaneError;

/// Between two looks at a server.
const CHECK: Duration = Duration::from_millis(500);
/// How long a server may take to answer a look, or to take a connection.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many looks in a row have to fail before a server is left out; one that succeeds takes it in again.
const FALL: u32 = 2;
/// How long a server that is left out keeps the connections it has: longer than an orderly end takes
/// ([`super::arguments::ORDERLY_END`]).
const DRAIN: Duration = Duration::from_secs(4);

/// A balancer that listens until it is dropped.
#[derive(Debug)]
pub struct Balancer {
    servers: Arc<Vec<Server>>,
    _tasks: JoinSet<()>,
}

/// One API server behind it.
#[derive(Debug)]
struct Server {
    address: SocketAddr,
    /// Whether it gets connections. Whoever splices one listens.
    up: watch::Sender<bool>,
}

impl Balancer {
    /// Binds a free port of 127.0.0.1. It forwards nothing before [`Self::serve`].
    ///
    /// # Errors
    /// When no port can be had.
    pub(super) async fn listen() -> Result<(TcpListener, SocketAddr), ControlPlaneError> {
        let failed = |source| ControlPlaneError::Listen { source };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok((listener, address))
    }

    /// Forwards connections to the servers at these ports of 127.0.0.1, whose certificates `authority` (PEM) signed.
    ///
    /// # Errors
    /// When no HTTP client can be made of the authority.
    pub(super) fn serve(listener: TcpListener, ports: &[u16], authority: &str) -> Result<Self, ControlPlaneError> {
        let certificate = reqwest::Certificate::from_pem(authority.as_bytes())?;
        let of = |port: &u16| Server { address: (Ipv4Addr::LOCALHOST, *port).into(), up: watch::Sender::new(false) };
        let servers: Arc<Vec<Server>> = Arc::new(ports.iter().map(of).collect());
        let mut tasks = JoinSet::new();
        for number in 0..servers.len() {
            // A connection of its own for each look: what is asked is whether the server takes any.
            let client = reqwest::Client::builder()
                .no_proxy()
                .pool_max_idle_per_host(0)
                .timeout(PATIENCE)
                .tls_certs_only([certificate.clone()])
                .build()?;
            tasks.spawn(keep_looking(client, Arc::clone(&servers), number));
        }
        tasks.spawn(accept(listener, Arc::clone(&servers)));
        Ok(Self { servers, _tasks: tasks })
    }

    /// How many servers get connections now.
    #[must_use]
    pub fn servers(&self) -> usize {
        self.servers.iter().filter(|server| *server.up.borrow()).count()
    }
}

async fn keep_looking(client: reqwest::Client, servers: Arc<Vec<Server>>, number: usize) {
    let Some(server) = servers.get(number) else { return };
    let url = format!("https://{}/readyz", server.address);
    let mut beat = interval(CHECK);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed = 0;
    loop {
        beat.tick().await;
        let ready = client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success());
        failed = if ready { 0 } else { failed + 1 };
        let up = ready || (failed < FALL && *server.up.borrow());
        server.up.send_if_modified(|before| std::mem::replace(before, up) != up);
    }
}

async fn accept(listener: TcpListener, servers: Arc<Vec<Server>>) {
    let turn = Arc::new(AtomicUsize::new(0));
    // Connections end with the balancer.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((client, _)) => {
                connections.spawn(forward(client, Arc::clone(&servers), Arc::clone(&turn)));
            }
            Err(error) => {
                tracing::warn!(%error, "the balancer can't take a connection");
                tokio::time::sleep(CHECK).await;
            }
        }
    }
}

/// One connection. Where nobody is up it is closed, as a balancer without servers does.
async fn forward(mut client: TcpStream, servers: Arc<Vec<Server>>, turn: Arc<AtomicUsize>) {
    let first = turn.fetch_add(1, Ordering::Relaxed);
    for step in 0..servers.len() {
        let Some(server) = servers.get((first + step) % servers.len()) else { return };
        let mut up = server.up.subscribe();
        if !*up.borrow_and_update() {
            continue;
        }
        // It may have gone since the last look; another one takes the connection then.
        let Ok(Ok(mut connected)) = timeout(PATIENCE, TcpStream::connect(server.address)).await else { continue };
        // Small requests are not held back for more.
        let _ = (client.set_nodelay(true), connected.set_nodelay(true));
        tokio::select! {
            // A side that breaks off has told the other one so.
            _ = copy_bidirectional(&mut client, &mut connected) => {}
            () = drained(&mut up) => {}
        }
        return;
    }
}

/// Returns once a server was left out for [`DRAIN`] without a break.
async fn drained(up: &mut watch::Receiver<bool>) {
    loop {
        if up.wait_for(|up| !up).await.is_err() || timeout(DRAIN, up.wait_for(|up| *up)).await.is_err() {
            return;
        }
    }
}
