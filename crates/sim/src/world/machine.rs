//! A machine with two slots and an agent that does what the contract of NodeUpdate says, in whole seconds.
//!
//! This is not the shipped agent (that one runs on the simulated disk): it is the contract in its smallest form, so
//! that ten thousand clusters of it run in a minute.

use super::World;
use bascule_api::{
    BootControl, BootControlBackend, Booted, Counting, Digest, FailedRelease, Goal, NodeError, RootHash, SlotName,
    SlotState, SlotStatus, Slots, Staged, Time, Trial, Version,
};
use bascule_planner::snapshot::{Node, Readiness};
use std::{collections::BTreeMap, sync::Arc};

/// What a release does to a machine that boots it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It comes up.
    Good,
    /// Its kubelet never gets Ready; the guard takes the machine back.
    NeverReady,
    /// It does not boot; the boot loader takes the machine back.
    NoBoot,
}

/// What a machine did, for those who judge the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Deed {
    /// It armed its other slot and went down to boot it, at the operator's word.
    Arms,
    /// It began to boot this release, whether or not it came up.
    Boots(Version),
    /// This release failed on it.
    Fails(Version),
}

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// Runs.
    Up,
    /// Is between two boots until then, to come up from a slot.
    Booting { until: Time, slot: SlotName },
}

/// A machine.
#[derive(Debug, Clone)]
pub struct Machine {
    doing: Doing,
    boot: u32,
    slots: Slots,
    digests: [Option<Digest>; 2],
    booted: SlotName,
    trial_until: Option<Time>,
    committed_at: Option<Time>,
    last_grant: i64,
    transfer: Option<(Version, Time)>,
    failed: Vec<FailedRelease>,
    /// The last word of a person to try again that the agent followed.
    retried: Option<Time>,
    /// The state versions that releases declare; of others none is known.
    pub states: BTreeMap<Version, u32>,
    /// The state version that the machine was used with.
    used_state: Option<u32>,
    /// Every release that failed here, whatever the agent reports, and how many boots there had been by then.
    pub failed_ever: Vec<(Version, usize)>,
    /// Seconds a boot takes.
    pub boot_seconds: i64,
    /// Seconds staging takes.
    pub stage_seconds: i64,
    /// Seconds from a boot until its kubelet speaks; the agent does at once.
    pub kubelet_seconds: i64,
    /// Seconds that the machine's clock is wrong by.
    pub skew: i64,
    /// Whether the agent is down.
    pub silent: bool,
    /// Whether the machine stays away when it reboots next.
    pub dies: bool,
    /// Whether the kubelet is broken for now.
    pub unready: bool,
    /// Seconds from a boot until the kubelet has started the DaemonSet pods again. Until then the API shows what the old
    /// boot said of them.
    pub daemon_seconds: i64,
    /// Whether the DaemonSet pods never come up, whatever runs: their image can't be pulled.
    pub daemons_broken: bool,
    /// Whether they have been broken for as long as there is the machine.
    pub never_ready: bool,
    /// When the present boot began.
    pub up_since: Time,
    /// Since when the DaemonSet pods run in the present boot.
    pub daemons_since: Option<Time>,
    /// Since when the kubelet has been silent; the node lifecycle controller notices only after its grace.
    down_since: Option<Time>,
    /// Whether the agent ignores the word to reboot (an inhibitor holds it).
    pub inhibited: bool,
    /// The releases it booted, in order.
    pub history: Vec<Version>,
    /// What it did since somebody looked.
    deeds: Vec<Deed>,
}

const GUARD: i64 = 900;

/// How long a node that says nothing more is shown as Ready still (kube-controller-manager, `--node-monitor-grace-period`,
/// which was 40 s for long and is 50 s now).
const MONITOR_GRACE: i64 = 40;

impl Machine {
    /// A machine that runs nothing yet.
    #[must_use]
    pub fn new(_name: &str) -> Self {
        Self {
            doing: Doing::Up,
            boot: 1,
            slots: Slots::default(),
            digests: [None, None],
            booted: SlotName::A,
            trial_until: None,
            committed_at: None,
            last_grant: 0,
            transfer: None,
            failed: Vec::new(),
            retried: None,
            states: BTreeMap::new(),
            used_state: None,
            failed_ever: Vec::new(),
            boot_seconds: 60,
            stage_seconds: 60,
            kubelet_seconds: 0,
            skew: 0,
            silent: false,
            dies: false,
            unready: false,
            daemon_seconds: 0,
            daemons_broken: false,
            never_ready: false,
            up_since: Time::default(),
            daemons_since: Some(Time::default()),
            down_since: None,
            inhibited: false,
            history: Vec::new(),
            deeds: Vec::new(),
        }
    }

    /// Installs a release as the one that runs, committed at a time.
    pub fn install(&mut self, version: &Version, at: Time) {
        *self.slot_mut(self.booted) = good(version);
        *self.digest_mut(self.booted) = Some(super::build::digest(version.as_str()));
        self.committed_at = Some(at);
    }

    /// Puts a release into the other slot as the way back.
    pub fn keep(&mut self, version: &Version) {
        *self.slot_mut(self.booted.other()) = good(version);
        *self.digest_mut(self.booted.other()) = Some(super::build::digest(version.as_str()));
    }

    /// Whether nothing goes on in it.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        let settled = self.transfer.is_none() && self.trial_until.is_none();
        self.doing == Doing::Up && self.down_since.is_none() && settled
    }

    /// Whether it runs a release on trial, and its agent says so.
    #[must_use]
    pub fn tries_a_release(&self) -> bool {
        self.is_up() && self.trial_until.is_some() && !self.silent
    }

    /// Whether it runs, rather than being between two boots.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.doing == Doing::Up
    }

    /// The release that runs.
    #[must_use]
    pub fn running(&self) -> Option<&Version> {
        self.slots.get(self.booted).version.as_ref()
    }

    /// The boot ID of the present boot.
    #[must_use]
    pub fn boot_id(&self, node: &str) -> String {
        format!("{node}-boot-{}", self.boot)
    }

    const fn slot_mut(&mut self, name: SlotName) -> &mut SlotStatus {
        match name {
            SlotName::A => &mut self.slots.a,
            SlotName::B => &mut self.slots.b,
        }
    }

    const fn digest_mut(&mut self, name: SlotName) -> &mut Option<Digest> {
        let [a, b] = &mut self.digests;
        match name {
            SlotName::A => a,
            SlotName::B => b,
        }
    }

    /// Reboots into a slot.
    pub(super) fn reboot(&mut self, slot: SlotName, now: Time) {
        let until = now.after(bascule_api::Duration::from_secs(u64::try_from(self.boot_seconds).unwrap_or(60)));
        self.doing = Doing::Booting { until, slot };
        self.down_since.get_or_insert(now);
        self.daemons_since = None;
    }

    /// The power fails: what is armed or on trial is lost to the way back, as the boot loader would have it.
    pub(super) fn crash(&mut self, now: Time) {
        if matches!(self.doing, Doing::Booting { .. }) {
            return;
        }
        let slot =
            if self.trial_until.is_some() { self.give_up_trial(now, "the machine crashed") } else { self.booted };
        self.reboot(slot, now);
    }

    fn give_up_trial(&mut self, now: Time, why: &str) -> SlotName {
        self.fail(self.booted, now, NodeError::TrialFailed, why);
        self.booted.other()
    }

    fn fail(&mut self, slot: SlotName, now: Time, category: NodeError, why: &str) {
        let digest = self.digest_mut(slot).clone();
        let state = self.slot_mut(slot);
        state.state = SlotState::Bad;
        if let (Some(version), Some(digest)) = (state.version.clone(), digest) {
            self.failed_ever.push((version.clone(), self.history.len()));
            self.deeds.push(Deed::Fails(version.clone()));
            self.failed.retain(|failed| failed.version != version);
            self.failed.push(FailedRelease { version, digest, at: now, category, message: why.to_owned() });
        }
        self.trial_until = None;
    }
}

fn good(version: &Version) -> SlotStatus {
    SlotStatus {
        state: SlotState::Good,
        version: Some(version.clone()),
        root_hash: Some(root(version)),
        state_version: None,
    }
}

fn root(version: &Version) -> RootHash {
    let mut bytes = [0_u8; 32];
    for (byte, text) in bytes.iter_mut().zip(version.as_str().bytes()) {
        *byte = text;
    }
    RootHash::from_bytes(&bytes)
}

impl World {
    pub(super) fn run_machines(&mut self) {
        let now = self.snapshot.now;
        let mut lines = Vec::new();
        let mut deeds = Vec::new();
        for node in &mut self.snapshot.nodes {
            let Some(machine) = self.machines.get_mut(&*node.name) else { continue };
            let node = Arc::make_mut(node);
            let fates = &self.fates;
            let fate = |version: Option<&Version>| {
                version.and_then(|version| fates.get(version.as_str()).copied()).unwrap_or(Fate::Good)
            };
            machine.live(node, now, &fate, &mut lines);
            let done = std::mem::take(&mut machine.deeds).into_iter();
            deeds.extend(done.map(|deed| (Arc::clone(&node.name), node.uid.clone(), deed)));
        }
        for line in lines {
            self.tell(&line);
        }
        self.note_machines(deeds);
    }
}

impl Machine {
    fn live(&mut self, node: &mut Node, now: Time, fate: &dyn Fn(Option<&Version>) -> Fate, lines: &mut Vec<String>) {
        let name = Arc::clone(&node.name);
        if let Doing::Booting { until, slot } = self.doing {
            let silent = now.seconds_since(self.down_since.unwrap_or(now));
            if now < until || self.dies {
                if silent > MONITOR_GRACE {
                    set_ready(node, false, now);
                }
                return;
            }
            self.come_up(slot, now, fate, &name, lines);
            if matches!(self.doing, Doing::Booting { .. }) {
                return;
            }
        }
        let boot_id = self.boot_id(&name);
        let on_trial = self.trial_until.is_some();
        let broken = on_trial && fate(self.running()) == Fate::NeverReady;
        let healthy = !self.unready && !broken;
        if now.seconds_since(self.up_since) >= self.kubelet_seconds {
            self.down_since = None;
            if node.boot_id != boot_id {
                if reported(node).as_ref() != Some(&boot_id) {
                    node.back_seen = now;
                }
                (node.boot_id, node.boot_seen) = (boot_id.clone(), now);
            }
            set_ready(node, healthy, now);
            self.run_daemons(node, healthy, now);
        } else if now.seconds_since(self.down_since.unwrap_or(now)) > MONITOR_GRACE {
            set_ready(node, false, now);
        }
        if let Some(until) = self.trial_until
            && now >= until
        {
            lines.push(format!("{name}: the guard takes the trial back"));
            let slot = self.give_up_trial(now, "the guard's time was over");
            self.reboot(slot, now);
            return;
        }
        if self.silent {
            return;
        }
        self.agent(node, now, lines);
        let before = reported(node);
        self.report(node);
        if node.boot_id != boot_id && reported(node) != before {
            node.back_seen = now;
        }
    }

    fn come_up(
        &mut self,
        slot: SlotName,
        now: Time,
        fate: &dyn Fn(Option<&Version>) -> Fate,
        name: &str,
        lines: &mut Vec<String>,
    ) {
        self.boot += 1;
        let version = self.slots.get(slot).version.clone();
        let armed = self.slots.get(slot).state == SlotState::Armed;
        self.history.extend(version.clone());
        self.deeds.extend(version.clone().map(Deed::Boots));
        if armed && fate(version.as_ref()) == Fate::NoBoot {
            lines.push(format!("{name}: {} does not boot", shown(version.as_ref())));
            self.fail(slot, now, NodeError::BootFailed, "it did not boot");
            self.reboot(slot.other(), now);
            return;
        }
        self.booted = slot;
        if armed {
            self.slot_mut(slot).state = SlotState::Trial;
            self.trial_until = Some(now.after(bascule_api::Duration::from_secs(GUARD.unsigned_abs())));
        } else if self.slots.get(slot).state == SlotState::Staged {
            // It was set aside when the node left it; the way back did not last, and it is what the node has.
            self.slot_mut(slot).state = SlotState::Good;
        }
        self.doing = Doing::Up;
        self.up_since = now;
        self.inhibited = false;
        lines.push(format!("{name}: boots {}{}", shown(version.as_ref()), if armed { " as a trial" } else { "" }));
    }

    /// The DaemonSet pods, and what the API shows of them: of a kubelet that has not come to them yet the last boot's word.
    fn run_daemons(&mut self, node: &mut Node, healthy: bool, now: Time) {
        let spoken = now.seconds_since(self.up_since) >= self.daemon_seconds;
        let runs = healthy && !self.daemons_broken && (spoken || self.daemons_since.is_some());
        self.daemons_since = if runs { self.daemons_since.or(Some(now)) } else { None };
        if !runs && !spoken {
            return;
        }
        for pod in &mut node.daemon_sets.0 {
            let since = self.daemons_since.filter(|since| *since != Time::default());
            if pod.ready != runs || (runs && since.is_some()) {
                pod.since = if runs { since } else { Some(now) };
            }
            pod.ready = runs;
        }
    }

    /// What the agent does with the operator's word.
    fn agent(&mut self, node: &Node, now: Time, lines: &mut Vec<String>) {
        let Some(update) = node.live_update() else {
            self.transfer = None;
            return;
        };
        let spec = &update.spec;
        if spec.retry.is_some() && spec.retry != self.retried {
            self.retried = spec.retry;
            self.failed.clear();
            // What a person asked for breaks no promise.
            self.failed_ever.clear();
        }
        let Some(release) = &spec.release else {
            self.transfer = None;
            return;
        };
        let other = self.booted.other();
        // Without a disruption it is only the counter that is left of an earlier one.
        let grant = spec.grant.as_ref().filter(|grant| {
            spec.disruption.is_some()
                && grant.boot_id == self.boot_id(&node.name)
                && grant.generation > self.last_grant
                && !self.inhibited
                && (grant.accept_state || self.understands_state(other))
        });
        match spec.goal {
            Goal::Idle => self.transfer = None,
            Goal::Staged => self.stage(&release.version, &release.digest, now),
            Goal::Booted => {
                let held = self.slots.get(other);
                let staged = held.state == SlotState::Staged && held.version.as_ref() == Some(&release.version);
                if let Some(grant) = grant.filter(|_| staged) {
                    self.last_grant = grant.generation;
                    self.slot_mut(other).state = SlotState::Armed;
                    self.deeds.push(Deed::Arms);
                    lines.push(format!("{}: arms {} and reboots", node.name, release.version));
                    self.reboot(other, now);
                }
            }
            Goal::Committed => {
                if self.trial_until.is_some() && self.running() == Some(&release.version) {
                    self.trial_until = None;
                    let booted = self.booted;
                    self.slot_mut(booted).state = SlotState::Good;
                    self.used_state = self.states.get(&release.version).copied();
                    self.committed_at = Some(Time::new(now.get() + chrono::TimeDelta::seconds(self.skew)));
                    lines.push(format!("{}: commits {}", node.name, release.version));
                }
            }
            Goal::Reverted => {
                if self.running() != Some(&release.version) {
                    return;
                }
                if self.trial_until.is_some() {
                    lines.push(format!("{}: gives the trial of {} up", node.name, release.version));
                    let slot = self.give_up_trial(now, "the operator took it back");
                    self.reboot(slot, now);
                } else if let Some(grant) = grant.filter(|_| self.slots.get(other).state == SlotState::Good) {
                    self.last_grant = grant.generation;
                    let booted = self.booted;
                    self.slot_mut(booted).state = SlotState::Staged;
                    // A way back is armed with a counter like any release, and is a trial until somebody commits it.
                    self.slot_mut(other).state = SlotState::Armed;
                    self.deeds.push(Deed::Arms);
                    lines.push(format!("{}: leaves {}", node.name, release.version));
                    self.reboot(other, now);
                }
            }
        }
    }

    /// Whether what a slot holds is made for the state that the machine was used with.
    fn understands_state(&self, slot: SlotName) -> bool {
        let version = self.slots.get(slot).version.as_ref();
        version.and_then(|version| self.states.get(version)).copied() >= self.used_state
    }

    fn stage(&mut self, version: &Version, digest: &Digest, now: Time) {
        let other = self.booted.other();
        if self.trial_until.is_some() || self.running() == Some(version) {
            return;
        }
        let held = self.slots.get(other);
        if held.state == SlotState::Armed && held.version.as_ref() == Some(version) {
            // The word to boot was taken back.
            self.slot_mut(other).state = SlotState::Staged;
            return;
        }
        if held.state == SlotState::Staged && held.version.as_ref() == Some(version) {
            self.transfer = None;
            return;
        }
        match self.transfer.clone() {
            Some((of, until)) if of == *version => {
                if now >= until {
                    *self.slot_mut(other) = SlotStatus { state: SlotState::Staged, ..good(version) };
                    *self.digest_mut(other) = Some(digest.clone());
                    self.transfer = None;
                }
            }
            _ => {
                let seconds = u64::try_from(self.stage_seconds).unwrap_or(60);
                *self.slot_mut(other) = SlotStatus { state: SlotState::Writing, ..SlotStatus::default() };
                self.transfer = Some((version.clone(), now.after(bascule_api::Duration::from_secs(seconds))));
            }
        }
    }

    /// Writes the agent's word.
    pub(super) fn report(&mut self, node: &mut Node) {
        if matches!(self.doing, Doing::Booting { .. }) {
            return;
        }
        let boot_id = self.boot_id(&node.name);
        let Some(update) = node.update.as_mut().filter(|update| update.owner_uid.as_ref() == Some(&node.uid)) else {
            return;
        };
        let other = self.slots.get(self.booted.other());
        let digest = match self.booted.other() {
            SlotName::A => self.digests.first(),
            SlotName::B => self.digests.last(),
        };
        let status = &mut update.status;
        status.observed_generation = Some(update.generation);
        status.boot_id = Some(boot_id);
        let known = |slot: &SlotStatus| SlotStatus {
            state_version: slot.version.as_ref().and_then(|version| self.states.get(version)).copied(),
            ..slot.clone()
        };
        status.slots = Some(Slots { a: known(&self.slots.a), b: known(&self.slots.b) });
        status.state_version = self.used_state;
        status.booted = self.running().map(|version| Booted {
            slot: self.booted,
            version: version.clone(),
            root_hash: root(version),
            committed_at: self.committed_at,
        });
        status.staged = match (other.state, &other.version, digest) {
            (SlotState::Staged, Some(version), Some(Some(digest))) => {
                Some(Staged { version: version.clone(), digest: digest.clone(), at: None })
            }
            _ => None,
        };
        status.trial = self
            .trial_until
            .and_then(|until| Some(Trial { version: self.running()?.clone(), tries_left: 0, deadline: Some(until) }));
        status.failed_releases.clone_from(&self.failed);
        status.retried = self.retried;
        status.last_grant = Some(self.last_grant).filter(|last| *last > 0);
        status
            .boot_control
            .get_or_insert(BootControl { backend: BootControlBackend::SystemdBoot, counting: Counting::Works });
    }
}

fn shown(version: Option<&Version>) -> &str {
    version.map_or("nothing", Version::as_str)
}

/// The boot that the agent reports from.
fn reported(node: &Node) -> Option<String> {
    node.update.as_ref().and_then(|update| update.status.boot_id.clone())
}

fn set_ready(node: &mut Node, ready: bool, now: Time) {
    if node.ready.ready != ready {
        node.ready = Readiness { ready, since: Some(now) };
    }
}
