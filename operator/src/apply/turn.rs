//! In which order the nodes of a plan are served, and since when each of its steps has been due.
//!
//! A plan may hold thousands of writes. What changed since it was made (a Freeze, say) is not to wait for all of them, so
//! only some are begun, and the rest has its turn by a newer plan. A node that is out of service goes before one that is to go there, and that
//! one before those that only stage; among equals whoever waits longest goes first. Who was tried and is still there
//! goes behind the others, or a few nodes that always fail would hold up the rest.
//!
//! What one fact asks of many nodes at once (a wave's grants, the staging of a release, its taints, enrolment) stands in
//! line, and a few are called at a time: a hundred grants at once would be followed by a hundred cordons, reports of agents
//! and events, and each would wait for all. What is called and does not succeed makes room after a while.

use bascule_planner::{Action, Plan, Snapshot, Step, plan::Taint};
use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

/// How many grants are called at once. Each is followed by a cordon, which the next plan holds.
const GRANTS: usize = 8;
/// How many nodes are called at once to stage.
const STAGES: usize = 16;
/// How many steps of the housekeeping are called at once, less the other steps that are due.
const HOUSEKEEPING: usize = 32;
/// How many of these are called whatever else is due.
const HOUSEKEEPING_AT_LEAST: usize = 4;
/// After this time one that was called and is not done goes back into its line.
const CALLED_FOR: Duration = Duration::from_secs(10);

/// A node and the kind of its step.
type Key = (String, &'static str);

/// What is kept from one plan to the next.
#[derive(Debug, Default)]
pub struct Turn {
    due: HashMap<Key, Due>,
    in_line: usize,
}

#[derive(Debug, Clone, Copy)]
struct Due {
    /// Since when it has been planned.
    planned: Instant,
    /// Since when it is to be done; `None` while it stands in line.
    called: Option<Instant>,
    /// When it was tried last.
    tried: Option<Instant>,
}

/// A step that was called from its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Called {
    /// Its action.
    pub action: &'static str,
    /// For how long it stood there.
    pub stood: Duration,
}

/// What a step may wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// A node is out of service until it is done.
    OutOfService,
    /// A node goes out of service.
    Departure,
    /// A node prepares while it works.
    Preparation,
    /// No node waits for it.
    Housekeeping,
}

fn urgency(action: &Action) -> Urgency {
    match action {
        // The Node came back in the middle of its update.
        Action::CreateNodeUpdate { spec, .. } if spec.disruption.is_some() => Urgency::OutOfService,
        Action::CreateNodeUpdate { .. }
        | Action::SetPolicy { .. }
        | Action::EndTruce { .. }
        | Action::Taint { taint: Taint::Outdated, .. }
        | Action::Untaint { taint: Taint::Outdated, .. } => Urgency::Housekeeping,
        Action::Stage { .. } | Action::Rest { .. } | Action::Retry { .. } => Urgency::Preparation,
        Action::Grant { .. }
        | Action::RunHook(_)
        | Action::BeginDrain { .. }
        | Action::Truce { .. }
        | Action::Cordon { .. } => Urgency::Departure,
        _ => Urgency::OutOfService,
    }
}

/// What many nodes may be asked at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Line {
    Grants,
    Stages,
    Housekeeping,
}

fn line(action: &Action) -> Option<Line> {
    match (action, urgency(action)) {
        (Action::Grant { .. }, _) => Some(Line::Grants),
        (Action::Stage { .. }, _) => Some(Line::Stages),
        (_, Urgency::Housekeeping) => Some(Line::Housekeeping),
        _ => None,
    }
}

/// Whether nodes are to go out of service by this plan of these facts. Those whose writes rest are not about to.
#[must_use]
pub fn departs(plan: &Plan, snapshot: &Snapshot) -> bool {
    let goes = |step: &Step| {
        urgency(&step.action) == Urgency::Departure && !snapshot.refused.rests(&step.action, snapshot.now)
    };
    plan.steps.iter().any(goes)
}

fn key(step: &Step) -> Key {
    // The two taints of one node are two steps, and only one of them stands in line.
    let kind = match &step.action {
        Action::Taint { taint: Taint::Hold, .. } => "Hold",
        Action::Untaint { taint: Taint::Hold, .. } => "LetGo",
        action => action.name(),
    };
    (step.action.node().unwrap_or_default().to_owned(), kind)
}

impl Turn {
    /// Takes note of a plan that a change at `since` led to, and calls what has its turn. Steps that were due before stay
    /// due since then.
    pub fn planned(&mut self, plan: &Plan, since: Instant) -> Vec<Called> {
        let mut before = std::mem::take(&mut self.due);
        let mut lines: BTreeMap<Line, (usize, Vec<Key>)> = BTreeMap::new();
        let mut due: usize = 0;
        // Records that are removed are nobody's turn: nothing waits for them, and they are paced by themselves.
        for step in plan.steps.iter().filter(|step| !matches!(step.action, Action::ForgetFreeze { .. })) {
            let (key, line) = (key(step), line(&step.action));
            let known = before.remove(&key);
            let lasts = |at: &Instant| line.is_none() || since.saturating_duration_since(*at) < CALLED_FOR;
            let called = known.and_then(|due| due.called).filter(lasts);
            let called = if line.is_none() { called.or(Some(since)) } else { called };
            let planned = known.map_or(since, |due| due.planned);
            self.due.insert(key.clone(), Due { planned, called, tried: known.and_then(|due| due.tried) });
            due += usize::from(called.is_some() && line != Some(Line::Housekeeping));
            if let Some(line) = line {
                let (under_way, waiting) = lines.entry(line).or_default();
                match called {
                    Some(_) => *under_way += 1,
                    None => waiting.push(key),
                }
            }
        }
        self.in_line = 0;
        let mut all = Vec::new();
        for (line, (under_way, mut waiting)) in lines {
            let places = match line {
                Line::Grants => GRANTS,
                Line::Stages => STAGES,
                Line::Housekeeping => HOUSEKEEPING.saturating_sub(due).max(HOUSEKEEPING_AT_LEAST),
            };
            let room = places.saturating_sub(under_way);
            // In the plan's order, those that were tried in vain behind.
            waiting.sort_by_cached_key(|key| self.due.get(key).and_then(|due| due.tried));
            self.in_line += waiting.len().saturating_sub(room);
            for key in waiting.into_iter().take(room) {
                if let Some(one) = self.due.get_mut(&key) {
                    one.called = Some(since);
                    due += usize::from(line != Line::Housekeeping);
                    all.push(Called { action: key.1, stood: since.saturating_duration_since(one.planned) });
                }
            }
        }
        all
    }

    /// Since when a step has been due; one that stood in line since it was called.
    pub(super) fn due_since(&self, step: &Step) -> Option<Instant> {
        self.due.get(&key(step)).and_then(|due| due.called)
    }

    /// Whether a step stands in line.
    pub(super) fn stands_in_line(&self, step: &Step) -> bool {
        self.due.get(&key(step)).is_some_and(|due| due.called.is_none())
    }

    /// How many steps stand in line.
    #[must_use]
    pub const fn in_line(&self) -> usize {
        self.in_line
    }

    /// The nodes in the order in which they are served.
    pub(super) fn order<'a, 'p>(&self, nodes: BTreeMap<&'a str, Vec<&'p Step>>) -> Vec<(&'a str, Vec<&'p Step>)> {
        let rank = |step: &&Step| {
            let due = self.due.get(&key(step));
            (urgency(&step.action), due.and_then(|due| due.tried.or(due.called)))
        };
        let mut nodes: Vec<_> = nodes.into_iter().collect();
        nodes.sort_by_cached_key(|(_, steps)| steps.iter().map(rank).min());
        nodes
    }

    /// Takes note that steps were begun.
    pub(super) fn tried(&mut self, steps: &[&Step], now: Instant) {
        for step in steps {
            if let Some(due) = self.due.get_mut(&key(step)) {
                due.tried = Some(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_planner::Expect;

    fn step(action: Action) -> Step {
        Step { action, expect: Expect::default(), cause: None, says: String::new() }
    }

    fn plan(nodes: &[&str]) -> Plan {
        let steps = nodes.iter().map(|node| step(Action::Rest { node: (*node).to_owned() }));
        Plan { steps: steps.collect(), ..Plan::default() }
    }

    fn taints(nodes: &[usize]) -> Plan {
        let taint = |node: &usize| Action::Taint { node: format!("n{node:03}"), taint: Taint::Outdated };
        Plan { steps: nodes.iter().map(taint).map(step).collect(), ..Plan::default() }
    }

    #[test]
    fn a_step_that_is_planned_again_has_been_due_since_the_first_time() {
        let now = Instant::now();
        let (first, second) = (now.checked_sub(Duration::from_secs(60)).unwrap(), now);
        let mut turn = Turn::default();
        turn.planned(&plan(&["a"]), first);
        turn.planned(&plan(&["a", "b"]), second);
        let since = |turn: &Turn, node: &str| turn.due_since(&plan(&[node]).steps[0]);
        assert_eq!((since(&turn, "a"), since(&turn, "b")), (Some(first), Some(second)));
        turn.planned(&plan(&["b"]), second);
        turn.planned(&plan(&["a", "b"]), second);
        assert_eq!(since(&turn, "a"), Some(second), "it was done in between");
        assert_eq!(since(&turn, "c"), None);
    }

    fn order(turn: &Turn, steps: &[&Step]) -> Vec<String> {
        let nodes = steps.iter().map(|step| (step.action.node().unwrap(), vec![*step])).collect();
        turn.order(nodes).into_iter().map(|(node, _)| node.to_owned()).collect()
    }

    #[test]
    fn who_waits_longest_goes_first_and_who_failed_goes_behind() {
        let (mut turn, start) = (Turn::default(), Instant::now());
        turn.planned(&plan(&["c"]), start);
        let plan = plan(&["a", "b", "c"]);
        let steps: Vec<_> = plan.steps.iter().collect();
        turn.planned(&plan, start + Duration::from_secs(1));
        assert_eq!(order(&turn, &steps), ["c", "a", "b"]);
        turn.tried(&[steps[2], steps[0]], start + Duration::from_secs(2));
        turn.planned(&plan, start + Duration::from_secs(2));
        assert_eq!(order(&turn, &steps), ["b", "a", "c"]);
        turn.tried(&[steps[1]], start + Duration::from_secs(3));
        turn.planned(&plan, start + Duration::from_secs(3));
        assert_eq!(order(&turn, &steps), ["a", "c", "b"]);
        assert_eq!(turn.due_since(steps[2]), Some(start), "it is due since the first time all the same");
    }

    #[test]
    fn a_node_that_is_out_of_service_goes_before_those_that_can_wait() {
        let (mut turn, now) = (Turn::default(), Instant::now());
        let stage = plan(&["a"]);
        turn.planned(&stage, now);
        let cordon = step(Action::Cordon { node: "b".to_owned(), mark: String::new() });
        let uncordon = step(Action::Uncordon {
            node: "c".to_owned(),
            mark: String::new(),
            remove_outdated: true,
            truce_until: bascule_api::Time::default(),
        });
        let hold = step(Action::Taint { node: "d".to_owned(), taint: Taint::Hold });
        let all = [taints(&[1]).steps, stage.steps, vec![cordon, uncordon, hold]].concat();
        turn.planned(&Plan { steps: all.clone(), ..Plan::default() }, now + Duration::from_secs(1));
        let steps: Vec<_> = all.iter().collect();
        assert_eq!(order(&turn, &steps), ["c", "d", "b", "a", "n001"]);
    }

    #[test]
    fn a_node_that_can_not_be_cordoned_holds_up_nobody() {
        use bascule_planner::snapshot::Write;
        let cordon = step(Action::Cordon { node: "b".to_owned(), mark: String::new() });
        let mut snapshot = Snapshot::default();
        let plan = Plan { steps: vec![cordon.clone()], ..Plan::default() };
        assert!(departs(&plan, &snapshot));
        snapshot.refused.note(Write::of(&cordon.action), Some("denied"), snapshot.now);
        assert!(!departs(&plan, &snapshot), "not before it is tried again");
        let more = Plan {
            steps: [plan.steps, vec![step(Action::BeginDrain { node: "c".to_owned(), at: snapshot.now })]].concat(),
            ..Plan::default()
        };
        assert!(departs(&more, &snapshot));
    }

    #[test]
    fn little_housekeeping_is_done_while_there_is_much_else_to_do() {
        let many: Vec<String> = (0..100).map(|node| format!("s{node}")).collect();
        let called = |others: usize| {
            let orders = plan(&many.iter().take(others).map(String::as_str).collect::<Vec<_>>());
            let all = Plan { steps: [taints(&(0..100).collect::<Vec<_>>()).steps, orders.steps].concat(), ..orders };
            let mut turn = Turn::default();
            turn.planned(&all, Instant::now());
            all.steps.iter().filter(|step| !turn.stands_in_line(step)).count() - others
        };
        assert_eq!(
            [called(0), called(20), called(30), called(100)],
            [HOUSEKEEPING, 12, HOUSEKEEPING_AT_LEAST, HOUSEKEEPING_AT_LEAST]
        );
    }

    #[test]
    fn a_node_that_is_held_back_is_let_go_at_once_though_its_other_taint_stands_in_line() {
        let (mut turn, now) = (Turn::default(), Instant::now());
        turn.planned(&taints(&(0..HOUSEKEEPING).collect::<Vec<_>>()), now);
        let untaint = |taint| step(Action::Untaint { node: "z".to_owned(), taint });
        let both = vec![untaint(Taint::Outdated), untaint(Taint::Hold)];
        let all = [taints(&(0..HOUSEKEEPING).collect::<Vec<_>>()).steps, both.clone()].concat();
        turn.planned(&Plan { steps: all, ..Plan::default() }, now);
        let waits: Vec<_> = both.iter().map(|step| turn.stands_in_line(step)).collect();
        assert_eq!(waits, [true, false]);
    }

    #[test]
    fn housekeeping_stands_in_line_and_only_there() {
        let (mut turn, now) = (Turn::default(), Instant::now());
        let mut left: Vec<usize> = (0..100).collect();
        let mut rounds = Vec::new();
        while !left.is_empty() {
            let plan = taints(&left);
            turn.planned(&plan, now);
            let called: Vec<_> = plan.steps.iter().map(|step| !turn.stands_in_line(step)).collect();
            let mut called = called.into_iter();
            let before = left.len();
            left.retain(|_| !called.next().unwrap());
            rounds.push((before - left.len(), turn.in_line()));
        }
        assert_eq!(rounds, [(32, 68), (32, 36), (32, 4), (4, 0)]);
        let many: Vec<String> = (0..100).map(|node| format!("n{node}")).collect();
        let orders = plan(&many.iter().map(String::as_str).collect::<Vec<_>>());
        turn.planned(&orders, now);
        assert!(orders.steps.iter().all(|step| !turn.stands_in_line(step)), "an order has no line");
    }

    #[test]
    fn a_wave_is_granted_a_few_nodes_at_a_time_and_the_time_in_line_is_told() {
        let (mut turn, start) = (Turn::default(), Instant::now());
        let object = bascule_api::ObjectRef { kind: "UpdatePolicy".to_owned(), namespace: None, name: "p".to_owned() };
        let grant = |node: u64| {
            step(Action::Grant {
                node: format!("n{node:02}"),
                boot_id: String::new(),
                generation: 1,
                cause: bascule_api::Cause { object: object.clone(), user: None },
                was_cordoned: false,
                at: bascule_api::Time::default(),
                drain_begins: true,
                budgets_open_within: None,
                closed_budgets: Vec::new(),
                daemon_sets: Vec::new(),
                accept_state: false,
            })
        };
        let all: Vec<_> = (0..40).map(grant).collect();
        let first = turn.planned(&Plan { steps: all.clone(), ..Plan::default() }, start);
        assert_eq!((first.len(), turn.in_line()), (GRANTS, 40 - GRANTS));
        let called: Vec<_> = all.iter().filter(|step| !turn.stands_in_line(step)).collect();
        assert_eq!(called, all.iter().take(GRANTS).collect::<Vec<_>>(), "in the plan's order");
        let left: Vec<_> = all.into_iter().skip(GRANTS).collect();
        let then = turn.planned(&Plan { steps: left, ..Plan::default() }, start + Duration::from_secs(2));
        assert_eq!(then.len(), GRANTS);
        assert!(then.iter().all(|one| *one == Called { action: "Grant", stood: Duration::from_secs(2) }));
    }

    #[test]
    fn housekeeping_that_never_succeeds_does_not_hold_up_the_rest() {
        let (mut turn, start) = (Turn::default(), Instant::now());
        let plan = taints(&(0..100).collect::<Vec<_>>());
        let mut seen = std::collections::BTreeSet::new();
        for second in 0..40 {
            turn.planned(&plan, start + Duration::from_secs(second));
            let called = plan.steps.iter().filter(|step| !turn.stands_in_line(step));
            let called: Vec<_> = called.map(|step| step.action.node().unwrap().to_owned()).collect();
            assert_eq!(called.len(), HOUSEKEEPING);
            let tried: Vec<_> = plan.steps.iter().filter(|step| !turn.stands_in_line(step)).collect();
            turn.tried(&tried, start + Duration::from_secs(second));
            seen.extend(called);
        }
        assert_eq!(seen.len(), 100);
    }
}
