//! The version of the API servers. Behind one address there may be several, of different versions while the control plane
//! is updated: the oldest of those that answered lately is what a kubelet has to get along with.

use bascule_api::KubernetesVersion;
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

    /// Asks again and again; tells `changes` when the oldest is another one.
    pub(super) async fn keep_asking(self, client: Client, changes: Arc<watch::Sender<u64>>) {
        loop {
            let before = self.oldest();
            match tokio::time::timeout(PATIENCE, client.apiserver_version()).await {
                Ok(Ok(info)) => match KubernetesVersion::parse(&info.git_version) {
                    Ok(version) => self.heard(version),
                    Err(error) => tracing::warn!(%error, "the API server's version can't be read"),
                },
                Ok(Err(error)) => tracing::debug!(error = crate::one_line(&error), "the API server says no version"),
                Err(_) => tracing::debug!("the API server does not say its version"),
            }
            let oldest = self.oldest();
            if oldest != before {
                changes.send_modify(|count| *count = count.wrapping_add(1));
            }
            tokio::time::sleep(if oldest.is_some() { EVERY } else { AT_FIRST }).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
