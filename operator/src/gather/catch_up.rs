//! The barrier that a new leader begins behind: what it acts upon is at least as new as its leadership.
//!
//! A cache that was synced once may be minutes old, because its watch is late. Its predecessor may have given grants since, and a person
//! may have frozen the cluster. So the kinds that decisions rest on are read once by a consistent list (a list without a resourceVersion
//! is answered from the newest state: Kubernetes API Concepts, "Resource versions", KEP-2340), and the late watch is outrun.

use super::{
    Caches,
    cache::{Cache, Fact, Key},
    sent::{Sent, take},
};
use k8s_openapi::serde::de::DeserializeOwned;
use kube::{Api, Client, Resource, api::ListParams};
use std::{collections::BTreeSet, fmt::Debug};

/// How many objects are asked for at once.
const PAGE: u32 = 500;

/// Why the newest state is not known.
#[derive(Debug, thiserror::Error)]
pub enum CatchUpError {
    /// The API server can't be asked.
    #[error("the API server can't be asked")]
    Api(#[from] kube::Error),
    /// The newest state is older than what was known before it was asked for: the cluster was restored from a backup. What is known is of
    /// another cluster now, and watches wait for versions of that one.
    #[error(
        "the newest version of {kind} is {found}, and {known} was seen before: the cluster was restored from a backup, and only a new process \
         knows it as it is"
    )]
    Outlived {
        /// The kind.
        kind: String,
        /// The version of the list.
        found: u64,
        /// The newest that was known.
        known: u64,
    },
}

impl Caches {
    /// Reads Nodes, NodeUpdates, UpdatePolicies, Freezes and Rollbacks as they are now.
    ///
    /// # Errors
    /// [`CatchUpError`].
    pub async fn catch_up(&self, client: &Client) -> Result<(), CatchUpError> {
        // The updates last: what a predecessor wrote about a node is not older than the Node that it was about.
        tokio::try_join!(
            list(client, &self.policies),
            list(client, &self.freezes),
            list(client, &self.rollbacks),
            list(client, &self.nodes),
        )?;
        list(client, &self.updates).await
    }
}

async fn list<T>(client: &Client, cache: &Cache<T>) -> Result<(), CatchUpError>
where
    T: Fact,
    T::Raw: Clone + Debug + DeserializeOwned + Resource<DynamicType = ()>,
{
    let objects: Api<Sent<T::Raw>> = Api::all(client.clone());
    let newest = cache.newest();
    let mut known = BTreeSet::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = objects.list(&params).await?;
        for object in page.items {
            known.insert(Key::of_metadata(object.meta()));
            take(cache, object);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => {
                // All pages are of one version. One that is no number can't be compared, and nothing is concluded from it.
                if let Some(version) = page.metadata.resource_version.and_then(|version| version.parse::<u64>().ok()) {
                    // A list that is answered from the newest state is no older than anything that was known when it was asked for.
                    if version < newest {
                        let kind = <T::Raw as Resource>::kind(&()).into_owned();
                        return Err(CatchUpError::Outlived { kind, found: version, known: newest });
                    }
                    cache.complete(&known, version);
                }
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use axum::{Json, Router, routing::get};
    use kube::{Config, runtime::watcher::Event};
    use serde_json::{Value, json};
    use std::sync::Arc;
    use tokio::sync::watch;

    /// An API server whose newest version this is, with one NodeUpdate that is not understood, and nothing else.
    async fn client(version: u64) -> Client {
        bascule_tests::install_tls_provider();
        let list = move |items: Value| async move {
            let metadata = json!({"resourceVersion": version.to_string()});
            Json(json!({"apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items}))
        };
        let update = json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate", "metadata": {"name": "n1", "resourceVersion": "4"},
            "spec": {"policy": "workers", "goal": "Eclipse"},
        });
        let router = Router::new()
            .route("/apis/bascule.dev/v1alpha1/nodeupdates", get(move || list(json!([update.clone()]))))
            .fallback(move || list(json!([])));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Client::try_from(Config::new(format!("http://{address}").parse().unwrap())).unwrap()
    }

    fn world() -> Caches {
        Caches::new(Arc::new(watch::Sender::new(0)), &Clock::system())
    }

    #[tokio::test]
    async fn one_object_that_is_not_understood_keeps_no_new_leader_from_beginning() {
        let world = world();
        world.catch_up(&client(5).await).await.unwrap();
        let told = world.updates.unreadable(&Key::cluster("n1")).unwrap();
        assert!(told.why.contains("Eclipse"), "{told}");
    }

    #[tokio::test]
    async fn a_cluster_that_is_older_than_what_is_known_of_it_was_restored() {
        let world = world();
        let node = json!({"metadata": {"name": "n1", "resourceVersion": "9"}});
        world.nodes.apply(&Event::Apply(serde_json::from_value(node).unwrap()));
        let error = world.catch_up(&client(8).await).await.unwrap_err();
        match error {
            CatchUpError::Outlived { kind, found, known } => assert_eq!((kind.as_str(), found, known), ("Node", 8, 9)),
            CatchUpError::Api(error) => panic!("{error}"),
        }
        assert_eq!(world.nodes.len(), 1, "nothing is concluded from it");
        world.catch_up(&client(9).await).await.unwrap();
        assert!(world.nodes.is_empty());
    }
}
