//! In which order the steps of a plan are begun, and how many of them now.
//!
//! A plan may hold thousands of writes. What changed since it was made (a Freeze, say) is not to wait for all of them, so only some are
//! begun, and the others have their turn by a newer plan. A node that is out of service goes before one that is to go there, and that one
//! before those that only stage; among equals whoever waits longest goes first. Who was tried and is still there goes behind the others, or a
//! few nodes that always fail would hold up the rest.
//!
//! How many are in flight follows from what the API server was seen to bear. What one fact asks of many nodes at once queues for a part of
//! that: a hundred grants at once would be followed by a hundred cordons, reports of agents and events, and each would wait for all.

use crate::{
    Action, Snapshot, Step,
    plan::{Batch, HELD_FOR, Priority, Queue, Schedule},
    snapshot::Speed,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Of so many writes that may be in flight one is a grant, at most.
const GRANTS: usize = 4;
/// The same for orders to stage.
const STAGES: usize = 2;
/// The same for statuses.
const STATUSES: usize = 4;
/// Of so many places writes that hang leave one to others, at least.
const OTHERS: usize = 4;
/// How many steps of the housekeeping may be in flight whatever else is due.
const HOUSEKEEPING_AT_LEAST: usize = 4;

/// The schedule of a plan with these steps.
pub(super) fn schedule(steps: &[Step], snapshot: &Snapshot) -> Schedule {
    let (writes, speed) = (&snapshot.writes, snapshot.writes.speed());
    let backs_off = |step: &Step| snapshot.refused.backs_off(&step.action, snapshot.now);
    // A node of which one write backs off is left alone with all of them, but for what nobody waits for.
    let mut alone: BTreeSet<&str> = writes.in_flight().keys().map(String::as_str).collect();
    if !snapshot.refused.is_empty() {
        let backing_off = steps.iter().filter(|step| !step.action.is_housekeeping() && backs_off(step));
        alone.extend(backing_off.filter_map(|step| step.action.node()));
    }
    let may_begin = |step: &Step| {
        let free = step.action.node().is_some_and(|node| !alone.contains(node));
        free && !(step.action.is_housekeeping() && backs_off(step))
    };
    let due: Vec<(usize, &Step)> = steps.iter().enumerate().filter(|(_, step)| may_begin(step)).collect();
    let mut begins = vec![true; steps.len()];
    let behind = behind(snapshot);
    let queued = queue(&due, snapshot, &behind, &mut begins);

    let mut nodes: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (place, step) in due {
        if let Some(node) = step.action.node().filter(|_| begins.get(place).is_some_and(|begins| *begins)) {
            nodes.entry(node).or_default().push(place);
        }
    }
    let room = free(speed.in_flight(), writes.in_flight().len(), writes.hanging().count());
    let batches = in_order(nodes, steps, snapshot, &behind);
    let left = batches.iter().skip(room).map(|batch| batch.steps.len()).sum::<usize>();
    let departs =
        writes.departs() || steps.iter().any(|step| step.action.priority() == Priority::Departure && !backs_off(step));
    Schedule {
        room,
        queued,
        statuses: speed.share(STATUSES),
        in_flight: writes.in_flight().keys().cloned().collect(),
        drains_held_since: held(writes.drains_held_since(), departs, writes.now),
        explanations_held_since: held(writes.explanations_held_since(), left > 0 || queued > 0, writes.now),
        batches,
    }
}

/// How many of so many places may be taken beside what is in flight, of which so many writes hang. These keep three quarters of the places
/// at most: an admission webhook that never answers about one policy's nodes must not hold up all others for as long as a request may
/// take. What is begun in the others' places and hangs as well makes room again.
fn free(places: usize, in_flight: usize, hanging: usize) -> usize {
    let kept = hanging.min(places.saturating_sub(places.div_ceil(OTHERS)));
    places.saturating_sub(in_flight.saturating_sub(hanging).saturating_add(kept))
}

/// The nodes that let others of their priority go first: those of policies to one of whose nodes a write hangs. The next may hang too.
fn behind(snapshot: &Snapshot) -> BTreeSet<&str> {
    let hanging: BTreeSet<&str> = snapshot.writes.hanging().collect();
    if hanging.is_empty() {
        return BTreeSet::new();
    }
    let nodes = || {
        let known = snapshot.nodes.iter().filter_map(|node| Some((&*node.name, node.update.as_ref()?)));
        known.map(|(name, update)| (name, update.spec.policy.as_str()))
    };
    let policies: BTreeSet<&str> =
        nodes().filter(|(name, _)| hanging.contains(name)).map(|(_, policy)| policy).collect();
    nodes().filter(|(_, policy)| policies.contains(policy)).map(|(name, _)| name).collect()
}

/// Since when somebody is held back while orders are left, but not for ever: when that time is over, all go once in between.
fn held(since: Option<Duration>, orders_left: bool, now: Duration) -> Option<Duration> {
    let since = since.unwrap_or(now);
    (orders_left && now < since.saturating_add(HELD_FOR)).then_some(since)
}

/// How many steps of a queue may be in flight beside so many others.
fn limit(queue: Queue, speed: Speed, others: usize) -> usize {
    match queue {
        Queue::Grants => speed.share(GRANTS),
        Queue::Stages => speed.share(STAGES),
        Queue::Housekeeping => speed.in_flight().saturating_sub(others).max(HOUSEKEEPING_AT_LEAST),
    }
}

/// How many steps queue behind others of their kind. These do not begin, by their places in the plan.
fn queue(due: &[(usize, &Step)], snapshot: &Snapshot, behind: &BTreeSet<&str>, begins: &mut [bool]) -> usize {
    let writes = &snapshot.writes;
    let in_flight: usize = writes.in_flight().values().map(|known| known.steps.len()).sum();
    let mut queues: BTreeMap<Queue, Vec<(usize, &Step)>> = BTreeMap::new();
    let mut others = in_flight.saturating_sub(writes.of_queue(Queue::Housekeeping));
    for (place, step) in due {
        match step.action.queue() {
            Some(queue) => queues.entry(queue).or_default().push((*place, *step)),
            None => others = others.saturating_add(1),
        }
    }
    let mut queued: usize = 0;
    // Housekeeping last: it has what the others leave.
    for (queue, mut steps) in queues {
        let places = limit(queue, writes.speed(), others);
        let room = free(places, writes.of_queue(queue), writes.hanging_of_queue(queue));
        others = others.saturating_add(steps.len().min(room));
        if steps.len() > room {
            // In the plan's order, those that were tried in vain behind.
            steps.sort_by_cached_key(|(_, step)| (lets_go_first(&step.action, behind), writes.asked(&step.action).1));
            for (place, _) in steps.into_iter().skip(room) {
                queued = queued.saturating_add(1);
                if let Some(begins) = begins.get_mut(place) {
                    *begins = false;
                }
            }
        }
    }
    queued
}

fn lets_go_first(action: &Action, behind: &BTreeSet<&str>) -> bool {
    action.node().is_some_and(|node| behind.contains(node))
}

/// The nodes with their steps, the most urgent first.
fn in_order(
    nodes: BTreeMap<&str, Vec<usize>>,
    steps: &[Step],
    snapshot: &Snapshot,
    behind: &BTreeSet<&str>,
) -> Vec<Batch> {
    let action = |place: &usize| steps.get(*place).map(|step| &step.action);
    let rank = |place: &usize| {
        let action = action(place)?;
        let (since, tried) = snapshot.writes.asked(action);
        Some((action.priority(), lets_go_first(action, behind), tried.unwrap_or(since), *place))
    };
    let mut ranked: Vec<_> = nodes
        .into_iter()
        .filter_map(|(node, mut places)| {
            let rank = places.iter().filter_map(rank).min()?;
            // What nobody waits for is the last of a node's steps.
            places.sort_by_key(|place| action(place).is_some_and(Action::is_housekeeping));
            Some((rank, Batch { node: node.to_owned(), priority: rank.0, steps: places }))
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, batch)| batch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Plan,
        plan::{
            Taint,
            samples::{at, grant, rest, step},
        },
        snapshot::{Ending, Node, UpdateFacts, Write},
    };
    use std::sync::Arc;

    fn cordon(node: &str) -> Step {
        step(Action::Cordon { node: node.to_owned(), mark: String::new() })
    }

    fn taints(nodes: std::ops::Range<usize>) -> Vec<Step> {
        nodes.map(|node| step(Action::Taint { node: format!("n{node:03}"), taint: Taint::Outdated })).collect()
    }

    /// A leader that plans again and again, and whose facts are what it wrote.
    #[derive(Default)]
    struct Leader(Snapshot);

    impl Leader {
        /// The nodes of which steps are begun by a plan with these, in their order, and the schedule.
        fn plans(&mut self, steps: &[Step], second: u64) -> (Vec<String>, Schedule) {
            let writes = &mut self.0.writes;
            (writes.now, writes.changed) = (at(second), at(second));
            let schedule = schedule(steps, &self.0);
            let plan = Plan { steps: steps.to_vec(), schedule: schedule.clone(), ..Plan::default() };
            self.0.writes.planned(&plan);
            (schedule.batches.iter().map(|batch| batch.node.clone()).collect(), schedule)
        }

        /// What was begun of a plan has ended, in vain.
        fn tried(&mut self, steps: &[&Step], second: u64) {
            for step in steps {
                let node = step.action.node().unwrap_or_default();
                self.0.writes.begin(Some(node), &[*step], at(second));
                self.0.writes.end(node, Ending::NotDone, at(second));
            }
        }
    }

    #[test]
    fn who_waits_longest_goes_first_and_who_failed_goes_behind() {
        let mut leader = Leader::default();
        leader.plans(&[rest("c")], 0);
        let steps = ["a", "b", "c"].map(rest);
        assert_eq!(leader.plans(&steps, 1).0, ["c", "a", "b"]);
        leader.tried(&[&steps[2], &steps[0]], 2);
        assert_eq!(leader.plans(&steps, 2).0, ["b", "a", "c"]);
        leader.tried(&[&steps[1]], 3);
        assert_eq!(leader.plans(&steps, 3).0, ["a", "c", "b"]);
    }

    #[test]
    fn a_node_that_is_out_of_service_goes_before_those_that_can_wait() {
        let mut leader = Leader::default();
        let uncordon = step(Action::Uncordon {
            node: "c".to_owned(),
            mark: String::new(),
            remove_outdated: true,
            truce_until: bascule_api::Time::default(),
        });
        let hold = step(Action::Taint { node: "d".to_owned(), taint: Taint::Hold });
        let all = [taints(1..2), vec![rest("a"), cordon("b"), uncordon, hold]].concat();
        let (order, schedule) = leader.plans(&all, 1);
        assert_eq!(order, ["c", "d", "b", "a", "n001"]);
        let priorities: Vec<_> = schedule.batches.iter().map(|batch| batch.priority).collect();
        let out = Priority::OutOfService;
        assert_eq!(priorities, [out, out, Priority::Departure, Priority::Preparation, Priority::Housekeeping]);
    }

    #[test]
    fn the_steps_of_a_node_are_one_batch_and_housekeeping_is_the_last_of_it() {
        let untaint = |taint| step(Action::Untaint { node: "a".to_owned(), taint });
        let steps = [untaint(Taint::Outdated), cordon("b"), untaint(Taint::Hold), rest("a")];
        let (_, schedule) = Leader::default().plans(&steps, 0);
        let batches: Vec<_> = schedule.batches.iter().map(|batch| (batch.node.as_str(), batch.steps.clone())).collect();
        assert_eq!(batches, [("a", vec![2, 3, 0]), ("b", vec![1])]);
    }

    #[test]
    fn a_node_has_one_writer_and_the_room_is_what_the_api_server_bears() {
        let mut leader = Leader::default();
        let steps = [grant("a"), grant("b"), rest("c"), rest("d")];
        leader.0.writes.begin(Some("d"), &[&steps[3]], at(0));
        leader.0.writes.begin(Some("a"), &[&steps[0]], at(0));
        let (order, schedule) = leader.plans(&steps, 1);
        assert_eq!((order, schedule.room), (vec!["b".to_owned(), "c".to_owned()], 30));
        assert_eq!(schedule.in_flight, ["a", "d"]);
        assert!(!schedule.may_begin_drain("a") && !schedule.may_begin_drain("e"), "a node goes out of service");
        for node in 0..30 {
            leader.0.writes.begin(Some(&format!("n{node}")), &[&rest("n")], at(1));
        }
        let (_, full) = leader.plans(&steps, 2);
        assert_eq!((full.room, full.batches.len()), (0, 2));
        // A slow answer halves what is begun.
        leader.0.writes.answered(at(3), at(2));
        for node in 0..30 {
            leader.0.writes.end(&format!("n{node}"), Ending::Done, at(3));
        }
        assert_eq!(leader.plans(&steps, 5).1.room, 14);
    }

    #[test]
    fn writes_that_hang_leave_places_to_others_and_nodes_of_their_policy_go_behind() {
        let mut leader = Leader::default();
        let node = |(name, policy): (String, &str)| {
            let spec = serde_json::json!({"policy": policy});
            let update = UpdateFacts {
                generation: 1,
                owner_uid: None,
                deleting: false,
                spec: serde_json::from_value(spec).unwrap(),
                status: Default::default(),
            };
            Arc::new(Node { name: name.as_str().into(), update: Some(update), ..Node::default() })
        };
        let hung: Vec<String> = (0..40).map(|number| format!("a{number:02}")).collect();
        let nodes = hung.iter().map(|name| (name.clone(), "hangs"));
        leader.0.nodes = nodes.chain([("z".to_owned(), "works")]).map(node).collect();
        let grants: Vec<Step> = hung.iter().chain([&"z".to_owned()]).map(|name| grant(name)).collect();
        let mut rests: Vec<Step> = hung.iter().chain([&"z".to_owned()]).map(|name| rest(name)).collect();
        // As many as there are places never get an answer; all grants are among them.
        for number in 0..32 {
            let step = if number < 8 { &grants[number] } else { &rests[number] };
            leader.0.writes.begin(step.action.node(), &[step], at(0));
        }
        assert_eq!(leader.plans(&rests, 4).1.room, 0);
        assert_eq!(leader.plans(&grants, 4).0.len(), 0);
        assert_eq!(leader.0.writes.next_hangs(), Some(at(1)));

        let (order, schedule) = leader.plans(&rests, 5);
        assert_eq!((order.first().map(String::as_str), schedule.room), (Some("z"), 8));
        let (order, _) = leader.plans(&grants, 5);
        assert_eq!((order.first().map(String::as_str), order.len()), (Some("z"), 2));
        assert_eq!(leader.0.writes.next_hangs(), None);

        // What is begun in the others' places counts, until it hangs too.
        rests.retain(|step| step.action.node() != Some("z"));
        for step in rests.iter().skip(32) {
            leader.0.writes.begin(step.action.node(), &[step], at(5));
        }
        assert_eq!((leader.plans(&rests, 9).1.room, leader.plans(&rests, 10).1.room), (0, 8));
        assert_eq!([free(8, 8, 8), free(8, 8, 0), free(8, 3, 1), free(1, 1, 1), free(32, 40, 32)], [2, 0, 5, 1, 0]);
    }

    #[test]
    fn housekeeping_in_flight_takes_places_of_its_own_and_once() {
        let mut leader = Leader::default();
        let steps = taints(0..100);
        for step in steps.iter().take(10) {
            leader.0.writes.begin(step.action.node(), &[step], at(0));
        }
        assert_eq!(leader.plans(&steps, 1).0.len(), 22);
    }

    #[test]
    fn a_node_of_which_a_write_has_failed_is_left_alone_and_holds_up_nobody() {
        let mut leader = Leader::default();
        let untaint = step(Action::Untaint { node: "c".to_owned(), taint: Taint::Outdated });
        let steps = [cordon("b"), rest("b"), untaint.clone(), rest("c")];
        for failed in [&steps[0], &untaint] {
            leader.0.refused.note(Write::of(&failed.action), Some("denied"), leader.0.now);
        }
        let (_, schedule) = leader.plans(&steps, 0);
        let batches: Vec<_> = schedule.batches.iter().map(|batch| (batch.node.as_str(), batch.steps.clone())).collect();
        assert_eq!(batches, [("c", vec![3])], "all of one node, and of the other what nobody waits for");
        assert_eq!(schedule.drains_held_since, None, "it is not about to go");
        let more = [steps.to_vec(), vec![step(Action::BeginDrain { node: "d".to_owned(), at: leader.0.now })]].concat();
        assert!(leader.plans(&more, 1).1.drains_held_since.is_some());
    }

    #[test]
    fn a_wave_is_granted_a_few_nodes_at_a_time_in_the_plans_order() {
        let all: Vec<Step> = (0..40).map(|node| grant(&format!("n{:02}", 39 - node))).collect();
        let (order, schedule) = Leader::default().plans(&all, 0);
        let first: Vec<&str> = all.iter().filter_map(|step| step.action.node()).take(8).collect();
        assert_eq!((order.iter().map(String::as_str).collect::<Vec<_>>(), schedule.queued), (first, 32));
        let mut leader = Leader::default();
        for step in all.iter().take(6) {
            leader.0.writes.begin(step.action.node(), &[step], at(0));
        }
        assert_eq!(leader.plans(&all, 1).0.len(), 2, "those that are in flight have places");
    }

    #[test]
    fn little_housekeeping_is_done_while_there_is_much_else_to_do() {
        let begun = |others: usize| {
            let orders: Vec<Step> = (0..others).map(|node| rest(&format!("s{node}"))).collect();
            let (order, _) = Leader::default().plans(&[taints(0..100), orders].concat(), 0);
            order.len() - others
        };
        assert_eq!(
            [begun(0), begun(20), begun(30), begun(100)],
            [32, 12, HOUSEKEEPING_AT_LEAST, HOUSEKEEPING_AT_LEAST]
        );
    }

    #[test]
    fn a_node_that_is_held_back_is_let_go_at_once_though_its_other_taint_queues() {
        let untaint = |taint| step(Action::Untaint { node: "z".to_owned(), taint });
        let all = [taints(0..32), vec![untaint(Taint::Outdated), untaint(Taint::Hold)]].concat();
        let (_, schedule) = Leader::default().plans(&all, 0);
        let of_z = schedule.batches.iter().find(|batch| batch.node == "z").map(|batch| batch.steps.clone());
        assert_eq!(of_z, Some(vec![33]));
    }

    #[test]
    fn housekeeping_that_never_succeeds_does_not_hold_up_the_rest() {
        let mut leader = Leader::default();
        let steps = taints(0..100);
        let mut seen = BTreeSet::new();
        for second in 0..5 {
            let (order, _) = leader.plans(&steps, second);
            assert_eq!(order.len(), 32);
            let tried = steps.iter().filter(|step| order.iter().any(|node| step.action.node() == Some(node.as_str())));
            leader.tried(&tried.collect::<Vec<_>>(), second);
            seen.extend(order);
        }
        assert_eq!(seen.len(), 100);
    }

    #[test]
    fn orders_go_before_drains_and_explanations_but_not_for_ever() {
        let mut leader = Leader::default();
        let mut held = |steps: &[Step], second| {
            let (_, schedule) = leader.plans(steps, second);
            (schedule.drains_held_since.is_some(), schedule.explanations_held_until().map(|until| until.as_secs()))
        };
        let many: Vec<Step> = (0..20).map(|node| grant(&format!("n{node:02}"))).collect();
        let seen = [0, 9, 10, 11].map(|second| held(&many, second));
        assert_eq!(seen, [(true, Some(10)), (true, Some(10)), (false, None), (true, Some(21))]);
        assert_eq!([held(&[], 12), held(&many, 13)], [(false, None), (true, Some(23))]);
    }
}
