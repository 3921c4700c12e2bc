//! What one drain remembers of the pods it met, so that it ends although somebody brings pods back.

use super::Pod;
use std::collections::{BTreeMap, BTreeSet};

/// How many pods of one owner a drain evicts that came after others of that owner were evicted from the same node. A
/// scheduler that has not seen the cordon yet may put one there; who goes on ignores the cordon.
const RETURNS: u32 = 2;

/// The memory of one drain. An operator that starts anew begins an empty one.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    met: BTreeSet<String>,
    /// Owners of which a pod was asked to go, and how many of theirs came since.
    returned: BTreeMap<String, u32>,
    given_up: BTreeSet<String>,
}

impl Ledger {
    /// Takes in the pods that are to leave the node. Says whether some of them are given up for that.
    pub fn meet<'a>(&mut self, pods: impl IntoIterator<Item = &'a Pod>) -> bool {
        let mut gives_up = false;
        for pod in pods {
            if !self.met.insert(pod.uid.clone()) {
                continue;
            }
            if let Some(returned) = self.returned.get_mut(&pod.owner()) {
                *returned += 1;
                // What tolerates the cordon comes back as often as it is told to go: once is enough.
                if *returned > RETURNS || pod.tolerates_cordon {
                    gives_up |= self.given_up.insert(pod.uid.clone());
                }
            }
        }
        gives_up
    }

    /// A pod is asked to go. Whether it does is known only when another one may have come already.
    pub fn asked(&mut self, pod: &Pod) {
        self.returned.entry(pod.owner()).or_insert(0);
    }

    /// The UIDs of the pods that are left where they are, because their owner brings them back.
    #[must_use]
    pub const fn given_up(&self) -> &BTreeSet<String> {
        &self.given_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, owner: &str, tolerates_cordon: bool) -> Pod {
        let controller = super::super::Controller {
            api_version: "apps/v1".into(),
            kind: "ReplicaSet".into(),
            name: owner.into(),
            uid: owner.into(),
        };
        Pod { uid: uid.to_owned(), controller: Some(controller.into()), tolerates_cordon, ..Pod::default() }
    }

    #[test]
    fn an_owner_that_brings_pods_back_is_given_up_after_a_few() {
        let mut ledger = Ledger::default();
        let stood: Vec<Pod> = (0..20).map(|number| pod(&format!("a{number}"), "a", false)).collect();
        assert!(!ledger.meet(&stood), "as many as stood there");
        stood.iter().for_each(|pod| ledger.asked(pod));
        for number in 0..2 {
            assert!(!ledger.meet(&[pod(&format!("r{number}"), "a", false)]));
        }
        assert!(ledger.meet(&[pod("r2", "a", false)]));
        assert!(!ledger.meet(&[pod("r2", "a", false), pod("b0", "b", false)]), "met before, and another owner");
        assert_eq!(ledger.given_up(), &BTreeSet::from(["r2".to_owned()]));
    }

    #[test]
    fn what_tolerates_the_cordon_is_told_once_whatever_the_clocks_say() {
        let mut ledger = Ledger::default();
        let first = pod("a0", "a", true);
        assert!(!ledger.meet(std::slice::from_ref(&first)));
        ledger.asked(&first);
        assert!(ledger.meet(&[pod("a1", "a", true)]));
    }
}
