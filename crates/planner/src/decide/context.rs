//! One node in a round, with all that was found out about it.

use super::{assess::Assessment, desired::Desired, facts::NodeView};
use std::ops::Deref;

/// What is known of a node, what it should run, and what follows from that.
#[derive(Debug)]
pub(super) struct NodeContext<'a> {
    pub(super) view: NodeView<'a>,
    /// What it should run; `None` where no policy may say it.
    pub(super) desired: Option<Desired<'a>>,
    /// What follows from that.
    pub(super) assessed: Assessment,
}

impl<'a> Deref for NodeContext<'a> {
    type Target = NodeView<'a>;

    fn deref(&self) -> &Self::Target {
        &self.view
    }
}
