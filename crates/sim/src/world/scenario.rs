//! Scripts over a quiet world: nothing happens but what the script says, and what came of it is told.

use super::{
    Machine, World, build,
    history::View,
    pods::{App, Kind},
};
use bascule_api::Version;
use bascule_planner::{Action, GateSet, Snapshot, lint, model, plan_asking, snapshot::PolicyFacts};
use std::{collections::BTreeSet, fmt::Write as _, sync::Arc};

impl World {
    /// A quiet world of workers on release 1.0 (with 0.9 as the way back), `per_zone` in each of three zones.
    #[must_use]
    pub fn scripted(per_zone: usize, policies: Vec<PolicyFacts>) -> Self {
        let mut snapshot = Snapshot {
            now: build::start(),
            seed: 7,
            policies: policies.into_iter().map(Arc::new).collect(),
            ..Snapshot::default()
        };
        for zone in ["a", "b", "c"] {
            for index in 1..=per_zone {
                snapshot.nodes.push(Arc::new(build::node(&format!("{zone}{index}"), zone)));
            }
        }
        let mut world = Self::quiet(snapshot);
        world.workload.healthy = true;
        for (name, machine) in &mut world.machines {
            *machine = Machine::new(name);
            machine.install(&build::version("1.0"), build::at(-86_400));
        }
        world
    }

    /// Puts so many pods of no budget on each node.
    pub fn with_pods(&mut self, pods: u32) {
        let names: Vec<String> = self.snapshot.nodes.iter().map(|node| node.name.to_string()).collect();
        for name in names {
            for _ in 0..pods {
                self.workload.add(&name, Kind::Loose, build::at(-86_400));
            }
        }
        self.show_workload();
    }

    /// An app with one pod on each of these nodes, of which `desired` must stay.
    pub fn with_app(&mut self, key: &str, nodes: &[&str], desired: u32) {
        let wanted = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        self.add_app(key, App { wanted, desired, ..App::default() }, nodes);
        self.show_workload();
    }

    /// An app whose budget opens only once one of its nodes is cordoned.
    pub fn with_switching_app(&mut self, key: &str, nodes: &[&str]) {
        let wanted = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        self.add_app(key, App { wanted, desired: wanted, switches: true, ..App::default() }, nodes);
        self.show_workload();
    }

    /// A pod that tolerates the cordon and is brought back to its node whenever it goes.
    pub fn with_tolerant(&mut self, node: &str) {
        self.workload.add(node, Kind::Tolerant, build::at(-86_400));
        self.show_workload();
    }

    /// A pod that does not tolerate the cordon, and is bound to its node again whenever it goes.
    pub fn with_returning(&mut self, node: &str) {
        self.workload.add(node, Kind::Returning, build::at(-86_400));
        self.show_workload();
    }

    /// A pod whose node selector names its node.
    pub fn with_anchored(&mut self, node: &str) {
        self.workload.add(node, Kind::Anchored, build::at(-86_400));
        self.show_workload();
    }

    /// A build that ends so many seconds from now.
    pub fn with_build(&mut self, node: &str, seconds: i64) {
        let ends_at = bascule_api::Time::new(self.snapshot.now.get() + chrono::TimeDelta::seconds(seconds));
        self.workload.add(node, Kind::Job(ends_at), build::at(-86_400));
        self.show_workload();
    }

    /// How many evictions there were so far.
    #[must_use]
    pub const fn evictions(&self) -> u32 {
        self.workload.evictions
    }

    /// A person cordons a node, or lifts whatever cordon it has.
    pub fn person(&mut self, node: &str, cordons: bool) {
        if cordons { self.person_cordons(node) } else { self.person_uncordons(node) }
    }

    /// How many pods of an app must stay.
    pub fn set_desired(&mut self, key: &str, desired: u32) {
        if let Some(app) = self.workload.apps.get_mut(key) {
            app.desired = desired;
        }
        self.show_workload();
    }

    /// The Node object is deleted and registered again, and the operator remembers nothing of the first.
    pub fn delete_and_forget(&mut self, node: &str) {
        self.register_again(node);
        if let Some(known) = self.snapshot.nodes.iter_mut().find(|known| *known.name == *node) {
            Arc::make_mut(known).earlier = None;
        }
    }

    /// Somebody deletes a NodeUpdate, of which the operator remembers its own word or nothing.
    pub fn delete_node_update(&mut self, node: &str, remembered: bool) {
        self.delete_update(node, remembered);
    }

    /// A node joins, on release 1.0; an autoscaler gives it the hold taint from its first moment, or does not.
    pub fn join(&mut self, name: &str, held: bool) {
        self.tell(&format!("{name}: joins"));
        let mut node = build::node(name, "a");
        node.created_at = self.snapshot.now;
        node.taints.hold = held;
        self.snapshot.nodes.push(Arc::new(node));
        let mut machine = Machine::new(name);
        machine.install(&build::version("1.0"), build::at(-86_400));
        self.machines.insert(name.to_owned(), machine);
    }

    /// Gives a node a label, or takes it away.
    pub fn label(&mut self, name: &str, key: &str, value: Option<&str>) {
        if let Some(node) = self.snapshot.nodes.iter_mut().find(|node| *node.name == *name) {
            let labels = Arc::make_mut(&mut Arc::make_mut(node).labels);
            match value {
                Some(value) => labels.insert(key.to_owned(), value.to_owned()),
                None => labels.remove(key),
            };
        }
    }

    /// The power of a node fails; it boots again.
    pub fn cut_power(&mut self, node: &str) {
        self.crash(node);
    }

    /// Somebody sees to a machine: it boots what its boot loader takes first, which is set up anew as soon as its agent has spoken.
    pub fn mend(&mut self, node: &str) {
        if let Some(machine) = self.machines.get_mut(node) {
            machine.mend();
        }
    }

    /// Pods that do not go away.
    pub fn stick(&mut self, node: &str) {
        self.workload.add(node, Kind::Stuck, build::at(-86_400));
        self.show_workload();
    }

    /// Whoever gates ask answers nobody any more, or does again.
    pub fn prometheus_dies(&mut self, dies: bool) {
        self.workload.deaf = dies;
    }

    /// From now on Jobs of hooks fail, or no more, whereupon a person deletes those that failed.
    pub fn fail_hooks(&mut self, fail: bool) {
        self.workload.hooks_fail = fail;
    }

    /// Somebody resolves what kept these pods.
    pub fn unstick(&mut self, node: &str) {
        self.workload.clear(Some(node), &Kind::Stuck);
        self.show_workload();
    }

    /// An alert fires, or does not any more: what gates about the cluster look at.
    pub fn alert(&mut self, fires: bool) {
        self.workload.healthy = !fires;
    }

    /// A build runs on a node: what gates look at that are asked for each node.
    pub fn occupy(&mut self, node: &str) {
        self.workload.busy.insert(node.to_owned());
    }

    /// What the last plan wanted to know.
    #[must_use]
    pub fn questions(&self) -> usize {
        self.workload.questions.len()
    }

    /// Changes a policy's facts.
    pub fn policy(&mut self, name: &str, change: impl Fn(&mut PolicyFacts)) {
        if let Some(policy) = self.snapshot.policies.iter_mut().find(|policy| policy.name == name) {
            change(Arc::make_mut(policy));
        }
    }

    /// The release a node runs.
    #[must_use]
    pub fn running(&self, node: &str) -> Option<&Version> {
        self.machines.get(node).and_then(Machine::running)
    }

    /// The operator plans and carries out so many steps, then is killed; `None`: it lives.
    ///
    /// # Errors
    /// Sentences of the lint.
    pub fn operate_for(&mut self, steps: Option<usize>) -> Result<usize, String> {
        let view = self.view();
        self.operate_from(view, steps)
    }

    /// The same from another view of the cluster, e.g. an old one.
    ///
    /// # Errors
    /// Sentences of the lint.
    pub fn operate_on(&mut self, seen: &Snapshot, steps: Option<usize>) -> Result<usize, String> {
        self.operate_from(View::of(seen.clone()), steps)
    }

    fn operate_from(&mut self, view: View, steps: Option<usize>) -> Result<usize, String> {
        let seen = &view.facts;
        let (plan, report) = plan_asking(seen, GateSet::ALL);
        let violations = lint(seen, &plan, &report);
        if !violations.is_empty() {
            return Err(violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
        }
        let number = self.note_plan(view, &plan, &report);
        let mut refused = self.backing_off(&plan);
        let mut unremembered = BTreeSet::new();
        for step in plan.steps.iter().take(steps.unwrap_or(usize::MAX)) {
            let node = step.action.node().unwrap_or_default();
            let rests_on = self.remembers_for(&step.action);
            let waits = rests_on.as_ref().is_some_and(|policy| unremembered.contains(policy))
                || (!node.is_empty() && refused.contains(node))
                || self.backs_off(step);
            if waits {
                continue;
            }
            let done = self.carry_out(step, &report);
            if done == Ok(model::Done::Applied) {
                self.note_act(number, &step.action);
            } else if let Action::Remember { policy, .. } = &step.action {
                refused.extend(super::nodes_of(&report, policy));
                unremembered.extend(rests_on);
            } else {
                refused.insert(node.to_owned());
            }
            let line = format!("{} {node} {} {}", step.action.name(), step.says, super::shown(&done));
            self.tell(line.split_whitespace().collect::<Vec<_>>().join(" ").as_str());
        }
        self.note_asked(&plan);
        if steps.is_none() {
            model::write_statuses(&mut self.snapshot, &report);
            self.workload.orders = plan.drains.iter().map(|order| (**order).clone()).collect();
        } else {
            self.tell("the operator dies");
            self.forget_writes();
            self.workload.forget();
        }
        self.workload.questions = plan.questions;
        Ok(plan.steps.len())
    }

    /// Time passes in rounds of ten seconds, with the operator at work, until a condition holds.
    ///
    /// # Errors
    /// Sentences of the lint, or that the condition never held within `rounds`.
    pub fn until(&mut self, rounds: usize, mut holds: impl FnMut(&Self) -> bool) -> Result<(), String> {
        for _ in 0..rounds {
            // What one plan makes possible is done at once, as the operator's watch would have it.
            for _ in 0..4 {
                if self.operate_for(None)? == 0 {
                    break;
                }
            }
            if holds(self) {
                return Ok(());
            }
            self.pass(10);
        }
        Err(format!("it never came to that\n{}\n{}", self.story, self.shown()))
    }

    /// Each node with what it does and why, as `kubectl get nodeupdates` would show it.
    #[must_use]
    pub fn shown(&self) -> String {
        let (plan, report) = plan_asking(&self.snapshot, GateSet::ALL);
        let mut out = format!("{}\n", self.snapshot.now);
        for said in &report.nodes {
            let running = self.running(&said.node).map_or("?", Version::as_str);
            let until = said.wait.until.map_or(String::new(), |until| format!(" until {until}"));
            let _ = writeln!(
                out,
                "{:<4} {running:<5} {:<9} {}{until}: {}",
                said.node,
                format!("{:?}", said.state),
                said.wait.reason,
                said.wait.message
            );
        }
        for policy in &report.policies {
            let columns = &policy.status.columns;
            let _ = writeln!(
                out,
                "policy {} {} updated {} window {} waits {}",
                policy.policy,
                policy.status.target.as_ref().map_or("-", |target| target.version.as_str()),
                columns.updated,
                columns.next_window,
                columns.waits_for
            );
        }
        let _ = writeln!(out, "next step: {}", plan.steps.first().map_or("none", |step| step.action.name()));
        out
    }

    /// The story so far, which begins anew.
    pub fn take_story(&mut self) -> String {
        std::mem::take(&mut self.story)
    }
}
