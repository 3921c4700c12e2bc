//! The barrier that a new leader begins behind: what it acts upon is at least as new as its leadership.
//!
//! A cache that was synced once may be minutes old, because its watch is late. Its predecessor may have given grants since, and a person
//! may have frozen the cluster. So the kinds that decisions rest on are read once by a consistent list (a list without a resourceVersion
//! is answered from the newest state: Kubernetes API Concepts, "Resource versions", KEP-2340), and the late watch is outrun.

use super::{
    World,
    cache::{Cache, Fact, Key},
    sent::{Sent, take},
};
use k8s_openapi::serde::de::DeserializeOwned;
use kube::{Api, Client, Resource, api::ListParams};
use std::{collections::BTreeSet, fmt::Debug};

/// How many objects are asked for at once.
const PAGE: u32 = 500;

impl World {
    /// Reads Nodes, NodeUpdates, UpdatePolicies, Freezes and Rollbacks as they are now.
    ///
    /// # Errors
    /// When the API server can't be asked, or answers without a resourceVersion.
    pub async fn catch_up(&self, client: &Client) -> Result<(), kube::Error> {
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

async fn list<T>(client: &Client, cache: &Cache<T>) -> Result<(), kube::Error>
where
    T: Fact,
    T::Raw: Clone + Debug + DeserializeOwned + Resource<DynamicType = ()>,
{
    let objects: Api<Sent<T::Raw>> = Api::all(client.clone());
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
                if let Some(version) = page.metadata.resource_version.and_then(|version| version.parse().ok()) {
                    cache.complete(&known, version);
                }
                return Ok(());
            }
        }
    }
}
