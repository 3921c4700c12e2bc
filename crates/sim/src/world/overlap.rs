//! An operator whose writes take their time: the next plan is made while those of the last one are in flight, and they land in any
//! order. Some are answered late, some are repeated by the client, of some nobody ever hears, whether they land or not. What is begun
//! beside them is the planner's word: it knows what is in flight, as in the operator.

use super::{Broken, Failure, World, check, shown};
use bascule_planner::{
    Action, Plan, Report, Step, lint, model,
    plan::{DrainMode, DrainOrder},
    snapshot::{Ending, Node, UpdateFacts, Write},
};
use rand::RngExt as _;
use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// What is told of the second plan of a round.
pub(super) const PLANS_AGAIN: &str = "operator  plans while it is writing";

/// How many seconds later the operator gives up writes that nobody answered.
const GIVEN_UP: i64 = 25;

/// What of a plan waits while writes of an earlier one are in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meanwhile {
    /// All that has to.
    Waits,
    /// Drains are begun on nodes that are being written to: a mutant.
    Drains,
}

/// What becomes of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// They land, sooner or later, and are answered.
    Lands,
    /// The first lands, its answer is lost, and the client asks again: it has changed the object itself.
    Repeated,
    /// Nobody answers, and the first lands when the operator has given it up and planned without it.
    LandsUnheard,
    /// Nothing comes of them, and nobody says so.
    Lost,
}

/// The steps of one node that are begun together.
struct Writes {
    /// The plan that they are of, by its number in the history.
    plan: usize,
    steps: Vec<Step>,
    /// When, by the operator's own clock.
    begun: Duration,
    /// The node as it was: what is written carries the version of the object.
    seen: Option<Arc<Node>>,
    way: Way,
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
    /// Plans of which each is made some seconds later, while writes of those before are still in flight.
    pub(super) fn operate_overlapping(&mut self, meanwhile: Meanwhile) -> Result<(), Box<Failure>> {
        let broken = self.overlapped(meanwhile, None, |world| {
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
        let mut broken = self.overlapped(meanwhile, Some(Way::Lands), happens);
        broken.extend(check::world(self));
        self.fail_if(broken)
    }

    /// Two plans, and what happens between them while writes of the first one are in flight: all of them in one `way`, or some of them in
    /// any. Where the operator gives some up, a third.
    fn overlapped(&mut self, meanwhile: Meanwhile, way: Option<Way>, happens: impl FnOnce(&mut Self)) -> Vec<Broken> {
        let mut broken = Vec::new();
        self.watch_on();
        let (first, report, number) = self.planned(&mut broken);
        let in_the_middle = self.in_the_middle();
        let mut in_flight: Vec<Writes> = Vec::new();
        for writes in self.begun(&first, number) {
            match way.or_else(|| self.late()) {
                Some(way) => in_flight.push(Writes { way, ..writes }),
                None => self.write(&writes, &report, &mut broken),
            }
        }
        // As the operator, which asks after every plan.
        self.workload.questions.clone_from(&first.questions);
        self.workload.orders = self.drains(&first, meanwhile);
        happens(self);
        self.tell(PLANS_AGAIN);
        let (second, report, number) = self.planned(&mut broken);
        let (drains, begun) = (self.drains(&second, meanwhile), self.begun(&second, number));
        if in_flight.iter().any(grants) {
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
        in_flight.extend(begun);
        let (mut unheard, mut in_flight): (Vec<_>, Vec<_>) =
            in_flight.into_iter().partition(|writes| matches!(writes.way, Way::LandsUnheard | Way::Lost));
        while !in_flight.is_empty() {
            let next = self.up_to(in_flight.len() - 1);
            let writes = in_flight.swap_remove(next);
            self.write(&writes, &report, &mut broken);
        }
        self.workload.orders = drains;
        self.workload.questions = second.questions;
        let mut said = report;
        if !unheard.is_empty() {
            let (third, newest) = self.give_up(&unheard, &mut broken);
            while let Some(writes) = unheard.pop() {
                self.land(&writes, &newest, &mut broken);
            }
            self.workload.orders = self.drains(&third, meanwhile);
            self.workload.questions = third.questions;
            said = newest;
        }
        self.adopted_meanwhile.clear();
        model::write_statuses(&mut self.snapshot, &said);
        self.lived += 1;
        broken
    }

    /// What becomes of writes that are not answered at once; `None`: they are.
    fn late(&mut self) -> Option<Way> {
        if !self.chance(50) {
            return None;
        }
        Some(match self.random.random_range(0..10) {
            _ if self.peace => Way::Lands,
            0 => Way::Repeated,
            1 => Way::LandsUnheard,
            2 => Way::Lost,
            _ => Way::Lands,
        })
    }

    /// The operator has waited long enough for these, and plans on.
    fn give_up(&mut self, unheard: &[Writes], broken: &mut Vec<Broken>) -> (Plan, Report) {
        self.pass(GIVEN_UP);
        let now = self.snapshot.now;
        for writes in unheard {
            let Some(step) = writes.steps.first() else { continue };
            let (write, node) = (Write::of(&step.action), step.action.node().unwrap_or_default());
            self.tell(&format!("operator  hears nothing of {} {node}", step.action.name()));
            self.note_refusal(&write);
            self.snapshot.refused.note(write, Some("the API server did not answer in time"), now);
            self.ended(writes, Ending::Unknown);
        }
        let (plan, report, number) = self.planned(broken);
        for writes in self.begun(&plan, number) {
            self.write(&writes, &report, broken);
        }
        (plan, report)
    }

    /// The drains that stand by a plan: those that run, and those that may begin by it.
    fn drains(&self, plan: &Plan, meanwhile: Meanwhile) -> Vec<DrainOrder> {
        let mut drains = orders(plan);
        drains.retain(|order| {
            // One that only keeps what it knows begins when it asks.
            let goes_on = self.workload.orders.iter().any(|other| {
                other.node == order.node && (other.mode != DrainMode::Keep || order.mode == DrainMode::Keep)
            });
            goes_on || plan.schedule.may_begin_drain(&order.node) || meanwhile == Meanwhile::Drains
        });
        drains
    }

    /// What of a plan is begun, in its order.
    fn begun(&mut self, plan: &Plan, number: usize) -> Vec<Writes> {
        let begun = self.snapshot.writes.now;
        let mut all = Vec::new();
        for batch in plan.schedule.batches.iter().take(plan.schedule.room) {
            let steps = plan.steps_of(batch);
            self.snapshot.writes.begin(Some(&batch.node), &steps, begun);
            let seen = self.snapshot.nodes.iter().find(|node| *node.name == *batch.node).cloned();
            let steps = steps.into_iter().cloned().collect();
            all.push(Writes { plan: number, steps, begun, seen, way: Way::Lands });
        }
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
            if self.backs_off(step) {
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

    /// Writes land of which nobody hears: the first, unless its object is another since. Whoever sent it is not there to go on.
    fn land(&mut self, writes: &Writes, report: &Report, broken: &mut Vec<Broken>) {
        let Some(step) = writes.steps.first().filter(|_| writes.way == Way::LandsUnheard) else { return };
        let now = self.snapshot.nodes.iter().find(|node| step.action.node() == Some(&*node.name));
        if now != writes.seen.as_ref() {
            return;
        }
        let done = model::apply(&mut self.snapshot, step, report);
        let node = step.action.node().unwrap_or_default();
        self.tell(&format!(
            "operator  unheard: {} {node} {} {}",
            step.action.name(),
            step.says,
            shown(&Ok(done.clone()))
        ));
        if done == model::Done::Applied {
            self.note_act(writes.plan, &step.action);
            // So it is, and the operator takes it for refused all the same.
            self.note_refusal(&Write::of(&step.action));
            broken.extend(check::step(self, &step.action));
        }
    }

    /// The operator takes note that writes ended, and how long the API server took.
    fn ended(&mut self, writes: &Writes, ending: Ending) {
        let book = &mut self.snapshot.writes;
        book.answered(writes.begun, book.now.saturating_sub(writes.begun));
        if let Some(node) = node_of(writes) {
            book.end(node, ending, book.now);
        }
    }

    fn write(&mut self, writes: &Writes, report: &Report, broken: &mut Vec<Broken>) {
        let mut ending = Ending::Done;
        for step in &writes.steps {
            let done = self.carry_out(step, report);
            let node = step.action.node().unwrap_or_default();
            self.tell(&format!("operator  {} {node} {} {}", step.action.name(), step.says, shown(&done)));
            if done != Ok(model::Done::Applied) {
                // The object is another than it was.
                ending = if done.is_ok() { Ending::Unknown } else { Ending::NotDone };
                break;
            }
            self.note_act(writes.plan, &step.action);
            broken.extend(check::step(self, &step.action));
            if writes.way == Way::Repeated {
                let again = self.carry_out(step, report);
                self.tell(&format!("operator  again: {} {node} {}", step.action.name(), shown(&again)));
                ending = Ending::Unknown;
                break;
            }
        }
        self.ended(writes, ending);
    }
}
