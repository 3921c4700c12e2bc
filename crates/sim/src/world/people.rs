//! What people do in some worlds beside what they do in all: they cordon what they lifted, delete policies and NodeUpdates, edit labels,
//! and freeze some policies or nodes.

use super::{World, build, players::Player};
use bascule_planner::snapshot::{Cordon, PolicyFacts};
use rand::RngExt as _;
use std::sync::Arc;

/// Of a hundred rounds, in how many one of them does something.
const ACT: u32 = 12;

impl World {
    /// With some luck nobody, else somebody.
    pub(super) fn people_act(&mut self) {
        let (nodes, policies) = (self.snapshot.nodes.len(), self.snapshot.policies.len());
        let Some((Player::People, random)) = &mut self.company else { return };
        if random.random_range(0..100) >= ACT || nodes == 0 {
            return;
        }
        let (what, node) = (random.random_range(0..6), random.random_range(0..nodes));
        let (policy, seconds) = (random.random_range(0..policies.max(1)), random.random_range(60..1_200));
        let remembered = random.random_range(0..100) < 60;
        let Some(name) = self.snapshot.nodes.get(node).map(|node| node.name.to_string()) else { return };
        match what {
            0 => self.cordon_again(&name),
            1 => self.delete_policy(policy),
            2 => self.delete_update(&name, remembered),
            3 => self.edit_labels(&name),
            _ => self.freeze_some(&name, policy, seconds),
        }
    }

    /// Somebody lifts the operator's cordon and cordons the node again. The mark is still there, and nobody can tell whose cordon it is.
    fn cordon_again(&mut self, name: &str) {
        let Some(node) = self.snapshot.nodes.iter_mut().find(|node| *node.name == *name) else { return };
        if let Cordon::Lifted { mark } = node.cordon.clone() {
            Arc::make_mut(node).cordon = Cordon::Ours { mark };
            self.tell(&format!("{name}: carol cordons it again, over the operator's mark"));
        }
    }

    /// Somebody deletes a policy; in peace it is made anew. One with hooks of whole rollouts is left: what they do is nobody's to undo then.
    fn delete_policy(&mut self, index: usize) {
        let hooked = |policy: &PolicyFacts| {
            let valid = policy.spec.as_ref().ok();
            policy.status.maintenance.is_some()
                || valid.is_some_and(|valid| !valid.spec.hooks.before_rollout.is_empty())
        };
        let Some(policy) = self.snapshot.policies.get(index).filter(|policy| !hooked(policy)).cloned() else { return };
        self.tell(&format!("carol deletes policy {}", policy.name));
        self.snapshot.policies.remove(index);
        // What it remembered goes with it.
        let known: Vec<String> = self.dead.iter().filter(|name| self.is_remembered(name)).cloned().collect();
        self.dead = known;
        self.deleted.push(policy);
    }

    /// The policies that were deleted are made anew, and remember nothing.
    pub(super) fn restore_policies(&mut self) {
        if self.deleted.is_empty() {
            return;
        }
        let now = self.snapshot.now;
        for policy in std::mem::take(&mut self.deleted) {
            let name = policy.name.clone();
            if self.snapshot.policies.iter().any(|known| known.name == name) {
                continue;
            }
            self.tell(&format!("carol makes policy {name} anew"));
            // Others may have been offered more since.
            let offer = self.snapshot.policies.first().map_or(&policy.offer, |known| &known.offer);
            let policy = PolicyFacts {
                uid: format!("uid-{name}-{}", now.get().timestamp()),
                created_at: now,
                generation: 1,
                status: bascule_api::UpdatePolicyStatus::default(),
                offer: Arc::clone(offer),
                ..(*policy).clone()
            };
            self.snapshot.policies.push(Arc::new(policy));
        }
        self.snapshot.policies.sort_by(|one, other| one.name.cmp(&other.name));
    }

    /// Somebody deletes a NodeUpdate. An operator that stood by remembers its own word of it.
    pub(super) fn delete_update(&mut self, name: &str, remembered: bool) {
        let Some(node) = self.snapshot.nodes.iter_mut().find(|node| *node.name == *name) else { return };
        let node = Arc::make_mut(node);
        let Some(update) = node.update.take() else { return };
        let disrupted = Some(update.spec).filter(|spec| spec.disruption.is_some()).map(Arc::new);
        node.earlier = disrupted.or_else(|| node.earlier.take()).filter(|_| remembered);
        let (uid, remembered) = (node.uid.clone(), node.earlier.is_some());
        self.tell(&format!("{name}: carol deletes its NodeUpdate"));
        // Nobody has ordered the node to be emptied any more.
        self.workload.break_off(name, &uid, remembered);
        if !remembered {
            // Numbers of grants begin anew, and with another disruption its hooks run.
            let of_node = format!("/{name}");
            self.workload.succeeded.retain(|(of, ..)| !of.ends_with(&of_node));
        }
    }

    /// Somebody makes a node a canary, or none.
    fn edit_labels(&mut self, name: &str) {
        let Some(node) = self.snapshot.nodes.iter_mut().find(|node| *node.name == *name) else { return };
        let labels = Arc::make_mut(&mut Arc::make_mut(node).labels);
        let is_canary = labels.remove("canary").is_none();
        if is_canary {
            labels.insert("canary".to_owned(), "yes".to_owned());
        }
        self.tell(&format!("{name}: carol edits its labels, and it is a canary: {is_canary}"));
    }

    /// Somebody freezes one policy or one node.
    fn freeze_some(&mut self, name: &str, policy: usize, seconds: u64) {
        let now = self.snapshot.now;
        let mut freeze = build::freeze(&format!("some-{}", now.get().timestamp()), now, seconds);
        if seconds.is_multiple_of(2) {
            freeze.spec.nodes = vec![name.to_owned()];
        } else {
            let named = self.snapshot.policies.get(policy).map(|policy| policy.name.clone());
            freeze.spec.policies = named.into_iter().collect();
        }
        // Of nothing it would be one of everything.
        if freeze.spec.nodes.is_empty() && freeze.spec.policies.is_empty() {
            return;
        }
        self.tell(&format!("carol freezes {:?} {:?} for {seconds} s", freeze.spec.policies, freeze.spec.nodes));
        self.snapshot.freezes.push(Arc::new(freeze));
    }
}
