//! What happens to the agent.

use bascule_api::{
    Goal, Grant, NodeError, NodeUpdateSpec, NodeUpdateStatus, PackFallback, ReleaseRef, RootHash, SlotName, Time,
    Transfer,
};
use bascule_image::Manifest;
use std::sync::Arc;

use super::{EffectKind, Facts, Journal};

/// The operator's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The NodeUpdate's UID: another one means that the node was made anew.
    pub uid: String,
    /// The generation of its spec.
    pub generation: i64,
    /// What shall be reached.
    pub goal: Goal,
    /// The release in question.
    pub release: Option<ReleaseRef>,
    /// The permission to disrupt.
    pub grant: Option<Grant>,
    /// A disruption has begun: the node is being drained, so what is needed for arming is made ready.
    pub disruption_begun: bool,
    /// What to do about a missing pack.
    pub pack_fallback: PackFallback,
    /// A person's word that what failed here is tried again; another time is another word.
    pub retry: Option<Time>,
}

impl Desired {
    /// From a spec.
    pub fn new(uid: String, generation: i64, spec: &NodeUpdateSpec) -> Self {
        Self {
            uid,
            generation,
            goal: spec.goal,
            release: spec.release.clone(),
            grant: spec.grant.clone(),
            disruption_begun: spec.disruption.is_some(),
            pack_fallback: spec.pack_fallback,
            retry: spec.retry,
        }
    }
}

/// A failed effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What failed.
    pub effect: EffectKind,
    /// The kind.
    pub category: NodeError,
    /// The whole chain of errors in one line.
    pub message: String,
    /// Whether trying again soon may help without anybody's doing.
    pub transient: bool,
    /// It was stopped on purpose.
    pub cancelled: bool,
}

/// A break-glass command, on the node, by root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManualCommand {
    /// Bring a release into the inactive slot.
    Stage(ReleaseRef),
    /// Make the running trial permanent.
    Commit,
    /// Go back to the other slot.
    Revert {
        /// Also to a release that is made for an older state of the machine.
        accept_state: bool,
    },
}

impl ManualCommand {
    /// As it stands in `status.manualActions`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stage(_) => "stage",
            Self::Commit => "commit",
            Self::Revert { .. } => "revert",
        }
    }
}

/// Something happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// The journal was read; this comes with every look at the machine, since a break-glass command may have written it.
    Loaded(Box<Journal>),
    /// The machine was looked at.
    Observed(Box<Facts>),
    /// What the agent's part of the status says on the server: where conditions go on from, and what need not be
    /// written again.
    Remembered(Box<NodeUpdateStatus>),
    /// The operator's word changed; `None` when the object is gone.
    Desired(Option<Desired>),
    /// A release was verified.
    Resolved(Arc<Manifest>),
    /// A slot was read back whole.
    Verified {
        /// The slot.
        slot: SlotName,
        /// What it holds.
        root_hash: RootHash,
    },
    /// The running slot was read whole.
    Inspected {
        /// What it holds instead of its release, if that is so.
        changed: Option<String>,
    },
    /// The effects of the last step were carried out.
    Done,
    /// One of them failed; those after it were not carried out.
    Failed(Failure),
    /// The transfer moved on, or rests.
    Transfer(Transfer),
    /// A person on the node asks for something.
    Manual {
        /// What.
        command: ManualCommand,
        /// Who, as far as it can be known.
        user: Option<String>,
    },
    /// Time has passed.
    Tick,
}
