//! The version of the API servers, and their time. Behind one address there may be several, of different versions while the control
//! plane is updated: the oldest of those that answered lately is what a kubelet has to get along with. A balancer chooses one for
//! each connection, so each question has a connection of its own.

use crate::{
    clock::Clock,
    metrics::Metrics,
    skew::{Dated, JUMP, Skew},
};
use bascule_api::KubernetesVersion;
use chrono::{DateTime, TimeDelta, Utc};
use http::{HeaderMap, Request, header};
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::{Client, client::Body};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// Between two questions.
const EVERY: Duration = Duration::from_secs(30);
/// Until there is a first answer, and while answers speak against the time that is told.
const AT_FIRST: Duration = Duration::from_secs(2);
/// How many answers count: ten minutes of them.
const LATELY: usize = 20;
/// How long an answer may take, and how long the first ones are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// A change of the difference of the clocks by less than this is no news: a `Date` is cut to the second.
const NOTICED: TimeDelta = TimeDelta::seconds(1);

/// What API servers said of themselves lately. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ApiServers {
    versions: Arc<Mutex<VecDeque<KubernetesVersion>>>,
    skew: Arc<Mutex<Skew>>,
    own: Clock,
    /// The same moment by this machine's clock and by one that is never set.
    began: (DateTime<Utc>, Instant),
}

impl ApiServers {
    /// None that answered yet; their time is compared with this machine's.
    #[must_use]
    pub fn new(own: &Clock) -> Self {
        Self { versions: Arc::default(), skew: Arc::default(), own: own.clone(), began: (own.now(), Instant::now()) }
    }

    /// Their time, by what they say; this machine's, as it was when this was made, before the first answer. Who sets this machine's
    /// clock later on changes nothing of it.
    #[must_use]
    pub fn clock(&self) -> Clock {
        let servers = self.clone();
        Clock::from_fn(move || servers.time())
    }

    /// How far this machine's clock is ahead of theirs; `None` before the first answer.
    #[must_use]
    pub fn skew(&self) -> Option<TimeDelta> {
        let measured = self.measured().ahead().is_some();
        measured.then(|| self.own.now().signed_duration_since(self.time()))
    }

    fn time(&self) -> DateTime<Utc> {
        let steady = self.steady();
        self.measured().time(steady)
    }

    /// By the clock that is never set.
    fn steady(&self) -> DateTime<Utc> {
        let (began, at) = self.began;
        let passed = TimeDelta::from_std(at.elapsed()).unwrap_or_default();
        began.checked_add_signed(passed).unwrap_or(began)
    }

    /// By how much this machine's clock has run ahead of that one.
    fn ran_ahead(&self) -> TimeDelta {
        self.own.now().signed_duration_since(self.steady())
    }

    fn measured(&self) -> MutexGuard<'_, Skew> {
        self.skew.lock().unwrap_or_else(PoisonError::into_inner)
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
            let soon = oldest.is_none() || self.measured().is_doubted(self.ran_ahead());
            self.pause(if soon { AT_FIRST } else { EVERY }).await;
        }
    }

    /// Waits so long, or until the machine goes on that was suspended: no plan is to be made by the time of before.
    async fn pause(&self, pause: Duration) {
        let (before, over) = (self.ran_ahead(), tokio::time::Instant::now() + pause);
        loop {
            let left = over.saturating_duration_since(tokio::time::Instant::now());
            if left.is_zero() || self.ran_ahead() - before >= JUMP {
                return;
            }
            tokio::time::sleep(left.min(AT_FIRST)).await;
        }
    }

    /// Asks as many as are compared with one another, so that none of them is followed because it was the first; no longer than
    /// [`PATIENCE`], since there may be nobody who tells the time.
    pub(crate) async fn get_to_know(&self, client: &Client) {
        let asking = async {
            loop {
                for _ in 0..crate::skew::LATELY {
                    self.ask(client).await;
                }
                if self.measured().ahead().is_some() {
                    return;
                }
                tokio::time::sleep(AT_FIRST).await;
            }
        };
        if tokio::time::timeout(PATIENCE, asking).await.is_err() && self.skew().is_none() {
            tracing::warn!("no API server tells the time: this machine's clock is taken for theirs until one does");
        }
    }

    /// Asks once, and waits for an answer no longer than [`PATIENCE`].
    async fn ask(&self, client: &Client) {
        match tokio::time::timeout(PATIENCE, self.version(client)).await {
            Ok(Ok((info, dated))) => match KubernetesVersion::parse(&info.git_version) {
                Ok(version) => {
                    self.heard(version);
                    if let Some(dated) = dated {
                        self.measured().heard(&dated);
                    }
                }
                Err(error) => tracing::warn!(%error, "the API server's version can't be read"),
            },
            Ok(Err(error)) => tracing::debug!(error = crate::one_line(&error), "the API server says no version"),
            Err(_) => tracing::debug!("the API server does not say its version"),
        }
    }

    /// What whoever is behind the next connection says, and when; it is closed afterwards.
    async fn version(&self, client: &Client) -> kube::Result<(Info, Option<Dated>)> {
        let question = Request::get("/version").header(header::CONNECTION, "close").body(Body::empty());
        let question = question.map_err(kube::Error::HttpError)?;
        let asked = self.steady();
        let (head, body) = client.send(question).await?.into_parts();
        let (answered, own) = (self.steady(), self.ran_ahead());
        let said = body.collect_bytes().await?;
        if !head.status.is_success() {
            return Err(kube::Error::Service(format!("its answer is {}", head.status).into()));
        }
        let info = serde_json::from_slice(&said).map_err(kube::Error::SerdeError)?;
        Ok((info, date_of(&head.headers).map(|date| Dated { date, asked, answered, own })))
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

/// When an answer was made, by its maker. That of a cache was made who knows when, which shows by its age (RFC 9111, section 5.1).
fn date_of(headers: &HeaderMap) -> Option<DateTime<Utc>> {
    if headers.contains_key(header::AGE) {
        return None;
    }
    let date = headers.get(header::DATE)?.to_str().ok()?;
    DateTime::parse_from_rfc2822(date).ok().map(|date| date.with_timezone(&Utc))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Json, Router, routing::get};
    use serde_json::json;
    use std::sync::atomic::{AtomicI64, Ordering};
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
    async fn their_time_is_told_by_a_machine_whose_clock_is_wrong_and_set_meanwhile() {
        bascule_tests::install_tls_provider();
        let address = server(36).await;
        let client = Client::try_from(kube::Config::new(format!("http://{address}").parse().unwrap())).unwrap();
        let right = Clock::system();
        for wrong in [600, -600, -864_000_000] {
            let ahead = Arc::new(AtomicI64::new(wrong));
            let (own, shown) = (right.clone(), Arc::clone(&ahead));
            let own = Clock::from_fn(move || own.now() + TimeDelta::seconds(shown.load(Ordering::SeqCst)));
            let servers = ApiServers::new(&own);
            let clock = servers.clock();
            assert_eq!(servers.skew(), None);
            servers.get_to_know(&client).await;
            for set in [wrong, 0, 90_000] {
                ahead.store(set, Ordering::SeqCst);
                assert!((clock.now() - right.now()).abs() <= TimeDelta::seconds(11), "{wrong} {set}");
                let off = servers.skew().unwrap() - TimeDelta::seconds(set);
                assert!(off.abs() <= TimeDelta::seconds(11), "{off} from {set}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_was_suspended_asks_soon() {
        let ahead = Arc::new(AtomicI64::new(0));
        let (own, shown) = (Clock::system(), Arc::clone(&ahead));
        let servers =
            ApiServers::new(&Clock::from_fn(move || own.now() + TimeDelta::seconds(shown.load(Ordering::SeqCst))));
        let begun = tokio::time::Instant::now();
        servers.pause(EVERY).await;
        assert!((EVERY..EVERY + AT_FIRST).contains(&begun.elapsed()));
        let begun = tokio::time::Instant::now();
        let suspended = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            ahead.store(3_600, Ordering::SeqCst);
        };
        tokio::join!(servers.pause(EVERY), suspended);
        assert!(begun.elapsed() < Duration::from_secs(13), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn who_is_no_api_server_tells_no_time() {
        bascule_tests::install_tls_provider();
        let gate = Router::new().route("/version", get(async || (axum::http::StatusCode::FORBIDDEN, "log in first")));
        let page = Router::new().route("/version", get(async || Json(json!({"welcome": true}))));
        for router in [gate, page] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            tokio::spawn(async move { axum::serve(listener, router).await });
            let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
            let servers = ApiServers::new(&Clock::system());
            servers.ask(&client).await;
            assert_eq!((servers.skew(), servers.oldest()), (None, None));
        }
    }

    #[test]
    fn a_date_is_read_as_go_writes_it() {
        let says = |date: &str| {
            let value = header::HeaderValue::from_str(date).unwrap();
            date_of(&HeaderMap::from_iter([(header::DATE, value)])).map(|date| date.to_rfc3339())
        };
        let date = header::HeaderValue::from_static("Sat, 28 Nov 2026 21:00:04 GMT");
        let cached = [(header::DATE, date), (header::AGE, header::HeaderValue::from_static("0"))];
        assert_eq!(date_of(&HeaderMap::from_iter(cached)), None);
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
