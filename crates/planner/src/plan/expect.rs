//! What an action expects to find. On a mismatch nothing is done and a new plan is made.

use crate::snapshot::{self, Node};
use bascule_api::{Goal, Version};

/// What must hold when an action is carried out; `None` stands for "anything".
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expect {
    /// The Node's UID: not another node of the same name.
    pub node_uid: Option<String>,
    /// Whether the node has a NodeUpdate.
    pub has_update: Option<bool>,
    /// The NodeUpdate's goal.
    pub goal: Option<Goal>,
    /// The release in the NodeUpdate's spec.
    pub release: Option<Version>,
    /// The generation of the grant that is in force; `Some(None)`: none is.
    pub grant: Option<Option<i64>>,
    /// The boot that the kubelet reports from.
    pub boot_id: Option<String>,
    /// The boot that the agent reports from; `Some(None)`: from none yet.
    pub agent_boot: Option<Option<String>>,
    /// The cordon.
    pub cordon: Option<Cordon>,
    /// Whether it may be carried out although the node can't be read.
    pub though_unreadable: bool,
}

/// How a node has to be cordoned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cordon {
    /// Not at all.
    None,
    /// By us, with this mark.
    Ours(String),
    /// Not any more: our mark is there without the cordon.
    Lifted(String),
}

/// What was found instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The Node was deleted and came back.
    #[error("the Node has another UID than when the plan was made")]
    NodeUid,
    /// The NodeUpdate came or went.
    #[error("the NodeUpdate was created or deleted meanwhile")]
    Update,
    /// The goal is another one.
    #[error("the goal is {found:?}, the plan expected {expected:?}")]
    Goal {
        /// What is there.
        found: Goal,
        /// What was expected.
        expected: Goal,
    },
    /// The release is another one.
    #[error("the NodeUpdate names another release than {0}")]
    Release(Version),
    /// The grant is another one.
    #[error("the grant in force is {found:?}, the plan expected {expected:?}")]
    Grant {
        /// What is there.
        found: Option<i64>,
        /// What was expected.
        expected: Option<i64>,
    },
    /// The node rebooted.
    #[error("the node has rebooted since the plan was made")]
    BootId,
    /// The node was cordoned or uncordoned.
    #[error("the node was cordoned or uncordoned since the plan was made")]
    Cordon,
    /// What the node says can't be read any more.
    #[error("what the node says can't be read since the plan was made")]
    Unreadable,
}

impl Mismatch {
    /// The only label in metrics.
    #[must_use]
    pub const fn category(&self) -> &'static str {
        match self {
            Self::NodeUid => "node-uid",
            Self::Update => "node-update",
            Self::Goal { .. } => "goal",
            Self::Release(_) => "release",
            Self::Grant { .. } => "grant",
            Self::BootId => "boot-id",
            Self::Cordon => "cordon",
            Self::Unreadable => "unreadable",
        }
    }
}

impl Expect {
    /// This very node, with this goal in its NodeUpdate and no grant in force.
    pub(crate) fn without_grant(node: &Node, goal: Goal) -> Self {
        Self {
            node_uid: Some(node.uid.clone()),
            has_update: Some(true),
            goal: Some(goal),
            grant: Some(None),
            ..Self::default()
        }
    }

    /// Compares with the newest known facts of the node.
    ///
    /// # Errors
    /// The first [`Mismatch`].
    pub fn check(&self, node: &Node) -> Result<(), Mismatch> {
        if node.unreadable.is_some() && !self.though_unreadable {
            return Err(Mismatch::Unreadable);
        }
        if self.node_uid.as_ref().is_some_and(|uid| *uid != node.uid) {
            return Err(Mismatch::NodeUid);
        }
        if self.boot_id.as_ref().is_some_and(|boot| *boot != node.boot_id) {
            return Err(Mismatch::BootId);
        }
        match &self.cordon {
            // The mark of an earlier grant that somebody uncordoned stands in nobody's way.
            Some(Cordon::None) if node.cordon.is_cordoned() => return Err(Mismatch::Cordon),
            Some(Cordon::Lifted(mark)) if node.cordon != (snapshot::Cordon::Lifted { mark: mark.clone() }) => {
                return Err(Mismatch::Cordon);
            }
            Some(Cordon::Ours(mark)) if node.cordon != (snapshot::Cordon::Ours { mark: mark.clone() }) => {
                return Err(Mismatch::Cordon);
            }
            _ => {}
        }
        let update = node.live_update();
        if self.has_update.is_some_and(|wanted| wanted != update.is_some()) {
            return Err(Mismatch::Update);
        }
        let Some(update) = update else {
            let needs =
                self.goal.is_some() || self.release.is_some() || self.grant.is_some() || self.agent_boot.is_some();
            return if needs { Err(Mismatch::Update) } else { Ok(()) };
        };
        if let Some(expected) = self.goal
            && expected != update.spec.goal
        {
            return Err(Mismatch::Goal { found: update.spec.goal, expected });
        }
        if let Some(version) = &self.release
            && update.spec.release.as_ref().map(|release| &release.version) != Some(version)
        {
            return Err(Mismatch::Release(version.clone()));
        }
        if let Some(expected) = self.grant {
            let found =
                update.spec.disruption.as_ref().and_then(|_| update.spec.grant.as_ref().map(|grant| grant.generation));
            if found != expected {
                return Err(Mismatch::Grant { found, expected });
            }
        }
        if self.agent_boot.as_ref().is_some_and(|boot| *boot != update.status.boot_id) {
            return Err(Mismatch::BootId);
        }
        Ok(())
    }
}
