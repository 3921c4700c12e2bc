//! The version of the API servers. Behind one address there may be several, of different versions while the control plane
//! is updated: the oldest of those that answered lately is what a kubelet has to get along with. A balancer chooses one for
//! each connection, so each question has a connection of its own.

use bascule_api::KubernetesVersion;
use http::{Request, header};
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::Client;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
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

/// What API servers said of themselves lately. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ApiServers(Arc<Mutex<VecDeque<KubernetesVersion>>>);

impl ApiServers {
    /// The oldest that answered lately.
    #[must_use]
    pub fn oldest(&self) -> Option<KubernetesVersion> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().min().copied()
    }

    fn heard(&self, version: KubernetesVersion) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.push_back(version);
        if heard.len() > LATELY {
            heard.pop_front();
        }
    }

    /// Asks again and again; tells `changes` when the oldest is another one. Nobody else uses the client: a connection that
    /// somebody left open would be taken for the question.
    pub(super) async fn keep_asking(self, client: Client, changes: Arc<watch::Sender<u64>>) {
        loop {
            let before = self.oldest();
            self.ask(&client).await;
            let oldest = self.oldest();
            if oldest != before {
                changes.send_modify(|count| *count = count.wrapping_add(1));
            }
            tokio::time::sleep(if oldest.is_some() { EVERY } else { AT_FIRST }).await;
        }
    }

    async fn ask(&self, client: &Client) {
        match tokio::time::timeout(PATIENCE, version(client)).await {
            Ok(Ok(info)) => match KubernetesVersion::parse(&info.git_version) {
                Ok(version) => self.heard(version),
                Err(error) => tracing::warn!(%error, "the API server's version can't be read"),
            },
            Ok(Err(error)) => tracing::debug!(error = crate::one_line(&error), "the API server says no version"),
            Err(_) => tracing::debug!("the API server does not say its version"),
        }
    }
}

/// What whoever is behind the next connection says; it is closed afterwards.
async fn version(client: &Client) -> kube::Result<Info> {
    let question = Request::get("/version").header(header::CONNECTION, "close").body(Vec::new());
    client.request(question.map_err(kube::Error::HttpError)?).await
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
        let servers = ApiServers::default();
        servers.ask(&client).await;
        servers.ask(&client).await;
        assert_eq!(servers.oldest(), Some(KubernetesVersion { major: 1, minor: 35 }));
    }

    #[test]
    fn the_oldest_that_answered_lately_counts() {
        let servers = ApiServers::default();
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
