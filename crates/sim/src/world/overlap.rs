//! An operator whose writes take their time: the next plan is made while those of the last one are under way, and they
//! land in any order. A node has one writer at a time, and grants wait for those of an earlier plan, as in the operator.

use super::{Broken, Failure, World, check, shown};
use bascule_planner::{Action, Plan, Report, Step, lint, model, plan_asking};
use rand::RngExt as _;
use std::collections::BTreeMap;

/// What is told of the second plan of a round.
pub(super) const PLANS_AGAIN: &str = "operator  plans while it is writing";

/// What becomes of grants while those of an earlier plan are under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grants {
    /// They wait.
    Wait,
    /// They are begun: the mutant.
    Overlap,
}

/// The steps of one node that are begun together.
type Writes = Vec<Step>;

fn by_node(plan: &Plan) -> Vec<Writes> {
    let mut nodes: BTreeMap<&str, Writes> = BTreeMap::new();
    for step in &plan.steps {
        if let Some(node) = step.action.node() {
            nodes.entry(node).or_default().push(step.clone());
        }
    }
    nodes.into_values().collect()
}

fn node_of(writes: &Writes) -> Option<&str> {
    writes.first().and_then(|step| step.action.node())
}

fn grants(writes: &Writes) -> bool {
    writes.iter().any(|step| matches!(step.action, Action::Grant { .. }))
}

impl World {
    /// Two plans, the second made some seconds later while writes of the first are still under way.
    pub(super) fn operate_overlapping(&mut self, grants_meanwhile: Grants) -> Result<(), Box<Failure>> {
        let mut broken = Vec::new();
        let (first, report) = self.planned(&mut broken);
        let mut under_way: Vec<Writes> = Vec::new();
        for writes in by_node(&first) {
            if self.chance(50) {
                under_way.push(writes);
            } else {
                self.write(&writes, &report, &mut broken);
            }
        }
        let seconds = self.random.random_range(1..10);
        self.pass(seconds);
        self.tell(PLANS_AGAIN);
        let (second, report) = self.planned(&mut broken);
        let granting = under_way.iter().any(grants) && grants_meanwhile == Grants::Wait;
        let begun: Vec<Writes> = by_node(&second)
            .into_iter()
            .filter(|writes| !under_way.iter().any(|other| node_of(other) == node_of(writes)))
            .filter(|writes| !(granting && grants(writes)))
            .collect();
        under_way.extend(begun);
        while !under_way.is_empty() {
            let next = self.up_to(under_way.len() - 1);
            let writes = under_way.swap_remove(next);
            self.write(&writes, &report, &mut broken);
        }
        model::write_statuses(&mut self.snapshot, &report);
        self.workload.orders = second.drains.iter().map(|order| (**order).clone()).collect();
        self.workload.questions = second.questions;
        self.fail_if(broken)
    }

    /// A plan, of which is remembered what is to be remembered before anything is done.
    fn planned(&mut self, broken: &mut Vec<Broken>) -> (Plan, Report) {
        let (plan, report) = plan_asking(&self.snapshot, self.gates);
        broken.extend(lint(&self.snapshot, &plan, &report).into_iter().map(Broken::Lint));
        for step in plan.steps.iter().filter(|step| step.action.node().is_none()) {
            let done = model::apply(&mut self.snapshot, step, &report);
            self.tell(&format!("operator  {} {}", step.action.name(), shown(&done)));
        }
        (plan, report)
    }

    fn write(&mut self, writes: &Writes, report: &Report, broken: &mut Vec<Broken>) {
        for step in writes {
            let done = model::apply(&mut self.snapshot, step, report);
            let node = step.action.node().unwrap_or_default();
            self.tell(&format!("operator  {} {node} {} {}", step.action.name(), step.says, shown(&done)));
            if done != model::Done::Applied {
                return;
            }
            broken.extend(check::step(self, &step.action));
        }
    }
}
