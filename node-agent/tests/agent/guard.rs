//! The guard on a simulated machine: it reverts in time, whatever else is broken.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bascule_agent::core::JOURNAL_FILE;
use bascule_agent::guard::{self, Machinery, Outcome};
use bascule_agent::host::{Clock as _, Host, Xbootldr};
use bascule_agent::observe::LookSettings;
use bascule_api::{Goal, NodeError};
use bascule_sim::disk::{Access, Cache, Effect, FaultRule};
use bascule_sim::firmware::BootLoader;
use bascule_sim::host::{Failing, SimClock, UnreadableFirmware};
use bascule_sim::layout::ESP;

use crate::machine::{AgentHost, release};
use crate::state_folder::{Answer, Request, with_state_folder};
use crate::way_back::with_xbootldr;

const DEADLINE: Duration = Duration::from_secs(600);

/// Time passes when the guard waits.
struct Waiting {
    clock: Arc<SimClock>,
    hard: AtomicBool,
}

impl Machinery for Waiting {
    fn wait(&self, time: Duration) {
        self.clock.pass(time);
    }

    fn reboot_hard(&self) {
        self.hard.store(true, Ordering::SeqCst);
    }
}

/// A machine on which `to` runs as a trial.
pub(crate) fn on_trial(loader: BootLoader, from: &str, to: &str) -> AgentHost {
    let (old, new) = (release(from, &[]), release(to, &[]));
    boot_trial(AgentHost::new(loader, &old, &[&new]), to)
}

fn boot_trial(mut machine: AgentHost, to: &str) -> AgentHost {
    let mut agent = machine.agent();
    let grant = machine.grant(1);
    agent.handle(machine.word(Goal::Booted, &release(to, &[]), Some(grant))).unwrap();
    machine.reboot();
    assert_eq!(machine.system.version, to, "{:?}", agent.state().problem);
    machine
}

/// The machine comes back to the old release, and its agent says that the trial of 1.1 failed.
fn is_back_and_says_so(mut machine: AgentHost) {
    machine.reboot();
    assert_eq!(machine.system.version, "1.0");
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Idle, &release("1.1", &[]), None)).unwrap();
    assert_eq!(agent.published().unwrap().failed_releases[0].category, NodeError::TrialFailed);
}

fn guard(machine: &AgentHost) -> (Outcome, bool) {
    let waiting = Waiting { clock: machine.clock.clone(), hard: AtomicBool::new(false) };
    let outcome = guard::run(&machine.sim.host(), &LookSettings::default(), DEADLINE, &waiting);
    (outcome, waiting.hard.load(Ordering::SeqCst))
}

#[test]
fn a_trial_without_a_commit_is_reverted_by_the_guard_alone() {
    for loader in [BootLoader::SystemdBoot, BootLoader::Gptprio] {
        // Up and down: going back to an older release sets the running one's entry aside, which the guard must undo.
        for (from, to) in [("1.0", "1.1"), ("1.1", "1.0")] {
            let mut machine = on_trial(loader, from, to);
            let (outcome, _) = guard(&machine);
            assert!(matches!(outcome, Outcome::Rebooting(_)), "{outcome:?}");
            assert_eq!(machine.sim.bus.reboots().len(), 1);
            machine.reboot();
            assert_eq!(machine.system.version, from, "{loader:?}");
            let mut agent = machine.agent();
            let (old, new) = (release(from, &[]), release(to, &[]));
            let _ = old;
            agent.handle(machine.word(Goal::Idle, &new, None)).unwrap();
            let status = agent.published().unwrap();
            assert_eq!(status.failed_releases[0].category, NodeError::TrialFailed);
            assert!(status.failed_releases[0].message.contains("no commit within 600 s"));
            machine.reboot();
            assert_eq!(machine.system.version, from);
        }
    }
}

/// Whatever else the unit asked for, some release would lack it, and be left with nobody to take it back.
#[test]
fn the_unit_of_the_guard_asks_for_nothing_that_a_release_can_leave_out() {
    const ASKS_FOR_NOTHING: [&str; 15] = [
        "Description",
        "DefaultDependencies",
        "Before",
        "After",
        "Conflicts",
        "StartLimitIntervalSec",
        "Type",
        "RemainAfterExit",
        "TimeoutStartSec",
        "Restart",
        "RestartSec",
        "RestartPreventExitStatus",
        "OOMScoreAdjust",
        "MemoryMin",
        "RequiredBy",
    ];
    let unit = include_str!("../../units/bascule-guard.service");
    let mut others = Vec::new();
    for (key, value) in unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')) {
        if !ASKS_FOR_NOTHING.contains(&key) {
            others.push((key, value));
        }
    }
    assert_eq!(others, [("ExecStart", "/usr/bin/bascule-agent guard"), ("WantedBy", "sysinit.target")]);
}

/// The guard is started before all boot partitions are mounted, or one goes away: that is no reason to end.
#[test]
fn entries_on_a_partition_that_is_mounted_late_are_waited_for() {
    use bascule_agent::boot::DigestCache;
    use bascule_agent::guard::TrialView;
    use std::sync::atomic::AtomicUsize;
    let mut machine = boot_trial(with_xbootldr(), "1.1");
    let whole = machine.sim.host();
    let missing = Host { xbootldr: Arc::new(|| Ok(Xbootldr::None)), ..whole.clone() };
    let failing = Host { xbootldr: Arc::new(|| Err(std::io::Error::from_raw_os_error(5))), ..whole.clone() };
    for host in [&missing, &failing] {
        let view = guard::look(host, &LookSettings::default(), &DigestCache::default());
        assert!(matches!(view, TrialView::TrialUnseen(_)), "{view:?}");
    }
    // An agent that can't see the entry calls the trial none, neither.
    let new = release("1.1", &[]);
    let found = machine.sim.xbootldr.take();
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Committed, &new, None)).unwrap();
    let status = agent.published().unwrap();
    assert!(status.trial.is_some() && status.booted.as_ref().unwrap().committed_at.is_none(), "{status:?}");
    assert_eq!(status.last_error.as_ref().map(|error| error.category), Some(NodeError::BootControl));
    machine.sim.xbootldr = found;
    // It comes after some looks.
    let (looks, find) = (AtomicUsize::new(0), whole.xbootldr.clone());
    let late = move || if looks.fetch_add(1, Ordering::SeqCst) < 5 { Ok(Xbootldr::None) } else { find() };
    let host = Host { xbootldr: Arc::new(late), ..whole };
    let waiting = Waiting { clock: machine.clock.clone(), hard: AtomicBool::new(false) };
    let outcome = guard::run(&host, &LookSettings::default(), DEADLINE, &waiting);
    assert!(matches!(outcome, Outcome::Rebooting(_)), "{outcome:?}");
    is_back_and_says_so(machine);
}

/// The way back is there before the partition that says why: the release that failed is not taken for one that was never tried,
/// and the slot that its entry boots is not written meanwhile.
#[test]
fn a_release_that_failed_is_remembered_though_its_entry_is_mounted_late() {
    let mut machine = boot_trial(with_xbootldr(), "1.1");
    while machine.system.version == "1.1" {
        machine.reboot();
    }
    assert_eq!(machine.system.version, "1.0");
    let (failed, newer) = (release("1.1", &[]), release("1.2", &[]));
    let found = machine.sim.xbootldr.take();
    for wanted in [&failed, &newer] {
        let mut agent = machine.agent();
        agent.handle(machine.word(Goal::Staged, wanted, None)).unwrap();
        let status = agent.published().unwrap();
        assert!(status.failed_releases.is_empty(), "nothing is known yet: {status:?}");
        let error = status.last_error.as_ref().unwrap();
        assert!(error.message.contains("on none of the boot partitions that are mounted"), "{}", error.message);
        assert_eq!(status.slots.as_ref().unwrap().b.version.as_ref().map(ToString::to_string), Some("1.1".to_owned()));
    }
    machine.sim.xbootldr = found;
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &failed, None)).unwrap();
    let status = agent.published().unwrap();
    assert_eq!(status.failed_releases.len(), 1, "{status:?}");
    assert_eq!(status.failed_releases[0].version.to_string(), "1.1");
}

/// Where the running release's image went, the other slot's may be: it would boot a slot that holds something else by then.
#[test]
fn a_slot_is_not_written_while_the_partition_of_the_running_image_is_not_mounted() {
    let mut machine = with_xbootldr();
    let new = release("1.1", &[]);
    machine.agent().handle(machine.word(Goal::Idle, &new, None)).unwrap();
    let found = machine.sim.xbootldr.take();
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
    let status = agent.published().unwrap();
    let error = status.last_error.as_ref().unwrap();
    assert!(error.message.contains("on none of the boot partitions that are mounted"), "{}", error.message);
    assert!(status.slots.as_ref().unwrap().b.version.is_none(), "nothing is staged: {status:?}");
    machine.sim.xbootldr = found;
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
    let status = agent.published().unwrap();
    assert!(status.slots.as_ref().unwrap().b.version.is_some(), "{status:?}");
}

#[test]
fn without_a_system_bus_the_kernel_is_told_to_reboot() {
    let mut machine = on_trial(BootLoader::SystemdBoot, "1.0", "1.1");
    machine.sim.bus.gone.store(true, Ordering::SeqCst);
    let (outcome, hard) = guard(&machine);
    assert!(matches!(outcome, Outcome::Rebooting(_)) && hard, "{outcome:?}");
    machine.reboot();
    assert_eq!(machine.system.version, "1.0");
}

#[test]
fn a_logind_that_takes_the_reboot_and_does_nothing_is_not_waited_for_for_ever() {
    let machine = on_trial(BootLoader::SystemdBoot, "1.0", "1.1");
    let before = machine.clock.clone();
    let (_, hard) = guard(&machine);
    assert!(hard, "after {:?} the kernel is told", bascule_agent::host::Clock::since_boot(&*before));
}

#[test]
fn a_commit_ends_the_guard_and_jumps_of_the_clock_do_not() {
    let mut machine = on_trial(BootLoader::SystemdBoot, "1.0", "1.1");
    machine.clock.jump(chrono::TimeDelta::days(400));
    let mut agent = machine.agent();
    let new = release("1.1", &[]);
    agent.handle(machine.word(Goal::Committed, &new, None)).unwrap();
    let (outcome, hard) = guard(&machine);
    assert_eq!(outcome, Outcome::Ended("the trial was committed"));
    assert!(!hard && machine.sim.bus.reboots().is_empty());
    // In the next boot that note says nothing any more, and the entry says it all.
    machine.reboot();
    assert_eq!(guard(&machine).0, Outcome::Ended("the running release is not a trial"));
}

#[test]
fn a_machine_with_nothing_to_go_back_to_is_left_alone() {
    let machine = AgentHost::new(BootLoader::SystemdBoot, &release("1.0", &[]), &[]);
    let (outcome, hard) = guard(&machine);
    assert!(matches!(outcome, Outcome::Ended(_)) && !hard);
}

/// Blind or without a hand to act with, the guard can still reboot, and the boot loader's count does the rest.
#[test]
fn a_guard_that_can_not_read_or_write_leaves_the_trial_within_its_tries() {
    for loader in [BootLoader::SystemdBoot, BootLoader::Gptprio] {
        let entries = if loader == BootLoader::SystemdBoot { Cache(ESP) } else { Cache::WHOLE };
        for (access, cache) in [
            (Access::Read, Cache::WHOLE),
            (Access::Read, Cache(ESP)),
            (Access::Write, entries),
            (Access::Flush, entries),
        ] {
            let what = format!("{loader:?}: no {access:?} of {cache}");
            let mut machine = on_trial(loader, "1.0", "1.1");
            let mut boots = 0;
            while machine.system.version == "1.1" {
                machine.hardware.disk.inject(FaultRule::always(access, Some(cache), Effect::Eio));
                let (outcome, _) = guard(&machine);
                assert!(matches!(outcome, Outcome::Rebooting(_)), "{what}: {outcome:?}");
                assert_eq!(machine.sim.bus.reboots().len(), 1, "{what}");
                // The firmware has a disk that answers.
                machine.hardware.disk.clear_faults();
                machine.reboot();
                boots += 1;
                assert!(boots <= 3, "{what}: the trial never ends");
            }
            assert_eq!(machine.system.version, "1.0", "{what}");
        }
    }
}

#[test]
fn a_good_machine_is_not_rebooted_because_its_disk_can_not_be_read() {
    for loader in [BootLoader::SystemdBoot, BootLoader::Gptprio] {
        for cache in [Cache::WHOLE, Cache(ESP)] {
            let mut machine = AgentHost::new(loader, &release("1.0", &[]), &[&release("1.1", &[])]);
            machine.update(&release("1.1", &[]), 1);
            machine.reboot();
            machine.hardware.disk.inject(FaultRule::always(Access::Read, Some(cache), Effect::Eio));
            let (outcome, hard) = guard(&machine);
            assert!(matches!(outcome, Outcome::Ended(_)), "{loader:?} {cache}: {outcome:?}");
            assert!(!hard && machine.sim.bus.reboots().is_empty());
        }
    }
}

/// The boot loader sees an entry without a counter and boots it as if it were committed; the journal knows better.
#[test]
fn an_entry_that_lost_its_counter_is_guarded_all_the_same() {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
    let grant = machine.grant(1);
    machine.agent().handle(machine.word(Goal::Booted, &new, Some(grant))).unwrap();
    machine.tear_armed_name();
    machine.reboot();
    assert_eq!((machine.system.version.as_str(), machine.system.trial), ("1.1", false), "the firmware counts nothing");
    let (outcome, _) = guard(&machine);
    assert!(matches!(outcome, Outcome::Rebooting(_)), "{outcome:?}");
    is_back_and_says_so(machine);
}

/// The machine, with a journal that can't be read for a while.
fn with_unreadable_journal(machine: &AgentHost, from: Duration, until: Duration) -> Host {
    let clock = machine.clock.clone();
    with_state_folder(machine.sim.host(), move |name, request| {
        let is_read = name == JOURNAL_FILE && request == Request::Read;
        if is_read && (from..until).contains(&clock.since_boot()) { Answer::Broken } else { Answer::Whole }
    })
}

/// A machine that runs 1.1 by an entry without a counter: a trial whose name was torn, or one that was committed.
pub(crate) fn on_an_entry_without_a_counter(torn: bool) -> AgentHost {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
    if torn {
        let grant = machine.grant(1);
        machine.agent().handle(machine.word(Goal::Booted, &new, Some(grant))).unwrap();
        machine.tear_armed_name();
    } else {
        machine.update(&new, 1);
    }
    machine.reboot();
    machine
}

/// A journal that can't be read is not one that is not there: it may say that this entry lost its counter.
#[test]
fn while_the_journal_can_not_be_read_the_guard_does_not_end() {
    for (torn, until) in [(true, 300), (false, 300), (false, 6000)] {
        let machine = on_an_entry_without_a_counter(torn);
        assert_eq!((machine.system.version.as_str(), machine.system.trial), ("1.1", false));
        let until = Duration::from_secs(until);
        let host = with_unreadable_journal(&machine, Duration::ZERO, until);
        let waiting = Waiting { clock: machine.clock.clone(), hard: AtomicBool::new(false) };
        let outcome = guard::run(&host, &LookSettings::default(), DEADLINE, &waiting);
        let waited = machine.clock.since_boot();
        if torn {
            assert!(matches!(outcome, Outcome::Rebooting(_)), "{outcome:?}");
            is_back_and_says_so(machine);
        } else {
            assert!(matches!(outcome, Outcome::Ended(_)), "{outcome:?}");
            assert!(machine.sim.bus.reboots().is_empty(), "a good machine is not rebooted for that");
            assert!(waited >= until.min(DEADLINE), "{waited:?}");
        }
    }
}

/// A short deadline, so that a read can fail in each look of a boot.
const SOON: Duration = Duration::from_secs(60);

fn guard_soon(machine: &AgentHost, host: &Host) -> Outcome {
    let waiting = Waiting { clock: machine.clock.clone(), hard: AtomicBool::new(false) };
    guard::run(host, &LookSettings::default(), SOON, &waiting)
}

/// Only the journal speaks of this trial, and one read of it fails, at whichever look: also at the one that decides.
#[test]
fn a_journal_that_fails_at_one_look_does_not_end_the_guard_of_an_entry_that_lost_its_counter() {
    for failing in (40..64).step_by(2) {
        let (old, new) = (release("1.0", &[]), release("1.1", &[]));
        let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
        let grant = machine.grant(1);
        machine.agent().handle(machine.word(Goal::Booted, &new, Some(grant))).unwrap();
        machine.tear_armed_name();
        machine.reboot();
        let from = Duration::from_secs(failing);
        let host = with_unreadable_journal(&machine, from, from + Duration::from_secs(2));
        let outcome = guard_soon(&machine, &host);
        assert!(matches!(outcome, Outcome::Rebooting(_)), "at {failing} s: {outcome:?}");
        machine.reboot();
        assert_eq!(machine.system.version, "1.0", "at {failing} s");
    }
}

/// A broken trial has mounted nothing: only the boot loader speaks of it, and one read of what it says fails.
#[test]
fn a_variable_that_fails_at_one_look_does_not_end_the_guard_of_a_machine_without_its_mounts() {
    for skip in 0..24 {
        let machine = boot_trial(with_xbootldr(), "1.1");
        let whole = with_state_folder(machine.sim.host(), |name, request| {
            let is_read = name == JOURNAL_FILE && request == Request::Read;
            if is_read { Answer::Absent } else { Answer::Whole }
        });
        let unreadable = bascule_sim::host::Unreadable::default();
        unreadable.fail("LoaderBootCountPath", Failing { skip, times: 1, error: 5 });
        let host = Host {
            firmware: Arc::new(UnreadableFirmware { inner: whole.firmware.clone(), unreadable }),
            xbootldr: Arc::new(|| Ok(Xbootldr::None)),
            ..whole
        };
        let outcome = guard_soon(&machine, &host);
        assert!(matches!(outcome, Outcome::Rebooting(_)), "after {skip} reads: {outcome:?}");
    }
}

/// What can't be looked at beside the partition of the trial's entry does not hide the trial.
#[test]
fn a_second_partition_that_can_not_be_looked_at_does_not_hide_the_trial() {
    use bascule_agent::boot::DigestCache;
    use bascule_agent::guard::TrialView;
    let machine = on_trial(BootLoader::SystemdBoot, "1.0", "1.1");
    let failing = || Err(io::Error::from_raw_os_error(19));
    let host = Host { xbootldr: Arc::new(failing), ..machine.sim.host() };
    let view = guard::look(&host, &LookSettings::default(), &DigestCache::default());
    assert!(matches!(view, TrialView::Trial { .. }), "{view:?}");
}

/// Nor is one that can't be understood. What is known of a newer agent's still says that this is a trial; that it is none, it can't say.
#[test]
fn a_journal_that_is_damaged_or_a_newer_agents_is_not_one_that_is_not_there() {
    for (torn, newer) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut machine = on_an_entry_without_a_counter(torn);
        let state = machine.sim.host().state;
        let bytes = state.read(JOURNAL_FILE, 1 << 20).unwrap().unwrap();
        let bytes = match newer {
            true => {
                let mut journal: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                journal["sealed"] = serde_json::json!({ "by": "another rule" });
                journal["must"] = serde_json::json!(["sealed"]);
                serde_json::to_vec(&journal).unwrap()
            }
            false => bytes[..bytes.len() / 2].to_vec(),
        };
        state.write(JOURNAL_FILE, &bytes).unwrap();
        let (outcome, hard) = guard(&machine);
        let case = format!("torn: {torn}, newer: {newer}: {outcome:?}");
        if torn && newer {
            assert!(matches!(outcome, Outcome::Rebooting(_)), "{case}");
            machine.reboot();
            assert_eq!(machine.system.version, "1.0", "{case}");
        } else {
            assert_eq!(
                outcome,
                Outcome::Ended("whether this is a trial could not be seen until the deadline"),
                "{case}"
            );
            assert!(!hard && machine.sim.bus.reboots().is_empty(), "a good machine is not rebooted for that: {case}");
            assert!(machine.clock.since_boot() >= DEADLINE, "{case}");
        }
    }
}

#[test]
fn without_a_journal_the_guard_waits_for_mounts_and_no_longer() {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
    machine.update(&new, 1);
    machine.reboot();
    machine.sim.host().state.remove(bascule_agent::core::JOURNAL_FILE).unwrap();
    let (outcome, hard) = guard(&machine);
    assert_eq!(outcome, Outcome::Ended("the running release has no trial on record"));
    assert!(!hard && machine.sim.bus.reboots().is_empty());
    let waited = bascule_agent::host::Clock::since_boot(&*machine.clock);
    assert!((Duration::from_secs(120)..Duration::from_secs(130)).contains(&waited), "{waited:?}");
}
