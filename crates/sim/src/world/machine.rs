//! A machine: power, firmware, a kubelet with its DaemonSet pods, and the shipped agent ([`super::agent`]), in whole seconds.

use super::{
    World,
    agent::{Agent, Around, Done, GUARD, Started},
};
use bascule_agent::core::{Desired, Now, Why};
use bascule_api::{Duration, Goal, Time, Version};
use bascule_planner::snapshot::{Node, Readiness};
use std::{collections::BTreeMap, sync::Arc};

/// What a release does to a machine that boots it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It comes up.
    Good,
    /// Its kubelet never gets Ready; the guard takes the machine back.
    NeverReady,
    /// It does not boot; the boot loader takes the machine back once its tries are used up.
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
    /// Is between two boots until then.
    Booting { until: Time },
}

/// A machine.
#[derive(Debug, Clone)]
pub struct Machine {
    doing: Doing,
    boot: u32,
    agent: Agent,
    /// The state versions that releases declare; of others none is known.
    pub states: BTreeMap<Version, u32>,
    /// Every release that failed here, whatever the agent reports, and how many boots there had been by then.
    pub failed_ever: Vec<(Version, usize)>,
    /// Seconds a boot takes.
    pub boot_seconds: i64,
    /// Seconds staging takes.
    pub stage_seconds: i64,
    /// Seconds from a boot until its kubelet speaks.
    pub kubelet_seconds: i64,
    /// Seconds from a boot until its agent speaks.
    pub agent_seconds: i64,
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
    /// Whether the agent can't reboot the machine (an inhibitor holds it).
    pub inhibited: bool,
    /// Whether the boot loader says that it counts tries.
    pub counts: bool,
    /// Whether somebody at the machine has it start another entry than the first, the next time.
    pub elsewhere: bool,
    /// Seconds for which it is shown as Ready still when it says nothing more (kube-controller-manager,
    /// `--node-monitor-grace-period`, which was 40 s for long and is 50 s now).
    pub grace: i64,
    /// Whether its agent has looked around in this boot.
    awake: bool,
    /// Whether it is on its way to what its agent armed.
    leaves: bool,
    /// How often somebody set the boot loader up anew.
    setup: u32,
    /// Whether somebody is to, who reads first what the agent says of the present boot.
    to_set_up: bool,
    /// The releases it booted, or tried to, in order.
    pub history: Vec<Version>,
    /// What it did since somebody looked.
    deeds: Vec<Deed>,
}

impl Machine {
    /// A machine that runs nothing yet.
    #[must_use]
    pub fn new(_name: &str) -> Self {
        Self {
            doing: Doing::Up,
            boot: 1,
            agent: Agent::new(),
            states: BTreeMap::new(),
            failed_ever: Vec::new(),
            boot_seconds: 60,
            stage_seconds: 60,
            kubelet_seconds: 0,
            agent_seconds: 0,
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
            counts: true,
            elsewhere: false,
            grace: 40,
            awake: false,
            leaves: false,
            setup: 0,
            to_set_up: false,
            history: Vec::new(),
            deeds: Vec::new(),
        }
    }

    /// Installs a release as the one that runs, committed at a time.
    pub fn install(&mut self, version: &Version, at: Time) {
        self.agent.install(version, at);
    }

    /// Puts a release into the other slot, as one that ran here.
    pub fn keep(&mut self, version: &Version) {
        self.agent.keep(version);
    }

    /// Whether nothing goes on in it.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        let settled = !self.agent.is_busy() && !self.agent.is_on_trial();
        self.doing == Doing::Up && self.down_since.is_none() && settled
    }

    /// Whether it runs a release on trial, and its agent says so.
    #[must_use]
    pub fn tries_a_release(&self) -> bool {
        self.is_up() && self.agent.is_on_trial() && self.awake && !self.silent
    }

    /// Whether it is between two boots, the next of which is the first of what its agent armed.
    pub(super) const fn leaves(&self) -> bool {
        self.leaves
    }

    /// Whether its kubelet does what the API server says: it starts pods, and ends them.
    pub(super) fn serves(&self) -> bool {
        self.is_up() && self.down_since.is_none() && !self.unready
    }

    /// Whether it runs, rather than being between two boots.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.doing == Doing::Up
    }

    /// The release that runs.
    #[must_use]
    pub fn running(&self) -> Option<&Version> {
        self.agent.running()
    }

    /// The boot ID of the present boot.
    #[must_use]
    pub fn boot_id(&self, node: &str) -> String {
        format!("{node}-boot-{}", self.boot)
    }

    /// Everything that people do at the machine is done: it starts what comes first, counts, and has its agent look. What the boot
    /// loader once did not take is judged anew where it was set up anew, and nobody sets it up for what no agent has told yet.
    pub(super) fn mend(&mut self) {
        (self.silent, self.dies, self.unready, self.inhibited) = (false, false, false, false);
        (self.counts, self.elsewhere) = (true, false);
        self.daemons_broken = self.never_ready;
        self.to_set_up = true;
        self.agent.look_again();
    }

    /// The agent, and what surrounds it.
    fn parts<'m>(&'m mut self, boot_id: &'m str) -> (&'m mut Agent, Around<'m>) {
        let around = Around {
            boot_id,
            stage_seconds: self.stage_seconds,
            inhibited: self.inhibited,
            counts: self.counts,
            setup: self.setup,
            states: &self.states,
        };
        (&mut self.agent, around)
    }

    fn reboot(&mut self, now: Time) {
        let until = now.after(Duration::from_secs(self.boot_seconds.unsigned_abs()));
        self.doing = Doing::Booting { until };
        self.down_since.get_or_insert(now);
        (self.daemons_since, self.awake) = (None, false);
    }

    /// The power fails. Where that happens while it boots, the boot loader has counted already.
    pub(super) fn crash(&mut self, name: &str, now: Time) {
        if matches!(self.doing, Doing::Booting { .. }) {
            let _ = self.start(name);
        }
        self.reboot(now);
    }

    /// The firmware starts something.
    fn start(&mut self, name: &str) -> Option<Started> {
        (self.boot, self.leaves) = (self.boot + 1, false);
        let (boot_id, elsewhere) = (self.boot_id(name), std::mem::take(&mut self.elsewhere));
        let (agent, around) = self.parts(&boot_id);
        let started = agent.power_on(elsewhere, &around)?;
        if let Some(failed) = started.failed.clone() {
            self.failed_ever.push((failed.clone(), self.history.len()));
            self.deeds.push(Deed::Fails(failed));
        }
        self.history.push(started.version.clone());
        self.deeds.push(Deed::Boots(started.version.clone()));
        Some(started)
    }

    /// The time as the machine's agent has it.
    fn time(&self, now: Time) -> Now {
        let since_boot = u64::try_from(now.seconds_since(self.up_since)).unwrap_or_default();
        let wall = now.get() + chrono::TimeDelta::seconds(self.skew);
        Now { wall, since_boot: std::time::Duration::from_secs(since_boot) }
    }
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
        if let Doing::Booting { until } = self.doing {
            let silent = now.seconds_since(self.down_since.unwrap_or(now));
            if now < until || self.dies {
                if silent > self.grace {
                    set_ready(node, false, now);
                }
                return;
            }
            self.come_up(now, fate, &name, lines);
            if matches!(self.doing, Doing::Booting { .. }) {
                return;
            }
        }
        let boot_id = self.boot_id(&name);
        let on_trial = self.agent.is_on_trial();
        let broken = on_trial && fate(self.running()) == Fate::NeverReady;
        let healthy = !self.unready && !broken;
        let up = now.seconds_since(self.up_since);
        if up >= self.kubelet_seconds {
            self.down_since = None;
            if node.boot_id != boot_id {
                if reported(node).as_ref() != Some(&boot_id) {
                    node.back_seen = now;
                }
                (node.boot_id, node.boot_seen) = (boot_id.clone(), now);
            }
            set_ready(node, healthy, now);
            self.run_daemons(node, healthy, now);
        } else if now.seconds_since(self.down_since.unwrap_or(now)) > self.grace {
            set_ready(node, false, now);
        }
        let time = self.time(now);
        if on_trial && time.since_boot.as_secs() >= GUARD {
            lines.push(format!("{name}: the guard takes the trial back"));
            let (agent, around) = self.parts(&boot_id);
            agent.give_up(&around, time);
            self.reboot(now);
            return;
        }
        self.awake = !self.silent && up >= self.agent_seconds;
        if self.silent {
            self.agent.stop();
        }
        if !self.awake {
            return;
        }
        let word = node.live_update();
        let goal = word.map(|update| update.spec.goal);
        let word = word
            .map(|update| Desired::new(update.owner_uid.clone().unwrap_or_default(), update.generation, &update.spec));
        let (agent, around) = self.parts(&boot_id);
        let done = agent.live(word, &around, time);
        if std::mem::take(&mut self.to_set_up) {
            self.setup += 1;
            self.agent.look_again();
        }
        let before = reported(node);
        self.say(node);
        if node.boot_id != boot_id && reported(node) != before {
            node.back_seen = now;
        }
        for done in done {
            self.did(done, goal, &name, now, lines);
        }
    }

    /// What the agent did, as the world sees it.
    fn did(&mut self, done: Done, goal: Option<Goal>, name: &str, now: Time, lines: &mut Vec<String>) {
        match done {
            Done::Commits(version) => lines.push(format!("{name}: commits {version}")),
            // What a person asked for breaks no promise.
            Done::Forgives => self.failed_ever.clear(),
            // What the boot loader has given up was seen to fail when it did.
            Done::Fails(version) => {
                if !self.failed_ever.iter().any(|(failed, _)| *failed == version) {
                    self.failed_ever.push((version.clone(), self.history.len()));
                    self.deeds.push(Deed::Fails(version));
                }
            }
            Done::Reboots(why) => {
                lines.push(match &why {
                    Why::Boot { from, .. } if goal == Some(Goal::Reverted) => format!("{name}: leaves {from}"),
                    Why::Boot { to, .. } => format!("{name}: arms {to} and reboots"),
                    Why::Revert { from, .. } => format!("{name}: gives the trial of {from} up"),
                });
                self.reboot(now);
                self.leaves = matches!(why, Why::Boot { .. });
                if self.leaves {
                    self.deeds.push(Deed::Arms);
                }
            }
        }
    }

    fn come_up(&mut self, now: Time, fate: &dyn Fn(Option<&Version>) -> Fate, name: &str, lines: &mut Vec<String>) {
        let Some(Started { version, tried, .. }) = self.start(name) else {
            lines.push(format!("{name}: finds nothing to boot"));
            self.reboot(now);
            return;
        };
        if tried && fate(Some(&version)) == Fate::NoBoot {
            lines.push(format!("{name}: {version} does not boot"));
            self.reboot(now);
            return;
        }
        self.doing = Doing::Up;
        self.up_since = now;
        self.inhibited = false;
        let trial = if self.agent.is_on_trial() { " as a trial" } else { "" };
        lines.push(format!("{name}: boots {version}{trial}"));
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

    /// Writes the agent's word, where it has said anything in this boot. Nobody else's word stays there.
    fn say(&self, node: &mut Node) {
        let Some(says) = self.agent.says() else { return };
        let Some(update) = node.update.as_mut().filter(|update| update.owner_uid.as_ref() == Some(&node.uid)) else {
            return;
        };
        let rollout = update.status.rollout.take();
        if update.status != *says {
            update.status.clone_from(says);
        }
        update.status.rollout = rollout;
    }
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
