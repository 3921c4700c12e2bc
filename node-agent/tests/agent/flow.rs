//! The ways of one node, each from power-on to rest.

use bascule_agent::core::{Desired, Entry, Event, ManualCommand};
use bascule_api::conditions;
use bascule_api::{Counting, Goal, NodeError, NodeUpdateStatus, SlotState};
use bascule_image::digest::Sha256;
use bascule_sim::disk::Operation;
use bascule_sim::firmware::BootLoader;
use bascule_sim::firmware::boot_image::Fault;
use bascule_sim::tiny::TinyRelease;

use crate::machine::{AgentHost, entries, named, problem, release};

const LOADERS: [BootLoader; 2] = [BootLoader::SystemdBoot, BootLoader::Gptprio];

/// A machine that tried a release which never comes up, and is back on 1.0. `others` are offered beside it.
fn tried_in_vain(loader: BootLoader, bad: &TinyRelease, others: &[&TinyRelease]) -> AgentHost {
    let old = release("1.0", &[]);
    let offered: Vec<&TinyRelease> = [bad].into_iter().chain(others.iter().copied()).collect();
    let mut machine = AgentHost::new(loader, &old, &offered);
    machine.hardware.faults.insert(bad.root_hash, vec![Fault::Panic]);
    let mut agent = machine.agent();
    let grant = machine.grant(1);
    agent.handle(machine.word(Goal::Booted, bad, Some(grant))).unwrap();
    machine.reboot();
    assert_eq!(machine.system.version, "1.0");
    machine
}

#[test]
fn a_release_is_staged_booted_and_committed() {
    for loader in LOADERS {
        let (old, new) = (release("1.0", &[]), release("1.1", &[]));
        let mut machine = AgentHost::new(loader, &old, &[&new]);
        let mut agent = machine.agent();
        agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
        let status = agent.published().unwrap().clone();
        assert_eq!(status.staged.as_ref().unwrap().version.as_str(), "1.1", "{status:?}");
        assert_eq!(status.slots.as_ref().unwrap().b.state, SlotState::Staged);
        assert!(conditions::is_true(&status.conditions, conditions::STAGED));
        assert!(machine.sim.bus.reboots().is_empty(), "staging never reboots");
        // Power fails: staging has not changed what boots.
        machine.reboot();
        assert_eq!(machine.system.version, "1.0");

        machine.update(&new, 1);
        let status = machine.agent().state().clone();
        assert_eq!(entries(&status), (Entry::Good, Entry::Good), "{loader:?}");
        machine.reboot();
        assert_eq!(machine.system.version, "1.1", "a commit is for good");
        assert!(machine.sim.bus.unguarded().is_empty());
    }
}

/// With another pack beside it a release has another manifest, and the same fault.
#[test]
fn a_release_that_failed_is_not_tried_again_under_another_manifest() {
    let bad = release("1.1", &[Fault::Panic]);
    let mut anew = bad.clone();
    anew.manifest_bytes.push(b'\n');
    let mut machine = tried_in_vain(BootLoader::SystemdBoot, &bad, &[&anew]);
    let mut agent = machine.agent();
    let grant = machine.grant(2);
    agent.handle(machine.word(Goal::Booted, &anew, Some(grant))).unwrap();
    assert_eq!(problem(agent.published().unwrap()), Some("TrialFailed"));
    assert!(machine.sim.bus.reboots().is_empty());
    // A person knows why it may be tried once more.
    agent.handle(Event::Manual { command: ManualCommand::Stage(named(&anew)), user: None }).unwrap();
    let status = agent.published().unwrap();
    assert_eq!(status.staged.as_ref().map(|staged| staged.version.as_str()), Some("1.1"), "{status:?}");
}

/// The operator names a way back by what the channel offers under its version, or by its root hash. What this machine knows of it may be
/// another manifest; were it not committed, the guard would lead the machine forward again.
#[test]
fn a_way_back_is_made_permanent_whichever_manifest_it_is_named_by() {
    for loader in LOADERS {
        let (old, back, new) = (release("1.0", &[]), release("1.1", &[]), release("1.2", &[]));
        let mut anew = back.clone();
        anew.manifest_bytes.push(b'\n');
        let mut machine = AgentHost::new(loader, &old, &[&back, &new]);
        machine.update(&back, 1);
        machine.update(&new, 2);
        let mut agent = machine.agent();
        let grant = machine.grant(3);
        agent.handle(machine.word(Goal::Reverted, &new, Some(grant.clone()))).unwrap();
        assert_eq!(machine.sim.bus.reboots().len(), 1, "{:?}", agent.state().problem);
        machine.reboot();
        assert_eq!(machine.system.version, "1.1");
        let mut agent = machine.agent();
        assert!(named(&anew).digest != named(&back).digest);
        agent.handle(machine.word(Goal::Committed, &anew, Some(grant))).unwrap();
        let status = agent.published().unwrap();
        assert!(status.trial.is_none() && status.last_error.is_none(), "{loader:?}: {status:?}");
    }
}

/// A release is known by its root hash. A second slot with the one that runs would cost the way back, and have its PARTUUIDs.
#[test]
fn a_release_that_is_published_anew_is_the_one_that_runs() {
    for loader in LOADERS {
        let (old, new) = (release("1.0", &[]), release("1.1", &[]));
        let mut anew = new.clone();
        anew.manifest_bytes.push(b'\n');
        let mut other_image = anew.clone();
        other_image.manifest.uki.digest = Sha256::of(b"another").into();
        other_image.manifest_bytes.push(b'\n');
        let mut renamed = other_image.clone();
        renamed.manifest.version = "1.2".parse().unwrap();
        renamed.manifest_bytes.push(b'\n');
        let mut machine = AgentHost::new(loader, &old, &[&new, &anew, &other_image, &renamed]);
        machine.update(&new, 1);
        machine.reboot();
        for (wanted, refused) in [(&anew, None), (&other_image, Some("boot image")), (&renamed, Some("version"))] {
            let mut agent = machine.agent();
            for goal in [Goal::Staged, Goal::Booted] {
                let grant = machine.grant(9);
                agent.handle(machine.word(goal, wanted, (goal == Goal::Booted).then_some(grant))).unwrap();
                let status = agent.published().unwrap();
                let slots = status.slots.as_ref().unwrap();
                assert_eq!(slots.a.version.as_ref().unwrap().as_str(), "1.0", "the way back stays: {status:?}");
                let error = status.last_error.as_ref().map(|error| (error.category, error.message.clone()));
                match refused {
                    None => {
                        assert_eq!(error, None);
                        let known = &agent.state().journal.as_ref().unwrap().known;
                        assert!(known.iter().any(|known| known.digest == named(&anew).digest), "{known:?}");
                    }
                    Some(what) => {
                        let (category, message) = error.unwrap();
                        assert_eq!(category, NodeError::Unsuitable);
                        assert!(message.contains(&format!("another {what}")), "{message}");
                    }
                }
            }
            assert!(machine.sim.bus.reboots().is_empty());
        }
        // And back, with the boot image that lies there.
        let mut agent = machine.agent();
        let grant = machine.grant(20);
        agent.handle(machine.word(Goal::Reverted, &anew, Some(grant))).unwrap();
        assert_eq!(machine.sim.bus.reboots().len(), 1, "{:?}", agent.state().problem);
        machine.reboot();
        assert_eq!(machine.system.version, "1.0");
    }
}

#[test]
fn going_back_needs_no_download_and_lasts() {
    for loader in LOADERS {
        let (old, new) = (release("1.9", &[]), release("1.10", &[]));
        let mut machine = AgentHost::new(loader, &old, &[&new]);
        machine.update(&new, 1);
        // The operator wants 1.10 left. The factory's 1.9 was never in a repository this node has read.
        let mut agent = machine.agent();
        let grant = machine.grant(2);
        agent.handle(machine.word(Goal::Reverted, &new, Some(grant.clone()))).unwrap();
        assert_eq!(machine.sim.bus.reboots().len(), 1, "{:?}", agent.state().problem);
        machine.reboot();
        assert_eq!(machine.system.version, "1.9", "{loader:?}");
        // The same word has nothing more to say here, though the grant is still in it.
        let mut agent = machine.agent();
        agent.handle(machine.word(Goal::Reverted, &new, Some(grant))).unwrap();
        let status = agent.published().unwrap();
        assert!(status.trial.is_some() && status.last_error.is_none(), "{status:?}");
        agent.handle(machine.word(Goal::Committed, &old, None)).unwrap();
        assert!(agent.published().unwrap().trial.is_none());
        machine.reboot();
        assert_eq!(machine.system.version, "1.9", "the newer release must not come back by sorting first ({loader:?})");
        // And forward again.
        machine.update(&new, 3);
        machine.reboot();
        assert_eq!(machine.system.version, "1.10", "{loader:?}");
    }
}

#[test]
fn a_release_that_never_comes_up_goes_away_and_is_remembered() {
    for loader in LOADERS {
        let bad = release("1.1", &[Fault::Panic]);
        let mut machine = tried_in_vain(loader, &bad, &[]);
        let mut agent = machine.agent();
        agent.handle(machine.word(Goal::Staged, &bad, None)).unwrap();
        let status = agent.published().unwrap();
        assert_eq!(status.failed_releases[0].category, NodeError::BootFailed, "{loader:?}");
        assert_eq!(status.slots.as_ref().unwrap().b.state, SlotState::Bad);
        assert_eq!(problem(status), Some("TrialFailed"), "it is not tried again, and says so");
        assert!(machine.sim.bus.reboots().is_empty());
    }
}

/// It lies there as it failed, with its tries used up. Called bad it would be blamed when power fails before it is armed again.
#[test]
fn a_release_that_is_to_be_tried_again_is_staged_and_not_bad() {
    let bad = release("1.1", &[Fault::Panic]);
    let mut machine = tried_in_vain(BootLoader::SystemdBoot, &bad, &[]);
    let state = |status: &NodeUpdateStatus| status.slots.as_ref().unwrap().b.state;
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &bad, None)).unwrap();
    assert_eq!(state(agent.published().unwrap()), SlotState::Bad);
    let Event::Desired(Some(desired)) = machine.word(Goal::Staged, &bad, None) else { panic!("no word") };
    let retry = Some(chrono::DateTime::from_timestamp(1, 0).unwrap().into());
    agent.handle(Event::Desired(Some(Desired { retry, ..desired }))).unwrap();
    let status = agent.published().unwrap();
    assert!(status.failed_releases.is_empty() && status.staged.is_some(), "{status:?}");
    assert_eq!(state(status), SlotState::Staged);
    // The node is drained for it, and its power fails before the word to boot.
    machine.reboot();
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &bad, None)).unwrap();
    let status = agent.published().unwrap();
    assert!(status.failed_releases.is_empty(), "{status:?}");
    assert_eq!(state(status), SlotState::Staged);
}

#[test]
fn an_older_release_that_never_comes_up_leaves_the_newer_one() {
    let (old, new, bad) = (release("1.0", &[]), release("1.2", &[]), release("1.1", &[Fault::Panic]));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new, &bad]);
    machine.update(&new, 1);
    let mut agent = machine.agent();
    let grant = machine.grant(2);
    agent.handle(machine.word(Goal::Booted, &bad, Some(grant))).unwrap();
    machine.reboot();
    assert_eq!(machine.system.version, "1.2");
    let agent = machine.agent();
    let (running, other) = entries(agent.state());
    assert_eq!(running, Entry::Good, "what was set aside is permanent again");
    assert!(matches!(other, Entry::Bad { .. }));
}

#[test]
fn a_trial_is_given_up_at_the_operators_word() {
    for loader in LOADERS {
        let (old, new) = (release("1.0", &[]), release("1.1", &[]));
        let mut machine = AgentHost::new(loader, &old, &[&new]);
        let mut agent = machine.agent();
        let grant = machine.grant(1);
        agent.handle(machine.word(Goal::Booted, &new, Some(grant.clone()))).unwrap();
        machine.reboot();
        let mut agent = machine.agent();
        // The grant stays in the spec as the counter that it is.
        agent.handle(machine.word(Goal::Reverted, &new, Some(grant.clone()))).unwrap();
        assert_eq!(machine.sim.bus.reboots().len(), 1);
        machine.reboot();
        assert_eq!(machine.system.version, "1.0", "{loader:?}");
        let mut agent = machine.agent();
        agent.handle(machine.word(Goal::Reverted, &new, Some(grant))).unwrap();
        let status = agent.published().unwrap();
        assert_eq!(status.failed_releases[0].category, NodeError::TrialFailed);
        assert_eq!(status.last_error, None);
    }
}

#[test]
fn a_superseded_release_is_replaced_without_a_reboot_of_its_own() {
    let (old, middle, new) = (release("1.0", &[]), release("1.1", &[]), release("1.2", &[]));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&middle, &new]);
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &middle, None)).unwrap();
    agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
    assert_eq!(agent.published().unwrap().staged.as_ref().unwrap().version.as_str(), "1.2");
    assert!(machine.sim.bus.reboots().is_empty());
    machine.update(&new, 1);
    assert_eq!(machine.hardware.starts, 2);
}

#[test]
fn a_boot_loader_that_does_not_count_is_found_out_and_nothing_is_armed() {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
    machine.hardware.variables.set_bytes("LoaderFeatures", 0_u64.to_le_bytes().to_vec());
    let sim = bascule_sim::host::SimFirmware(machine.hardware.variables.clone());
    machine.sim.firmware = std::sync::Arc::new(sim);
    let mut agent = machine.agent();
    let grant = machine.grant(1);
    agent.handle(machine.word(Goal::Booted, &new, Some(grant))).unwrap();
    let status = agent.published().unwrap();
    assert_eq!(status.boot_control.as_ref().unwrap().counting, Counting::Broken);
    assert!(!conditions::is_true(&status.conditions, conditions::BOOT_CONTROL_HEALTHY));
    assert_eq!(problem(status), Some("BootControl"));
    assert!(machine.sim.bus.reboots().is_empty());
}

#[test]
fn a_person_on_the_node_can_stage_go_back_and_commit_and_leaves_a_trace() {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
    let manual = |command| Event::Manual { command, user: Some("alice".to_owned()) };
    let mut agent = machine.agent();
    agent.handle(manual(ManualCommand::Stage(named(&new)))).unwrap();
    assert_eq!(agent.state().problem, None);
    agent.handle(manual(ManualCommand::Revert { accept_state: false })).unwrap();
    assert_eq!(machine.sim.bus.reboots().len(), 1, "{:?}", agent.state().problem);
    machine.reboot();
    assert_eq!(machine.system.version, "1.1");
    let mut agent = machine.agent();
    agent.handle(manual(ManualCommand::Commit)).unwrap();
    agent.handle(machine.word(Goal::Idle, &new, None)).unwrap();
    let status = agent.published().unwrap();
    let actions: Vec<_> = status.manual_actions.iter().map(|action| action.action.as_str()).collect();
    assert_eq!(actions, ["stage", "revert", "commit"]);
    assert_eq!(status.manual_actions[0].user.as_deref(), Some("alice"));
    assert!(conditions::is_true(&status.conditions, conditions::MANUAL_ACTION));
    assert!(status.trial.is_none());
}

#[test]
fn an_inhibitor_is_waited_for() {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
    let inhibitor = bascule_agent::host::Inhibitor {
        what: "sleep:shutdown".into(),
        who: "backup".into(),
        why: "copying".into(),
        mode: "block".into(),
    };
    machine.sim.bus.others.lock().unwrap().push(inhibitor);
    let mut agent = machine.agent();
    let grant = machine.grant(1);
    agent.handle(machine.word(Goal::Booted, &new, Some(grant))).unwrap();
    let status = agent.published().unwrap();
    assert_eq!(problem(status), Some("SystemBus"));
    assert!(status.last_error.as_ref().unwrap().message.contains("backup (copying)"));
    assert!(machine.sim.bus.reboots().is_empty());
    machine.sim.bus.others.lock().unwrap().clear();
    machine.clock.pass(std::time::Duration::from_secs(30));
    agent.handle(Event::Tick).unwrap();
    assert_eq!(machine.sim.bus.reboots().len(), 1);
}

/// Power loss tore the name of the armed entry: no counter is left, and yet nobody committed anything.
#[test]
fn an_entry_that_lost_its_counter_gets_it_back_and_is_committed_only_when_asked() {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
    let grant = machine.grant(1);
    machine.agent().handle(machine.word(Goal::Booted, &new, Some(grant.clone()))).unwrap();
    machine.tear_armed_name();
    machine.reboot();
    assert!(!machine.system.trial, "the firmware counts nothing");
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Booted, &new, Some(grant.clone()))).unwrap();
    let status = agent.published().unwrap();
    assert!(status.trial.is_some() && status.booted.as_ref().unwrap().committed_at.is_none(), "{status:?}");
    assert_eq!(entries(agent.state()).0, Entry::Trying { left: 2, done: Some(1) });
    agent.handle(machine.word(Goal::Committed, &new, Some(grant))).unwrap();
    assert!(agent.published().unwrap().trial.is_none());
    machine.reboot();
    assert_eq!((machine.system.version.as_str(), machine.system.trial), ("1.1", false));
    assert_eq!(entries(machine.agent().state()).0, Entry::Good);
}

/// The agent comes and goes with the release. What an older one wrote is taken up, what a newer one added is handed on by the older
/// one that comes back, and neither loses what a trial or its failure hangs on.
#[test]
fn journals_of_two_formats_survive_a_trial_and_the_way_back() {
    use bascule_agent::core::{JOURNAL_FILE, MAX_JOURNAL};
    use bascule_agent::host::StateStore as _;
    use serde_json::{Value, json};
    for loader in LOADERS {
        let (old, new) = (release("1.0", &[]), release("1.1", &[]));
        let mut machine = AgentHost::new(loader, &old, &[&new]);
        let read = |machine: &AgentHost| -> Value {
            serde_json::from_slice(&machine.sim.state.read(JOURNAL_FILE, MAX_JOURNAL).unwrap().unwrap()).unwrap()
        };
        let write = |machine: &AgentHost, journal: &Value| {
            machine.sim.state.write(JOURNAL_FILE, journal.to_string().as_bytes()).unwrap();
        };
        // Format 1 as it was before boot images were on record.
        let first = json!({"format": 1, "revision": 3, "lastGrant": 4, "armed": null, "committed": null, "known": [],
            "failed": [], "manual": []});
        write(&machine, &first);
        let mut agent = machine.agent();
        let spent = machine.grant(4);
        agent.handle(machine.word(Goal::Booted, &new, Some(spent))).unwrap();
        assert_eq!(problem(agent.published().unwrap()), Some("Grant"), "the grants that were used are remembered");
        let grant = machine.grant(5);
        agent.handle(machine.word(Goal::Booted, &new, Some(grant.clone()))).unwrap();
        machine.reboot();
        assert_eq!((machine.system.version.as_str(), machine.system.trial), ("1.1", true));
        // The newer agent takes it up in a format of its own.
        let mut second = read(&machine);
        assert_eq!(second["armed"]["version"], "1.1");
        second["format"] = json!(2);
        second["leases"] = json!({"held": [1, 2]});
        second["armed"]["reason"] = json!("a field that only the newer one knows");
        write(&machine, &second);
        let mut agent = machine.agent();
        agent.handle(machine.word(Goal::Reverted, &new, Some(grant))).unwrap();
        machine.reboot();
        assert_eq!(machine.system.version, "1.0", "{loader:?}");
        let mut agent = machine.agent();
        agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
        let status = agent.published().unwrap();
        assert_eq!(status.failed_releases[0].category, NodeError::TrialFailed, "{loader:?}");
        assert_eq!((problem(status), status.last_grant), (Some("TrialFailed"), Some(5)), "it is not tried again");
        let third = read(&machine);
        assert_eq!((&third["leases"], &third["lastGrant"]), (&json!({"held": [1, 2]}), &json!(5)), "nothing is lost");
        // What has to be understood is not passed over: then this memory is set aside whole, and kept.
        let mut insists = third.clone();
        insists["must"] = json!(["leases"]);
        write(&machine, &insists);
        machine.agent();
        let kept: Value =
            serde_json::from_slice(&machine.sim.state.read("journal.damaged", MAX_JOURNAL).unwrap().unwrap()).unwrap();
        assert_eq!(kept, insists);
    }
}

#[test]
fn a_release_that_is_too_large_for_its_slot_is_refused_before_the_first_write() {
    for loader in LOADERS {
        let old = release("1.0", &[]);
        // The slots of these machines have 64 KiB.
        let new = TinyRelease::new("acme-os", "1.1", 68 << 10, &[]).unwrap();
        let mut machine = AgentHost::new(loader, &old, &[&new]);
        let mut agent = machine.agent();
        machine.hardware.disk.start_recording();
        agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
        let status = agent.published().unwrap();
        assert_eq!(problem(status), Some("Space"));
        let message = &status.last_error.as_ref().unwrap().message;
        assert!(message.contains("the image of 1.1 needs 69632 bytes, partition 4 has 65536"), "{message}");
        let recording = machine.hardware.disk.take_recording().unwrap();
        let writes = recording.operations().iter().filter(|operation| matches!(operation, Operation::Write { .. }));
        assert_eq!(writes.count(), 0, "{loader:?}");
    }
}
