//! The version of the API servers, and their time. Behind one address there may be several, of different versions while the control
//! plane is updated: the oldest of those that answered lately is what a kubelet has to get along with. A balancer chooses one for
//! each connection, so each question has a connection of its own.

use crate::{
    clock::Clock,
    metrics::Metrics,
    skew::{Dated, Skew},
};
use bascule_api::KubernetesVersion;
use chrono::{DateTime, TimeDelta, Utc};
use http::{HeaderMap, Request, header};
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::{Client, client::Body};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// Between two questions.
const EVERY: Duration = Duration::from_secs(30);
/// Until there is a first answer.
const AT_FIRST: Duration = Duration::from_secs(2);
/// How many answers count: ten minutes of them.
const LATELY: usize = 20;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A change of the difference of the clocks by less than this is no news: a `Date` is cut to the second.
const NOTICED: TimeDelta = TimeDelta::seconds(1);

/// What API servers said of themselves lately. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ApiServers {
    versions: Arc<Mutex<VecDeque<KubernetesVersion>>>,
    skew: Arc<Mutex<Skew>>,
    own: Clock,
}

impl ApiServers {
    /// None that answered yet; their time is compared with this machine's.
    #[must_use]
    pub fn new(own: &Clock) -> Self {
        Self { versions: Arc::default(), skew: Arc::default(), own: own.clone() }
    }

    /// Their time: this machine's, corrected by what they say. Uncorrected before the first answer.
    #[must_use]
    pub fn clock(&self) -> Clock {
        let servers = self.clone();
        Clock::from_fn(move || {
            let (own, ahead) = (servers.own.now(), servers.ahead().unwrap_or_default());
            own.checked_add_signed(ahead).unwrap_or(own)
        })
    }

    /// How far this machine's clock is ahead of theirs; `None` before the first answer.
    #[must_use]
    pub fn skew(&self) -> Option<TimeDelta> {
        self.ahead().map(|ahead| -ahead)
    }

    fn ahead(&self) -> Option<TimeDelta> {
        self.skew.lock().unwrap_or_else(PoisonError::into_inner).ahead()
    }

    /// The oldest that answered lately.
    #[must_use]
    pub fn oldest(&self) -> Option<KubernetesVersion> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner).iter().min().copied()
    }

    fn heard(&self, version: KubernetesVersion) {
        let mut heard = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        heard.push_back(version);
        if heard.len() > LATELY {
            heard.pop_front();
        }
    }

    /// Asks again and again; tells `changes` when the oldest is another one or the time is. Nobody else uses the client: a
    /// connection that somebody left open would be taken for the question.
    pub(super) async fn keep_asking(self, client: Client, metrics: Metrics, changes: Arc<watch::Sender<u64>>) {
        let mut told = TimeDelta::zero();
        loop {
            let before = self.oldest();
            self.ask(&client).await;
            let (oldest, skew) = (self.oldest(), self.skew());
            if let Some(skew) = skew {
                metrics.clock_skew(skew);
            }
            let skew = skew.unwrap_or_default();
            let moved = (skew - told).abs() >= NOTICED;
            if moved {
                told = skew;
                tell(skew);
            }
            if oldest != before || moved {
                changes.send_modify(|count| *count = count.wrapping_add(1));
            }
            tokio::time::sleep(if oldest.is_some() { EVERY } else { AT_FIRST }).await;
        }
    }

    /// Asks once, and waits for an answer no longer than [`PATIENCE`].
    pub(crate) async fn ask(&self, client: &Client) {
        match tokio::time::timeout(PATIENCE, self.version(client)).await {
            Ok(Ok(info)) => match KubernetesVersion::parse(&info.git_version) {
                Ok(version) => self.heard(version),
                Err(error) => tracing::warn!(%error, "the API server's version can't be read"),
            },
            Ok(Err(error)) => tracing::debug!(error = crate::one_line(&error), "the API server says no version"),
            Err(_) => tracing::debug!("the API server does not say its version"),
        }
    }

    /// What whoever is behind the next connection says; it is closed afterwards.
    async fn version(&self, client: &Client) -> kube::Result<Info> {
        let question = Request::get("/version").header(header::CONNECTION, "close").body(Body::empty());
        let question = question.map_err(kube::Error::HttpError)?;
        let asked = self.own.now();
        let answer = client.send(question).await?;
        let (answered, at) = (self.own.now(), Instant::now());
        // What is in front of a server that is away has a clock of its own.
        if let Some(date) = date_of(answer.headers()).filter(|_| !answer.status().is_server_error()) {
            let dated = Dated { date, asked, answered, at };
            self.skew.lock().unwrap_or_else(PoisonError::into_inner).heard(&dated);
        }
        let said = answer.into_body().collect_bytes().await?;
        serde_json::from_slice(&said).map_err(kube::Error::SerdeError)
    }
}

fn tell(skew: TimeDelta) {
    let ahead = skew.as_seconds_f64();
    if skew.abs() < NOTICED {
        tracing::info!(ahead, "this machine's clock and the API server's agree");
    } else {
        tracing::warn!(ahead, "this machine's clock is not the API server's, which counts: set both right");
    }
}

fn date_of(headers: &HeaderMap) -> Option<DateTime<Utc>> {
    let date = headers.get(header::DATE)?.to_str().ok()?;
    DateTime::parse_from_rfc2822(date).ok().map(|date| date.with_timezone(&Utc))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Json, Router, routing::get};
    use serde_json::json;
    use tokio::net::{TcpListener, TcpStream};

    async fn server(minor: u32) -> std::net::SocketAddr {
        let says = json!({"major": "1", "minor": minor.to_string(), "gitVersion": format!("v1.{minor}.0"),
            "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": ""});
        let router = Router::new().route("/version", get(async move || Json(says)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    /// A balancer that gives each connection to the next server.
    async fn balancer(servers: Vec<std::net::SocketAddr>) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for server in servers.into_iter().cycle() {
                let (mut asker, _) = listener.accept().await.unwrap();
                let mut server = TcpStream::connect(server).await.unwrap();
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut asker, &mut server).await });
            }
        });
        address
    }

    #[tokio::test]
    async fn every_server_behind_a_balancer_is_asked() {
        bascule_tests::install_tls_provider();
        let address = balancer(vec![server(36).await, server(35).await]).await;
        let client = Client::try_from(kube::Config::new(format!("http://{address}").parse().unwrap())).unwrap();
        let servers = ApiServers::new(&Clock::system());
        servers.ask(&client).await;
        servers.ask(&client).await;
        assert_eq!(servers.oldest(), Some(KubernetesVersion { major: 1, minor: 35 }));
    }

    #[tokio::test]
    async fn their_time_is_told_by_a_machine_whose_clock_is_wrong() {
        bascule_tests::install_tls_provider();
        let address = server(36).await;
        let client = Client::try_from(kube::Config::new(format!("http://{address}").parse().unwrap())).unwrap();
        let right = Clock::system();
        for wrong in [TimeDelta::minutes(10), TimeDelta::minutes(-10), TimeDelta::days(-10_000)] {
            let own = right.clone();
            let servers = ApiServers::new(&Clock::from_fn(move || own.now() + wrong));
            let clock = servers.clock();
            assert_eq!(servers.skew(), None);
            servers.ask(&client).await;
            let off = servers.skew().unwrap() - wrong;
            assert!(off.abs() <= TimeDelta::seconds(11), "{off} from {wrong}");
            assert!((clock.now() - right.now()).abs() <= TimeDelta::seconds(11), "{wrong}");
        }
    }

    #[test]
    fn a_date_is_read_as_go_writes_it() {
        let says = |date: &str| {
            let value = header::HeaderValue::from_str(date).unwrap();
            date_of(&HeaderMap::from_iter([(header::DATE, value)])).map(|date| date.to_rfc3339())
        };
        assert_eq!(says("Sat, 28 Nov 2026 21:00:04 GMT").as_deref(), Some("2026-11-28T21:00:04+00:00"));
        assert_eq!(says("soon"), None);
        assert_eq!(date_of(&HeaderMap::new()), None);
    }

    #[test]
    fn the_oldest_that_answered_lately_counts() {
        let servers = ApiServers::new(&Clock::system());
        assert_eq!(servers.oldest(), None);
        let version = |minor| KubernetesVersion { major: 1, minor };
        for minor in [36, 35, 36] {
            servers.heard(version(minor));
        }
        assert_eq!(servers.oldest(), Some(version(35)));
        for _ in 0..LATELY {
            servers.heard(version(36));
        }
        assert_eq!(servers.oldest(), Some(version(36)), "nobody of the old ones answers any more");
    }
}
