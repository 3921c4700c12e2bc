//! The nodes that carry the cluster itself, a control plane or a member of etcd, those among them whose Node objects are
//! gone included.
//!
//! Deleting a Node object takes nothing out of etcd: the member lives on, or is dead and counts for the quorum. So every
//! policy remembers the nodes that were ever seen with one, and only a person can say that one was taken out for good
//! (`spec.removedClusterMembers`). That is said of the member that was there. A node that came back has another one, and nobody knows
//! of a name that stands in the list still whether it is said of that, too: it has to be taken out of the list first.

use crate::snapshot::{EtcdMember, Node, Snapshot};
use bascule_api::ClusterMember;
use std::collections::{BTreeMap, BTreeSet};

/// How many are remembered at most, as in the schema.
const MAX_MEMBERS: usize = 64;

/// Whether a node carries the control plane or a member of etcd.
pub(super) fn carries(node: &Node) -> bool {
    node.control_plane || node.etcd != EtcdMember::None
}

/// What is known of the members.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Members {
    /// All that are to be remembered, those that are seen included; by the nodes' names.
    pub(super) known: Vec<ClusterMember>,
    /// Those whose Node objects are gone.
    pub(super) gone: Vec<ClusterMember>,
    /// Nodes that are there and on which a member of etcd was seen, but is not now.
    pub(super) silent: Vec<String>,
    /// A node that carries the cluster although a policy says that it was taken out: that policy, and the node. What it says would
    /// hide the node's loss.
    pub(super) contradicted: Option<(String, String)>,
}

impl Members {
    /// From what the policies remember and the nodes that are there; `carriers` are those of them that carry the cluster.
    pub(super) fn of<'a>(snapshot: &Snapshot, carriers: impl Iterator<Item = &'a Node>) -> Self {
        let mut named: BTreeMap<&str, &str> = BTreeMap::new();
        for policy in &snapshot.policies {
            let Ok(valid) = &policy.spec else { continue };
            named.extend(valid.spec.removed_cluster_members.iter().map(|node| (node.as_str(), policy.name.as_str())));
        }
        let remembered = || snapshot.policies.iter().flat_map(|policy| &policy.status.cluster_members);
        let mut returned: BTreeSet<&str> =
            remembered().filter(|member| member.returned).map(|member| member.node.as_str()).collect();
        // Whom a policy that can't be used names is not known: it may do so still.
        if snapshot.policies.iter().all(|policy| policy.spec.is_ok()) {
            returned.retain(|node| named.contains_key(node));
        }
        let mut known: BTreeMap<&str, bool> = BTreeMap::new();
        for member in remembered() {
            let node = member.node.as_str();
            if !named.contains_key(node) || returned.contains(node) {
                *known.entry(node).or_default() |= member.etcd;
            }
        }
        let seen: BTreeMap<&str, &Node> = carriers.map(|node| (&*node.name, node)).collect();
        let mut out = Self::default();
        for (name, node) in &seen {
            *known.entry(name).or_default() |= node.etcd != EtcdMember::None;
            if let Some(policy) = named.get(name) {
                returned.insert(*name);
                out.contradicted.get_or_insert_with(|| ((*policy).to_owned(), (*name).to_owned()));
            }
        }
        for (name, etcd) in &known {
            let is_there = || snapshot.nodes.iter().any(|node| *node.name == **name);
            match seen.get(name) {
                Some(node) if *etcd && node.etcd == EtcdMember::None => out.silent.push((*name).to_owned()),
                Some(_) => {}
                None if is_there() && *etcd => out.silent.push((*name).to_owned()),
                // A node that lost its role, and had nothing but that.
                None if is_there() => {}
                None => out.gone.push(member(name, *etcd, &returned)),
            }
        }
        // More than that are none of one cluster; those that are gone are the last to be forgotten.
        let mut kept: Vec<_> = known.into_iter().collect();
        kept.sort_by_key(|(name, _)| seen.contains_key(name));
        kept.truncate(MAX_MEMBERS);
        kept.sort_unstable();
        out.known = kept.into_iter().map(|(node, etcd)| member(node, etcd, &returned)).collect();
        out
    }
}

fn member(node: &str, etcd: bool, returned: &BTreeSet<&str>) -> ClusterMember {
    ClusterMember { node: node.to_owned(), etcd, returned: returned.contains(node) }
}
