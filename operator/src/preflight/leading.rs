//! What must hold on while somebody leads: the admission policies, without which a node could speak for another, and definitions
//! that take what this program writes. Asked when the operator comes to lead, and again and again while it does.

use super::{AGAIN, Told, admission, definition};
use crate::{server::Readiness, trouble::Trouble};
use kube::Client;
use std::time::Duration;

/// How often a leader asks again: fourteen small requests.
pub(crate) const AGAIN_WHILE_LEADING: Duration = Duration::from_secs(300);

/// What is said of it.
const STOPS: &str = "the operator stops acting";

/// Returns when nothing is known to be wrong; tells what is meanwhile.
pub(crate) async fn holds(client: &Client, namespace: &str, readiness: &Readiness, trouble: &Trouble) {
    let mut told = Told::default();
    while !told.nothing(readiness, STOPS, broken(client, namespace).await) {
        trouble.tell(&told.told(STOPS)).await;
        tokio::time::sleep(AGAIN).await;
    }
}

/// Returns when something is wrong; looks that often.
pub(crate) async fn no_longer_holds(client: &Client, namespace: &str, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let broken = broken(client, namespace).await;
        if !broken.is_empty() {
            // Told here, too: it may hold again when it is looked at anew.
            tracing::error!(missing = broken.join("; "), "{STOPS}");
            return;
        }
    }
}

/// What is known to be wrong. What can't be looked at now is not.
async fn broken(client: &Client, namespace: &str) -> Vec<String> {
    let mut broken = admission::broken(client, namespace).await;
    for wanted in bascule_api::custom_resource_definitions() {
        // An older one drops what it does not know of what is written, or refuses it.
        broken.extend(definition(client, &wanted).await.ok().flatten());
    }
    broken
}
