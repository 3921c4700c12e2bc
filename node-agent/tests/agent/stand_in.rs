//! The agent that stands in for this one in clusters without machines says what this one says, at each step of a node's way.

use bascule_agent::agent::Agent;
use bascule_agent::core::{Desired, Event};
use bascule_api::{Goal, Grant, NodeUpdateSpec, NodeUpdateStatus, SlotName, SlotState};
use bascule_sim::firmware::BootLoader;
use bascule_sim::firmware::boot_image::Fault;
use bascule_sim::tiny::TinyRelease;
use bascule_tests::agent::StandIn;
use serde_json::json;

use crate::machine::{AgentHost, named, release};

/// What an operator goes by.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    running: String,
    running_slot: SlotState,
    other: Option<String>,
    other_slot: SlotState,
    trial: Option<String>,
    staged: Option<(String, String)>,
    last_grant: Option<i64>,
    failed: Vec<String>,
}

fn said(status: &NodeUpdateStatus) -> Said {
    let (booted, slots) = (status.booted.as_ref().unwrap(), status.slots.as_ref().unwrap());
    let (running, other) = match booted.slot {
        SlotName::A => (&slots.a, &slots.b),
        SlotName::B => (&slots.b, &slots.a),
    };
    let staged = status.staged.as_ref();
    Said {
        running: booted.version.to_string(),
        running_slot: running.state,
        other: other.version.as_ref().map(ToString::to_string),
        other_slot: other.state,
        trial: status.trial.as_ref().map(|trial| trial.version.to_string()),
        staged: staged.map(|staged| (staged.version.to_string(), staged.digest.as_str().to_owned())),
        last_grant: status.last_grant,
        failed: status.failed_releases.iter().map(|failed| failed.version.to_string()).collect(),
    }
}

/// Both, at the same words.
struct Pair {
    machine: AgentHost,
    agent: Agent,
    stand_in: StandIn,
}

impl Pair {
    fn installed(first: &TinyRelease, offered: &[&TinyRelease]) -> Self {
        let machine = AgentHost::new(BootLoader::SystemdBoot, first, offered);
        let boot_id = machine.system.boot_id.to_string();
        let stand_in = StandIn::installed(first.manifest.version.clone(), boot_id, "2026-11-21T12:00:00Z");
        let agent = machine.agent();
        Self { machine, agent, stand_in }
    }

    /// One word of the operator: both are asked, both reboot or neither does, and both say the same afterwards.
    fn word(&mut self, goal: Goal, release: &TinyRelease, granted: Option<i64>, comes_up: bool) -> Said {
        let grant = granted.map(|generation| self.machine.grant(generation));
        let spec = spec(goal, release, grant.as_ref());
        let word = self.machine.word(goal, release, grant);
        self.agent.handle(word.clone()).unwrap();
        let reboots = !self.machine.sim.bus.reboots().is_empty();
        self.stand_in.follow(&spec);
        assert_eq!(
            self.stand_in.must_reboot(&spec),
            reboots,
            "{goal:?} {}: {:?}",
            release.version,
            self.agent.state().problem
        );
        if reboots {
            self.machine.reboot();
            self.stand_in.reboot(&spec, self.machine.system.boot_id.to_string(), comes_up);
            self.stand_in.follow(&spec);
            self.agent = self.machine.agent();
            self.agent.handle(word.clone()).unwrap();
            assert!(self.machine.sim.bus.reboots().is_empty(), "{goal:?} {} reboots again", release.version);
            assert!(!self.stand_in.must_reboot(&spec), "{goal:?} {} reboots the stand-in again", release.version);
        }
        let Event::Desired(Some(Desired { generation, .. })) = word else { panic!("{word:?}") };
        let status: NodeUpdateStatus = serde_json::from_value(self.stand_in.status(Some(generation))).unwrap();
        let real = self.agent.published().unwrap();
        assert_eq!(status.boot_id, real.boot_id);
        assert_eq!(status.observed_generation, real.observed_generation);
        let (stood, real) = (said(&status), said(real));
        assert_eq!(stood, real, "after {goal:?} {}", release.version);
        real
    }
}

fn spec(goal: Goal, release: &TinyRelease, grant: Option<&Grant>) -> NodeUpdateSpec {
    let disruption = grant.map(|_| {
        json!({
            "grantedAt": "2026-11-21T12:00:00Z", "wasCordoned": false,
            "cause": {"object": {"kind": "UpdatePolicy", "name": "workers"}},
        })
    });
    let mut spec = json!({"policy": "workers", "goal": goal, "release": named(release)});
    if let (Some(grant), Some(disruption)) = (grant, disruption) {
        spec["grant"] = json!(grant);
        spec["disruption"] = disruption;
    }
    serde_json::from_value(spec).unwrap()
}

#[test]
fn an_update_and_the_way_back_from_it_look_the_same() {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let mut pair = Pair::installed(&old, &[&new]);
    pair.word(Goal::Staged, &new, None, true);
    let trial = pair.word(Goal::Booted, &new, Some(1), true);
    assert_eq!((trial.running.as_str(), trial.trial.as_deref()), ("1.1", Some("1.1")));
    pair.word(Goal::Committed, &new, Some(1), true);
    let back = pair.word(Goal::Reverted, &new, Some(2), true);
    assert_eq!((back.running.as_str(), back.trial.as_deref()), ("1.0", Some("1.0")), "a way back is a trial");
    pair.word(Goal::Committed, &old, Some(2), true);
    // And forward again, without a download.
    pair.word(Goal::Staged, &new, None, true);
    pair.word(Goal::Booted, &new, Some(3), true);
    pair.word(Goal::Committed, &new, Some(3), true);
}

#[test]
fn a_trial_that_is_given_up_and_a_release_that_does_not_come_up_look_the_same() {
    let (old, given_up) = (release("1.0", &[]), release("1.1", &[]));
    let mut pair = Pair::installed(&old, &[&given_up]);
    pair.word(Goal::Booted, &given_up, Some(1), true);
    let back = pair.word(Goal::Reverted, &given_up, Some(1), true);
    assert_eq!((back.running.as_str(), back.other_slot), ("1.0", SlotState::Bad));
    // It is not tried again.
    pair.word(Goal::Booted, &given_up, Some(2), true);

    let bad = release("1.1", &[Fault::Panic]);
    let mut pair = Pair::installed(&old, &[&bad]);
    pair.machine.hardware.faults.insert(bad.root_hash, vec![Fault::Panic]);
    let back = pair.word(Goal::Booted, &bad, Some(1), false);
    assert_eq!((back.running.as_str(), back.failed.as_slice()), ("1.0", &["1.1".to_owned()][..]));
}

#[test]
fn a_grant_for_another_boot_or_a_spent_one_moves_neither() {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let mut pair = Pair::installed(&old, &[&new]);
    let staged = pair.word(Goal::Staged, &new, None, true);
    let word = |pair: &mut Pair, boot_id: &str, generation: i64| {
        let grant = Grant { boot_id: boot_id.to_owned(), generation, accept_state: false };
        let spec = spec(Goal::Booted, &new, Some(&grant));
        let word = pair.machine.word(Goal::Booted, &new, Some(grant));
        pair.agent.handle(word).unwrap();
        assert!(pair.machine.sim.bus.reboots().is_empty() && !pair.stand_in.must_reboot(&spec));
    };
    word(&mut pair, "another boot", 1);
    let after = pair.word(Goal::Staged, &new, None, true);
    assert_eq!(after, staged);
    pair.word(Goal::Booted, &new, Some(1), true);
    pair.word(Goal::Committed, &new, Some(1), true);
    let boot_id = pair.machine.system.boot_id.to_string();
    let grant = Grant { boot_id, generation: 1, accept_state: false };
    let spec = spec(Goal::Reverted, &new, Some(&grant));
    let word = pair.machine.word(Goal::Reverted, &new, Some(grant));
    pair.agent.handle(word).unwrap();
    assert!(pair.machine.sim.bus.reboots().is_empty() && !pair.stand_in.must_reboot(&spec));
}
