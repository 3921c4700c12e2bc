//! Taints that steer pods: away from nodes that will be emptied soon, and not yet onto nodes that are too new.

use super::{PolicyWaves, Round, context::NodeContext, hold::Held};
use crate::{Action, Expect, Step, plan::Taint};
use bascule_api::Time;

impl Round<'_> {
    /// While a rollout runs, nodes on the old release carry the outdated taint; held nodes are let go as [`Held`] says.
    pub(super) fn taint(&mut self, waves: &[PolicyWaves]) {
        let (mut steps, mut wake) = (Vec::new(), None);
        for (index, NodeContext { view, assessed, .. }) in self.nodes.iter().enumerate() {
            let (node, traits, outdated) = (view.node, view.traits, assessed.outdated);
            // Whether a held node is let go is looked at anew each time: its wave, or a person, may hold it back.
            let as_it_should_be = traits.outdated == outdated && !traits.held;
            if as_it_should_be || traits.deleting || traits.moves {
                continue;
            }
            let invalid = matches!(traits.selection, super::Selection::One(_)) && self.deciding(view).is_none();
            let unknown = invalid || self.unreadable(view).is_some();
            let mut step = |action: Action, says: String| {
                // A new node whose time is over takes work, whatever is known of it.
                let though_unreadable = matches!(action, Action::Untaint { taint: Taint::Hold, .. });
                let expect = Expect { node_uid: Some(node.uid.clone()), though_unreadable, ..Expect::default() };
                steps.push(Step { action, expect, cause: None, says });
            };
            let name = || node.name.to_string();
            match (traits.outdated, outdated) {
                (true, false) if !unknown => {
                    step(Action::Untaint { node: name(), taint: Taint::Outdated }, String::new());
                }
                (false, true) => step(Action::Taint { node: name(), taint: Taint::Outdated }, String::new()),
                _ => {}
            }
            match traits.held.then(|| self.held(index, view, waves)) {
                Some(Held::LetGo(says)) => step(Action::Untaint { node: name(), taint: Taint::Hold }, says),
                Some(Held::Until(until)) => wake = Some(wake.map_or(until, |wake: Time| wake.min(until))),
                None => {}
            }
        }
        self.draft.steps.append(&mut steps);
        self.draft.wake(wake, self.snapshot.now);
    }
}
