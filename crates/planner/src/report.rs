//! Why every node does or does not move, and what each policy's status says.
//!
//! Nodes that wait for the same thing share one [`Wait`], so that a report of 10,000 nodes costs a few sentences.

use bascule_api::{
    DrainProgress, FreezeStatus, ObjectRef, RollbackStatus, Rollout, RolloutColumns, RolloutState, Time,
    UpdatePolicyStatus, Version, WaitReason,
};
use std::{fmt, ops::Deref, sync::Arc};

/// How a message begins that says that a release is held back from a policy.
pub(crate) fn held_back(version: &Version) -> String {
    format!("{version} is blocked ")
}

/// Whether a message says that this release is held back from a policy. One that a node runs and should leave is another matter.
#[must_use]
pub fn says_held_back(message: &str, version: &Version) -> bool {
    message.starts_with(&held_back(version))
}

/// A health gate that is asked about other nodes first.
pub(crate) const ASKED_OF_OTHERS: &str = "is asked of other nodes first";
/// A health gate that nobody has asked.
pub(crate) const NOT_ASKED: &str = "has not been asked yet";
/// A health gate whose answer is too old to count.
pub(crate) const NOT_FRESH: &str = "has no fresh answer";
/// A health gate whose answer is from before the boot that it is asked about.
pub(crate) const NOT_SINCE: &str = "has not been asked since the reboot";

/// Whether a message of [`WaitReason::HealthGate`] says something of this gate.
#[must_use]
pub fn says_of_gate(message: &str, gate: &str) -> bool {
    let said = message.strip_prefix("gate ").and_then(|rest| rest.strip_prefix(gate));
    said.is_some_and(|said| {
        said.starts_with(": ")
            || said
                .strip_prefix(' ')
                .is_some_and(|said| [ASKED_OF_OTHERS, NOT_ASKED, NOT_FRESH, NOT_SINCE].contains(&said))
    })
}

/// A node's name. The names of all nodes are one shared list, so that a report costs no look at each of them.
#[derive(Clone)]
pub struct NodeName {
    all: Arc<[Arc<str>]>,
    index: usize,
}

impl NodeName {
    pub(crate) const fn new(all: Arc<[Arc<str>]>, index: usize) -> Self {
        Self { all, index }
    }

    /// The name itself, to keep.
    #[must_use]
    pub fn shared(&self) -> Arc<str> {
        self.all.get(self.index).map_or_else(|| Arc::from(""), Arc::clone)
    }
}

impl Deref for NodeName {
    type Target = str;

    fn deref(&self) -> &str {
        self.all.get(self.index).map_or("", |name| name)
    }
}

impl PartialEq for NodeName {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

/// The whole explanation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// One entry for each node of the snapshot, in its order.
    pub nodes: Vec<NodeReport>,
    /// One entry for each policy of the snapshot, in its order.
    pub policies: Vec<PolicyReport>,
    /// One entry for each Freeze of the snapshot, in its order.
    pub freezes: Vec<FreezeReport>,
    /// The status of each Rollback of the snapshot, in its order.
    pub rollbacks: Vec<RollbackStatus>,
}

/// What a Freeze's status says.
#[derive(Debug, Clone, PartialEq)]
pub struct FreezeReport {
    /// The Freeze.
    pub freeze: String,
    /// The whole status.
    pub status: FreezeStatus,
}

/// What one node does or waits for.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeReport {
    /// The node.
    pub node: NodeName,
    /// The policy that selects it, as an index into [`Report::policies`].
    pub policy: Option<usize>,
    /// What it does.
    pub state: RolloutState,
    /// Why.
    pub wait: Arc<Wait>,
    /// How many of [`crate::GATES`] hold, in their order; the next one is what it waits for. `None` for nodes
    /// that were not asked to pass the gates.
    pub gates_passed: Option<u8>,
    /// How far its drain is.
    pub drain: Option<DrainProgress>,
}

/// A reason with all that is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// The reason.
    pub reason: WaitReason,
    /// In a sentence.
    pub message: String,
    /// The object that causes it.
    pub object: Option<ObjectRef>,
    /// When it ends, where that is known.
    pub until: Option<Time>,
    /// Whether the object is another one a moment later, as nodes take their turns: told to whoever asks, and not written into
    /// every NodeUpdate that waits.
    pub fleeting: bool,
}

impl Wait {
    /// A reason and its sentence.
    #[must_use]
    pub fn new(reason: WaitReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), object: None, until: None, fleeting: false }
    }

    /// The same with the object that causes it.
    #[must_use]
    pub fn of(mut self, kind: &str, namespace: Option<&str>, name: &str) -> Self {
        let (kind, namespace, name) = (kind.to_owned(), namespace.map(str::to_owned), name.to_owned());
        self.object = Some(ObjectRef { kind, namespace, name });
        self
    }

    /// The same with a node that causes it now.
    pub(crate) fn of_turn(mut self, node: &str) -> Self {
        self.fleeting = true;
        self.of("Node", None, node)
    }

    /// The same with its end.
    #[must_use]
    pub fn until(mut self, until: Option<Time>) -> Self {
        self.until = until;
        self
    }
}

/// What a policy's status says.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyReport {
    /// The policy.
    pub policy: String,
    /// The whole status, memory and conditions included. Equal to the snapshot's where nothing changed.
    pub status: UpdatePolicyStatus,
}

impl NodeReport {
    /// The explanation as it stands in the node's NodeUpdate. `since` stays as long as state and reason stay.
    #[must_use]
    pub fn rollout(&self, before: Option<&Rollout>, now: Time) -> Rollout {
        let since = before
            .filter(|before| before.state == self.state && before.reason == self.wait.reason)
            .and_then(|before| before.since)
            .unwrap_or(now);
        let gates = self.gates_passed.map_or(&[][..], |passed| {
            let asked = usize::from(passed).saturating_add(1).min(crate::GATES.len());
            crate::GATES.get(..asked).unwrap_or_default()
        });
        Rollout {
            state: self.state,
            reason: self.wait.reason,
            message: self.wait.message.chars().take(1024).collect(),
            object: self.wait.object.clone().filter(|_| !self.wait.fleeting),
            until: self.wait.until,
            since: Some(since),
            passed_gates: gates.iter().map(|gate| gate.name().to_owned()).collect(),
            drain: self.drain.clone(),
            columns: RolloutColumns::of(self.state, self.wait.reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_about_the_gate_that_it_begins_with_and_no_other() {
        for said in ["gate ceph: 2 of 3", "gate ceph has no fresh answer", "gate ceph is asked of other nodes first"] {
            assert!(says_of_gate(said, "ceph"), "{said}");
        }
        for other in ["gate ceph 2: no", "gate ceph has it: no", "gate cephfs has no fresh answer", "ceph: no"] {
            assert!(!says_of_gate(other, "ceph"), "{other}");
        }
    }
}
