//! One node from power-on to rest, in one thread and without a clock of its own: firmware, the shipped agent over
//! simulated host traits, and an operator. The same world can be put back to any moment of a recording.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bascule_agent::boot::DigestCache;
use bascule_agent::core::boot::BootPurpose;
use bascule_agent::core::{Config, Effect, Event, Now, State, step};
use bascule_agent::engine::{Engine, StageLimits};
use bascule_agent::guard::{self, TrialView};
use bascule_agent::host::{Clock, Host, Xbootldr};
use bascule_agent::observe::LookSettings;
use bascule_api::LastError;
use bascule_image::digest::Sha256;
use bascule_sim::disk::{Disk, FaultRule, SECTOR, Snapshot};
use bascule_sim::firmware::{BootLoader, Variables};
use bascule_sim::host::{SimClock, SimHost, SimReleases, Unreadable, UnreadableEsp, UnreadableFirmware};
use bascule_sim::layout::{ESP, Table};
use bascule_sim::machine::{Hardware, System};
use bascule_sim::tiny::TinyRelease;
use chrono::{DateTime, Utc};

use crate::checked;
use crate::operator::Operator;
use crate::support::IDENTITY;

/// When every world begins.
fn beginning() -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000, 0).unwrap()
}

/// From power-on until the agent looks at the machine.
const STARTUP: Duration = Duration::from_secs(40);
/// More steps than any story takes: beyond, the agent turns in circles.
const MAX_STEPS: usize = 600;
/// What failed so often in a row does not pass by itself.
const MAX_ATTEMPTS: u32 = 6;
/// More starts than any story takes.
const MAX_BOOTS: usize = 12;

/// What outlives the agent but is not on the disk, at one moment of a recording.
#[derive(Clone, Debug)]
pub(crate) struct Moment {
    /// So many operations were recorded before.
    pub(crate) recorded: usize,
    pub(crate) operator: Operator,
    pub(crate) variables: Variables,
    pub(crate) starts: u64,
    /// The system that runs, `None` between two.
    pub(crate) system: Option<System>,
    /// Whether the release was armed before.
    pub(crate) armed: bool,
    /// Whether the agent had begun to commit it.
    pub(crate) blessed: bool,
}

/// What happens right before the first effect of this name.
type Hook = (&'static str, Box<dyn FnOnce()>);

/// A node.
pub(crate) struct OneNode {
    pub(crate) hardware: Hardware,
    pub(crate) operator: Operator,
    pub(crate) releases: Arc<SimReleases>,
    /// Releases that may ever run here, by root hash and digest of the boot image.
    pub(crate) known: Arc<Vec<TinyRelease>>,
    pub(crate) moments: Vec<Moment>,
    pub(crate) story: Vec<String>,
    /// Rules that begin with the first system that runs; firmware and kernel are spared.
    pub(crate) faults: Vec<FaultRule>,
    /// How often a pack or a boot image was fetched, and how often it had been when a release was first reported as staged.
    pub(crate) fetched: Arc<AtomicUsize>,
    pub(crate) fetched_when_staged: Option<usize>,
    /// What the agent complained of last.
    pub(crate) last_error: Option<LastError>,
    /// What it said of the boot loader last: status, reason and message of the condition.
    pub(crate) said_of_loader: Option<String>,
    pub(crate) clock: Arc<SimClock>,
    /// Whether power loss may tear a long name, so that an armed entry loses its counter. The guard must know it then.
    pub(crate) torn_names: bool,
    /// How often that happened.
    pub(crate) lost_counters: usize,
    /// Whether the boot partition is checked in each boot before the agent begins, as many systems do it.
    pub(crate) checked: bool,
    /// Whether the boot partition is mounted read-only as soon as clusters are freed that are free already, as Linux does it.
    pub(crate) finds_damage: bool,
    /// Files on the boot partition that can't be read.
    pub(crate) unreadable: Unreadable,
    /// Whether the guard is asked in each trial: it must not take it for none.
    pub(crate) ask_guard: bool,
    pub(crate) config: Config,
    hook: Option<Hook>,
    system: Option<System>,
    armed: bool,
    blessed: bool,
}

/// What the tool that checks file systems makes of the boot partition.
fn check_boot_partition(disk: &Disk) -> std::io::Result<()> {
    let part = Table::read(disk)?.part(ESP)?;
    let mut before = vec![0; usize::try_from(part.length()).unwrap()];
    part.read(0, &mut before)?;
    let after = checked::by_fsck(&before);
    for (number, (was, is)) in before.chunks(SECTOR).zip(after.chunks(SECTOR)).enumerate() {
        if was != is {
            part.write_all((number * SECTOR) as u64, is)?;
        }
    }
    part.flush()
}

/// How a story went wrong.
pub(crate) type Wrong = String;

impl OneNode {
    pub(crate) fn new(
        boot: BootLoader,
        snapshot: Snapshot,
        operator: Operator,
        known: Arc<Vec<TinyRelease>>,
        releases: Arc<SimReleases>,
    ) -> Self {
        Self {
            hardware: Hardware::new(Disk::from_snapshot(snapshot), boot, IDENTITY),
            operator,
            releases,
            known,
            moments: Vec::new(),
            story: Vec::new(),
            faults: Vec::new(),
            fetched: Arc::default(),
            fetched_when_staged: None,
            last_error: None,
            said_of_loader: None,
            clock: Arc::new(SimClock::starting_at(beginning())),
            torn_names: false,
            lost_counters: 0,
            checked: false,
            finds_damage: false,
            unreadable: Unreadable::default(),
            ask_guard: false,
            config: Config::default(),
            hook: None,
            system: None,
            armed: false,
            blessed: false,
        }
    }

    /// Does something to the machine right before the first effect of this name is carried out.
    pub(crate) fn on_effect(&mut self, effect: &'static str, hook: impl FnOnce() + 'static) {
        self.hook = Some((effect, Box::new(hook)));
    }

    /// The agent reads a staged slot again before it arms it, however short ago it read it.
    pub(crate) fn reverify(&mut self) {
        self.config.reverify_after = Duration::ZERO;
    }

    /// The agent may use so much memory.
    pub(crate) fn limit_memory(&mut self, bytes: u64) {
        self.config.memory_limit = Some(bytes);
    }

    /// The world at a moment of another one's recording, with this disk.
    pub(crate) fn back_at(&self, moment: &Moment, snapshot: Snapshot) -> Self {
        let mut hardware = Hardware::new(Disk::from_snapshot(snapshot), self.hardware.boot, IDENTITY);
        hardware.variables = moment.variables.clone();
        hardware.starts = moment.starts;
        hardware.defects = self.hardware.defects;
        hardware.loaders.clone_from(&self.hardware.loaders);
        let boot = hardware.boot;
        let blank = Snapshot::default();
        let new = Self::new(boot, blank, moment.operator.clone(), self.known.clone(), self.releases.clone());
        Self {
            hardware,
            system: moment.system.clone(),
            armed: moment.armed,
            blessed: moment.blessed,
            torn_names: self.torn_names,
            ..new
        }
    }

    /// The last lines of the story.
    pub(crate) fn told(&self) -> String {
        let from = self.story.len().saturating_sub(25);
        self.story[from..].join("\n  ")
    }

    fn tell(&mut self, line: impl Into<String>) {
        let line = line.into();
        self.hardware.disk.note(line.clone());
        self.story.push(line);
    }

    fn mark(&mut self) {
        self.moments.push(Moment {
            recorded: self.hardware.disk.recorded(),
            operator: self.operator.clone(),
            variables: self.hardware.variables.clone(),
            starts: self.hardware.starts,
            system: self.system.clone(),
            armed: self.armed,
            blessed: self.blessed,
        });
    }

    /// Turns the machine on. Whatever comes up must be one of the known releases, whole, at the first start.
    pub(crate) fn power_on(&mut self) -> Result<System, Wrong> {
        self.system = None;
        self.mark();
        let faults = self.hardware.disk.suspend_faults();
        self.hardware.disk.forget_cache();
        let started = self.hardware.power_on();
        self.hardware.disk.resume_faults(faults);
        for line in &started.log {
            self.story.push(line.clone());
        }
        let Some(system) = started.system else { return Err(format!("nothing boots: {:?}", started.log)) };
        if started.log.len() > 1 {
            return Err(format!("something that is not whole was started: {:?}", started.log));
        }
        let is = |release: &TinyRelease| {
            let image = system.boot_image.is_none_or(|digest| digest == Sha256::of(&release.uki));
            image && system.root_hash == release.root_hash
        };
        if !self.known.iter().any(is) {
            return Err(format!("{} runs, which is no whole release", system.version));
        }
        if system.version == self.operator.target.version.as_str() && !system.trial && !self.blessed {
            self.lost_counters += 1;
            let host = SimHost::new(&self.hardware, &system, self.clock.clone(), self.releases.clone())
                .map_err(|error| error.to_string())?;
            let view = guard::look(&host.host(), &LookSettings::default(), &DigestCache::default());
            if !self.torn_names || !matches!(view, TrialView::Trial { .. }) {
                return Err(format!("{} runs uncounted, nobody committed it, the guard sees {view:?}", system.version));
            }
        }
        if self.ask_guard && system.trial {
            let host = SimHost::new(&self.hardware, &system, self.clock.clone(), self.releases.clone())
                .map_err(|error| error.to_string())?;
            let host = self.spoilt(host.host());
            let view = guard::look(&host, &LookSettings::default(), &DigestCache::default());
            if !matches!(view, TrialView::Trial { .. } | TrialView::TrialUnseen(_)) {
                return Err(format!("{} runs as a trial, and the guard sees {view:?}", system.version));
            }
        }
        self.system = Some(system.clone());
        self.mark();
        Ok(system)
    }

    /// The host with the files and variables that can't be read.
    fn spoilt(&self, host: Host) -> Host {
        let unreadable = self.unreadable.clone();
        let esp = UnreadableEsp { inner: host.esp.clone(), unreadable: unreadable.clone() };
        let firmware = UnreadableFirmware { inner: host.firmware.clone(), unreadable: unreadable.clone() };
        let find = host.xbootldr.clone();
        let xbootldr = move || {
            Ok(match find()? {
                Xbootldr::Mounted(inner) => {
                    Xbootldr::Mounted(Arc::new(UnreadableEsp { inner, unreadable: unreadable.clone() }))
                }
                other => other,
            })
        };
        Host { esp: Arc::new(esp), firmware: Arc::new(firmware), xbootldr: Arc::new(xbootldr), ..host }
    }

    /// The system that runs.
    pub(crate) fn running(&self) -> Option<&System> {
        self.system.as_ref()
    }

    /// The system that the next start would bring, without starting it.
    pub(crate) fn next_start(&self) -> Result<System, Wrong> {
        let snapshot = self.hardware.disk.snapshot().ok_or("the disk is no memory")?;
        let mut copy = self.hardware.clone();
        copy.disk = Disk::from_snapshot(snapshot);
        copy.power_on().system.ok_or_else(|| "nothing would boot next".to_owned())
    }

    /// From power-on until nothing more happens. The system that runs at the end.
    pub(crate) fn settle(&mut self) -> Result<System, Wrong> {
        for _ in 0..MAX_BOOTS {
            let system = self.power_on()?;
            if !self.live(&system)? {
                return Ok(system);
            }
        }
        Err("the machine never comes to rest".into())
    }

    /// As [`OneNode::settle`], but the system that runs goes on running: only the agent is started again.
    pub(crate) fn resume(&mut self) -> Result<System, Wrong> {
        match self.system.clone() {
            Some(system) if self.live(&system)? => self.settle(),
            Some(system) => Ok(system),
            None => self.settle(),
        }
    }

    /// Runs the agent until it rests (`false`) or asks for a reboot (`true`).
    fn live(&mut self, system: &System) -> Result<bool, Wrong> {
        let clock = self.clock.clone();
        clock.restart();
        clock.pass(STARTUP);
        if self.checked {
            check_boot_partition(&self.hardware.disk).map_err(|error| format!("no check: {error}"))?;
        }
        for rule in self.faults.drain(..) {
            self.hardware.disk.inject(rule);
        }
        let host = SimHost::new(&self.hardware, system, clock.clone(), self.releases.clone())
            .map_err(|error| format!("the system does not come up: {error}"))?;
        if self.finds_damage {
            host.esp.find_damage();
        }
        // One worker: the same run writes in the same order.
        let limits = StageLimits { workers: NonZeroUsize::MIN, low_priority: false, ..StageLimits::default() };
        let mut engine = Engine::new(self.spoilt(host.host()), LookSettings::default(), limits);
        let mut state = State::new(self.config.clone());
        let mut events = VecDeque::from([Event::Desired(Some(self.operator.desired()))]);
        let mut idle = 0;
        for _ in 0..MAX_STEPS {
            let event = events.pop_front().unwrap_or(Event::Tick);
            // Looking around now and then is rest.
            let resting = matches!(event, Event::Tick | Event::Loaded(_) | Event::Observed(_) | Event::Done);
            let now = Now { wall: clock.now(), since_boot: clock.since_boot() };
            let (next, effects) = step(state, event, now);
            state = next;
            let nothing = effects.iter().all(|effect| matches!(effect, Effect::Observe));
            let waits = effects.is_empty() && events.is_empty();
            self.carry_out(&mut engine, effects, &mut events);
            if !host.bus.unguarded().is_empty() {
                return Err(format!("written while nothing held the shutdown back: {:?}", host.bus.unguarded()));
            }
            if !host.bus.reboots().is_empty() {
                self.tell(format!("reboot: {:?}", host.bus.reboots()));
                return Ok(true);
            }
            if !(resting && nothing) {
                idle = 0;
            } else if waits {
                idle += 1;
                clock.pass(Duration::from_secs(90));
            }
            // What fails for ever is tried for ever, ever more seldom: that is rest, too.
            if state.problem.as_ref().is_some_and(|problem| problem.attempts >= MAX_ATTEMPTS) {
                return Ok(false);
            }
            // With something to try again, longer than the longest wait before that.
            let pending = state.problem.as_ref().is_some_and(|problem| problem.retry_at.is_some());
            if idle > if pending { 10 } else { 1 } {
                return Ok(false);
            }
        }
        Err(format!("the agent never rests; its state: {:?}", state.problem))
    }

    fn carry_out(&mut self, engine: &mut Engine, effects: Vec<Effect>, events: &mut VecDeque<Event>) {
        let mut chain = false;
        for effect in effects {
            match effect {
                Effect::Publish(status) => {
                    self.last_error.clone_from(&status.last_error);
                    if status.staged.is_some() && self.fetched_when_staged.is_none() {
                        self.fetched_when_staged = Some(self.fetched.load(Ordering::SeqCst));
                    }
                    let said = status.conditions.iter().find(|found| found.type_ == "BootLoaderCurrent");
                    self.said_of_loader = said.map(|said| format!("{} {}: {}", said.status, said.reason, said.message));
                    let mut conditions = status.conditions.iter();
                    if let Some(condition) =
                        conditions.find(|found| found.type_ == "BootControlHealthy" && found.status != "True")
                    {
                        self.tell(format!("agent: boot control: {}", condition.message));
                    }
                    if let Some(problem) = &status.last_error {
                        self.tell(format!("agent: {:?}: {}", problem.category, problem.message));
                    }
                    if self.operator.react(&status) {
                        self.tell(format!("operator: {:?}, grant {:?}", self.operator.goal, self.operator.grant));
                        self.mark();
                        events.push_back(Event::Desired(Some(self.operator.desired())));
                    }
                }
                Effect::Cancel => {}
                effect => {
                    chain = true;
                    if effect != Effect::Observe {
                        self.tell(format!("agent: {}", effect.name()));
                    }
                    if effect.is_for(BootPurpose::Arm) {
                        self.armed = true;
                        self.mark();
                    }
                    if let Some((_, hook)) = self.hook.take_if(|(name, _)| *name == effect.name()) {
                        hook();
                    }
                    if effect.is_for(BootPurpose::Commit) {
                        self.blessed = true;
                        self.mark();
                    }
                    let told = Mutex::new(Vec::new());
                    engine.perform(&[effect], &|event| told.lock().unwrap().push(event));
                    for event in told.into_inner().unwrap() {
                        match event {
                            // The chain is done when its last effect is.
                            Event::Done => {}
                            Event::Failed(failure) => {
                                self.tell(format!("agent: {} failed: {}", failure.effect, failure.message));
                                events.push_back(Event::Failed(failure));
                                return;
                            }
                            event => events.push_back(event),
                        }
                    }
                }
            }
        }
        if chain {
            events.push_back(Event::Done);
        }
    }
}
