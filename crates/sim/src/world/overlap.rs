//! An operator whose writes take their time: the next plan is made while those of the last one are under way, and they
//! land in any order. A node has one writer at a time, grants wait for those of an earlier plan, and so does the drain of a
//! node that is being written to, as in the operator.

use super::{Broken, Failure, World, check, shown};
use bascule_planner::{
    Action, Plan, Report, Step, lint, model,
    plan::{DrainMode, DrainOrder},
    snapshot::UpdateFacts,
};
use rand::RngExt as _;
use std::collections::{BTreeMap, BTreeSet};

/// What is told of the second plan of a round.
pub(super) const PLANS_AGAIN: &str = "operator  plans while it is writing";

/// What of a plan waits while writes of an earlier one are under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meanwhile {
    /// All that has to.
    Waits,
    /// Grants are begun beside those of an earlier plan: a mutant.
    Grants,
    /// Drains are begun on nodes that are being written to: a mutant.
    Drains,
}

/// The steps of one node that are begun together.
struct Writes {
    /// The plan that they are of, by its number in the history.
    plan: usize,
    steps: Vec<Step>,
}

fn by_node(plan: &Plan, number: usize) -> Vec<Writes> {
    let mut nodes: BTreeMap<&str, Vec<Step>> = BTreeMap::new();
    for step in &plan.steps {
        if let Some(node) = step.action.node() {
            nodes.entry(node).or_default().push(step.clone());
        }
    }
    nodes.into_values().map(|steps| Writes { plan: number, steps }).collect()
}

fn node_of(writes: &Writes) -> Option<&str> {
    writes.steps.first().and_then(|step| step.action.node())
}

fn grants(writes: &Writes) -> bool {
    writes.steps.iter().any(|step| matches!(step.action, Action::Grant { .. }))
}

fn orders(plan: &Plan) -> Vec<DrainOrder> {
    plan.drains.iter().map(|order| (**order).clone()).collect()
}

impl World {
    /// Two plans, the second made some seconds later while writes of the first are still under way.
    pub(super) fn operate_overlapping(&mut self, meanwhile: Meanwhile) -> Result<(), Box<Failure>> {
        let broken = self.overlapped(meanwhile, 50, |world| {
            let seconds = world.random.random_range(1..10);
            world.pass(seconds);
        });
        self.fail_if(broken)
    }

    /// The same in a script: all writes of the first plan are late, and this happens meanwhile.
    ///
    /// # Errors
    /// [`Failure`], when a promise was broken.
    pub fn operate_late(&mut self, meanwhile: Meanwhile, happens: impl FnOnce(&mut Self)) -> Result<(), Box<Failure>> {
        let mut broken = self.overlapped(meanwhile, 100, happens);
        broken.extend(check::world(self));
        self.fail_if(broken)
    }

    /// Two plans, and what happens between them while `late` percent of the first one's writes are under way.
    fn overlapped(&mut self, meanwhile: Meanwhile, late: u32, happens: impl FnOnce(&mut Self)) -> Vec<Broken> {
        let mut broken = Vec::new();
        let (first, report, number) = self.planned(&mut broken);
        let in_the_middle = self.in_the_middle();
        let mut under_way: Vec<Writes> = Vec::new();
        for writes in self.begun(&first, number) {
            if self.chance(late) {
                under_way.push(writes);
            } else {
                self.write(&writes, &report, &mut broken);
            }
        }
        // As the operator, which asks after every plan.
        self.workload.questions.clone_from(&first.questions);
        self.workload.orders = orders(&first);
        happens(self);
        self.tell(PLANS_AGAIN);
        let (second, report, number) = self.planned(&mut broken);
        let granting = under_way.iter().any(grants) && meanwhile != Meanwhile::Grants;
        // What is being written may be the end of a drain that this plan, which has not seen it, would begin anew.
        let written: BTreeSet<&str> = under_way.iter().filter_map(node_of).collect();
        let mut drains = orders(&second);
        drains.retain(|order| {
            // One that only keeps what it knows begins when it asks.
            let goes_on = self.workload.orders.iter().any(|other| {
                other.node == order.node && (other.mode != DrainMode::Keep || order.mode == DrainMode::Keep)
            });
            goes_on || !written.contains(&*order.node) || meanwhile == Meanwhile::Drains
        });
        let begun: Vec<Writes> = self
            .begun(&second, number)
            .into_iter()
            .filter(|writes| !under_way.iter().any(|other| node_of(other) == node_of(writes)))
            .filter(|writes| !(granting && grants(writes)))
            .collect();
        if granting {
            // Of a Node that was registered anew and that nobody remembers only its agent tells what its machine is in the middle
            // of. What was granted before it had stands beside it; what the first plan saw it had to count.
            let steps = begun.iter().flat_map(|writes| &writes.steps);
            let adopted = steps.filter(|step| matches!(step.action, Action::Adopt { .. }));
            let adopted = adopted.filter_map(|step| step.action.node()).filter(|node| !in_the_middle.contains(*node));
            self.adopted_meanwhile = adopted.map(str::to_owned).collect();
            if !self.adopted_meanwhile.is_empty() {
                self.tell("operator  adopts beside a grant what it could not see when it granted");
            }
        }
        under_way.extend(begun);
        while !under_way.is_empty() {
            let next = self.up_to(under_way.len() - 1);
            let writes = under_way.swap_remove(next);
            self.write(&writes, &report, &mut broken);
        }
        self.adopted_meanwhile.clear();
        model::write_statuses(&mut self.snapshot, &report);
        self.workload.orders = drains;
        self.workload.questions = second.questions;
        self.lived += 1;
        broken
    }

    /// What of a plan may be begun: nodes that a write of which has just failed are left alone.
    fn begun(&self, plan: &Plan, number: usize) -> Vec<Writes> {
        let resting = self.resting(plan);
        let mut all = by_node(plan, number);
        for writes in &mut all {
            writes.steps.retain(|step| !(step.action.is_housekeeping() && self.rests(step)));
        }
        all.retain(|writes| !writes.steps.is_empty() && !node_of(writes).is_some_and(|node| resting.contains(node)));
        all
    }

    /// The nodes of which can be seen that they are in the middle of a disruption, whether or not it stands in their NodeUpdate.
    fn in_the_middle(&self) -> BTreeSet<String> {
        let seen = self.snapshot.nodes.iter().filter(|node| {
            let forgot = node.live_update().is_some_and(UpdateFacts::forgot_a_grant);
            node.granted() || node.interrupted().is_some() || forgot
        });
        seen.map(|node| node.name.to_string()).collect()
    }

    /// A plan with its number, of which is remembered what is to be remembered before anything is done.
    fn planned(&mut self, broken: &mut Vec<Broken>) -> (Plan, Report, usize) {
        self.note_thresholds();
        let (plan, report) = self.plan(&self.snapshot);
        broken.extend(lint(&self.snapshot, &plan, &report).into_iter().map(Broken::Lint));
        let number = self.note_plan(self.view(), &plan, &report);
        for step in plan.steps.iter().filter(|step| step.action.node().is_none()) {
            if self.rests(step) {
                continue;
            }
            let done = self.carry_out(step, &report);
            self.tell(&format!("operator  {} {}", step.action.name(), shown(&done)));
            if done == Ok(model::Done::Applied) {
                broken.extend(check::remembered(self, &step.action));
                self.note_act(number, &step.action);
            }
        }
        self.note_asked(&plan);
        (plan, report, number)
    }

    fn write(&mut self, writes: &Writes, report: &Report, broken: &mut Vec<Broken>) {
        for step in &writes.steps {
            let done = self.carry_out(step, report);
            let node = step.action.node().unwrap_or_default();
            self.tell(&format!("operator  {} {node} {} {}", step.action.name(), step.says, shown(&done)));
            if done != Ok(model::Done::Applied) {
                return;
            }
            self.note_act(writes.plan, &step.action);
            broken.extend(check::step(self, &step.action));
        }
    }
}
