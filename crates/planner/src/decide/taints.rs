//! Taints that steer pods: away from nodes that will be emptied soon, and not yet onto nodes that are too new.

use super::{PolicyWaves, Round, choice::Choice, chosen::may_come_up, gates};
use crate::{Action, Expect, Rule, Step, plan::Taint};

impl Round<'_> {
    /// While a rollout runs, nodes on the old release carry the outdated taint; held nodes are let go once they run
    /// what they should, or have to wait for something that may take days.
    pub(super) fn taint(&mut self, waves: &[PolicyWaves]) {
        let mut steps = Vec::new();
        for (index, view) in self.nodes.iter().enumerate() {
            if !self.chosen.get(index).is_some_and(|chosen| chosen.taints) {
                continue;
            }
            let (node, traits) = (view.node, view.traits);
            if traits.deleting || traits.moves {
                continue;
            }
            let deciding = self.deciding(view);
            let policy = deciding.and_then(|policy| self.policies.get(policy));
            let choice = self.choices.get(index).and_then(Option::as_ref);
            let rolling = policy.is_some_and(|policy| policy.memory.running().is_some());
            let outdated = rolling && traits.ready && matches!(choice, Some(Choice::Install(_)));
            let holds = policy.is_some_and(|policy| policy.valid.is_some_and(|valid| valid.spec.new_nodes.hold));
            // What a node runs is not known before its agent reports; until then it stays held.
            let unknown = !traits.booted && policy.is_some();
            let comes = |choice: &Choice<'_>| match choice {
                Choice::Install(install) => may_come_up(policy, view, install),
                Choice::Here | Choice::Nothing(_) | Choice::GoBack(_) => false,
            };
            let may_take_days = || {
                let waves = deciding.and_then(|policy| Some((policy, waves.get(policy)?)));
                let candidate = waves.and_then(|(policy, waves)| self.candidate(policy, index, waves));
                self.set.keeps(Rule::HeldForMinutes)
                    && candidate.is_some_and(|candidate| gates::may_take_days(&candidate))
            };
            let hold = holds && (unknown || choice.is_some_and(comes)) && !(traits.held && may_take_days());
            let invalid = matches!(traits.selection, super::Selection::One(_)) && policy.is_none();
            for (taint, has, wanted) in [(Taint::Outdated, traits.outdated, outdated), (Taint::Hold, traits.held, hold)]
            {
                if has == wanted {
                    continue;
                }
                let name = node.name.to_string();
                let action = match (has, wanted) {
                    (true, false) if !invalid => Action::Untaint { node: name, taint },
                    (false, true) if taint == Taint::Outdated => Action::Taint { node: name, taint },
                    _ => continue,
                };
                let expect = Expect { node_uid: Some(node.uid.clone()), ..Expect::default() };
                steps.push(Step { action, expect, cause: None, says: String::new() });
            }
        }
        self.draft.steps.append(&mut steps);
    }
}
