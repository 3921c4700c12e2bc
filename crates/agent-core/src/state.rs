//! The agent's whole memory while it runs.

use std::sync::Arc;
use std::time::Duration;

use bascule_api::{Counting, Digest, NodeError, NodeUpdateStatus, RootHash, SlotName, Transfer};
use bascule_image::Manifest;
use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::boot::Safeguard;
use super::protocol::{Guarantees, HostProtocol as _, host};
use super::{Armed, Desired, EffectKind, Entry, Facts, Journal, KnownRelease, ManualCommand};

/// The time, as far as decisions need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The wall clock; it may jump.
    pub wall: DateTime<Utc>,
    /// Time since boot; it never jumps. Waiting is measured with this one.
    pub since_boot: Duration,
}

/// Settings that decisions need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The agent's version, for the status.
    pub agent_version: String,
    /// How often the boot loader may try an armed release; 1 to 9.
    pub tries: u32,
    /// When the guard reverts, counted from the start of the boot.
    pub trial_deadline: Duration,
    /// For how long a slot that was read back whole may be armed without reading it again.
    pub reverify_after: Duration,
    /// How long to wait for the machine to go down before asking logind again.
    pub reboot_retry: Duration,
    /// First wait after a failure that may pass by itself; doubles up to `retry_max`.
    pub retry_first: Duration,
    /// Longest wait after a failure.
    pub retry_max: Duration,
    /// How often to look at the machine without a reason, at the least: where the agent is awake for something else in the
    /// last quarter of this time, it looks then.
    pub observe_every: Duration,
    /// How often the running slot is read whole and compared with its root hash; likewise.
    pub inspect_every: Duration,
    /// Spreads the waits of many nodes: 0 to 1000, another for each node.
    pub spread: u64,
    /// Bytes of memory that the agent may use, where there is a limit.
    pub memory_limit: Option<u64>,
    /// A safeguard that is left out: for tests that show that it is missed.
    pub without: Option<Safeguard>,
}

impl Config {
    /// How long before its time something that is done again and again is done if the agent is awake then, so that it need
    /// not wake up for it.
    fn early(&self, every: Duration) -> Duration {
        self.observe_every.min(every) / 4
    }

    /// The age of the last look from which on another is taken.
    pub(super) fn observe_from(&self) -> Duration {
        self.observe_every.saturating_sub(self.early(self.observe_every))
    }

    /// The age of the last inspection from which on there is another.
    pub(super) fn inspect_from(&self) -> Duration {
        self.inspect_every.saturating_sub(self.early(self.inspect_every))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            tries: 3,
            trial_deadline: Duration::from_secs(45 * 60),
            reverify_after: Duration::from_secs(15 * 60),
            reboot_retry: Duration::from_secs(120),
            retry_first: Duration::from_secs(5),
            retry_max: Duration::from_secs(600),
            observe_every: Duration::from_secs(300),
            inspect_every: Duration::from_secs(6 * 3600),
            spread: 0,
            memory_limit: None,
            without: None,
        }
    }
}

/// What the engine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Looking at the machine, nothing else.
    Look,
    /// Something short that is not interrupted.
    Short,
    /// Arming a release, with the OS image's hook before it: not gone on with behind the hook when it is not wanted any more.
    Arm,
    /// Verifying metadata.
    Resolve,
    /// Filling a slot: stopped when it is not wanted any more.
    Stage,
    /// Reading the running slot: stopped when anything else is to be done.
    Inspect,
    /// Reading the staged slot again ahead of arming it: stopped when it is not wanted any more.
    Verify,
}

impl Work {
    /// For how long it may be silent. Reading a whole slot at the lowest priority tells nothing before its end.
    pub const fn patience(self) -> Duration {
        match self {
            Self::Look | Self::Short | Self::Arm => Duration::from_secs(10 * 60),
            Self::Resolve => Duration::from_secs(30 * 60),
            Self::Stage | Self::Inspect | Self::Verify => Duration::from_secs(2 * 3600),
        }
    }
}

/// A release whose manifest was verified since the agent started.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The digest of the manifest.
    pub digest: Digest,
    /// The manifest.
    pub manifest: Arc<Manifest>,
}

/// A break-glass command on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manual {
    /// What.
    pub command: ManualCommand,
    /// Who.
    pub user: Option<String>,
    /// When it was given: by this the journal's record of it is known again.
    pub at: DateTime<Utc>,
}

/// What was under way when a problem came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum During {
    /// The operator's word can't be followed.
    Goal,
    /// An effect failed.
    Effect(EffectKind),
    /// A look at the machine saw too little to decide.
    Judging,
    /// What carries effects out has not come back for too long.
    Hanging,
}

impl During {
    /// Whether nothing else waits for what failed.
    pub const fn is_repair(self) -> bool {
        matches!(self, Self::Effect(kind) if kind.is_repair())
    }

    /// Whether what failed then and what failed now are one thing that fails again and again.
    pub fn is_the_same_as(self, before: Self) -> bool {
        let staging = |during| matches!(during, Self::Effect(kind) if kind.is_staging());
        self == before || staging(self) && staging(before)
    }
}

/// What stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What was under way.
    pub during: During,
    /// The kind.
    pub category: NodeError,
    /// In sentences, with what to do.
    pub message: String,
    /// How often in a row.
    pub attempts: u32,
    /// When last.
    pub at: DateTime<Utc>,
    /// When it is tried again, by time since boot; `None` when trying again can't help.
    pub retry_at: Option<Duration>,
    /// The same as a wall clock time, for people.
    pub next_try: Option<DateTime<Utc>>,
    /// The generation of the spec it belongs to.
    pub generation: Option<i64>,
}

/// Why the boot loader that the running release brings could not be put in place. Nothing waits for that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoaderFailure {
    /// The kind.
    pub category: NodeError,
    /// The whole chain of errors in one line.
    pub message: String,
    /// How often in a row.
    pub attempts: u32,
    /// When it is tried again, by time since boot.
    pub retry_at: Duration,
}

/// The state.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Settings.
    pub config: Config,
    /// The last look at the machine; `None` when it is out of date.
    pub facts: Option<Facts>,
    /// The facts before that, for the status while a new look is due.
    pub last_facts: Option<Facts>,
    /// When the machine was looked at last, by time since boot.
    pub observed_at: Duration,
    /// What is remembered; `None` until it was read.
    pub journal: Option<Journal>,
    /// The operator's word.
    pub desired: Option<Desired>,
    /// Whether the operator's word was ever heard; until then its absence means nothing.
    pub heard: bool,
    /// A break-glass command that is being carried out.
    pub manual: Option<Manual>,
    /// What the engine is doing.
    pub work: Option<Work>,
    /// When it last gave a sign of life, by time since boot.
    pub last_sign: Duration,
    /// The release that is being staged.
    pub resolved: Option<Resolved>,
    /// The slot that was read back whole in this process: slot, root hash, when by time since boot.
    pub verified: Option<(SlotName, RootHash, Duration)>,
    /// A slot whose content is not what its labels say, found while it was read: it must be written afresh.
    pub damaged: Option<(SlotName, RootHash)>,
    /// When the running slot was read whole last, by time since boot.
    pub inspected_at: Duration,
    /// What the running slot holds instead of its release: somebody wrote to the device below it.
    pub running_changed: Option<String>,
    /// Something came up while the running slot was being read.
    pub interrupted: bool,
    /// What stands in the way.
    pub problem: Option<Problem>,
    /// Why the boot loader could not be put in place the last time.
    pub loader_failure: Option<LoaderFailure>,
    /// Where on the ESP a boot loader is being put in place.
    pub loader_placing: Option<String>,
    /// Where that failed, and what the medium has is not known.
    pub loader_in_doubt: Option<String>,
    /// The running transfer.
    pub transfer: Option<Transfer>,
    /// When logind was last asked to reboot, by time since boot.
    pub reboot_asked: Option<Duration>,
    /// When the running trial ends, fixed once.
    pub trial_until: Option<DateTime<Utc>>,
    /// The conditions as last written, so that their transition times last.
    pub conditions: Vec<Condition>,
    /// The status as last handed out for writing.
    pub published: Option<NodeUpdateStatus>,
}

impl State {
    /// A state that knows nothing yet.
    pub fn new(config: Config) -> Self {
        Self { config, ..Self::default() }
    }

    /// The trial record that belongs to the running release, if this is the boot after arming it.
    pub fn trial_record<'a>(&'a self, facts: &Facts) -> Option<&'a Armed> {
        let armed = self.journal.as_ref()?.armed.as_ref()?;
        (armed.boot_id != facts.boot_id && armed.root_hash == facts.root_hash).then_some(armed)
    }

    /// Whether the running release is a trial.
    ///
    /// The boot entry decides, and where it has no counter, whether anybody began to commit. An entry that was used up or set
    /// aside counts only with a record of having been armed, or when the other slot has a permanent entry to go back to. An
    /// entry that nobody could read, or that lies where nobody could look, is whatever the record says.
    pub fn is_trial(&self, facts: &Facts) -> bool {
        match facts.booted_slot().entry {
            Entry::Trying { .. } => true,
            Entry::Bad { .. } => self.trial_record(facts).is_some() || facts.inactive_slot().entry == Entry::Good,
            Entry::Good => self.lost_its_counter(facts),
            // What runs was booted by something: without an entry, that is on a partition that is not mounted (now).
            Entry::Unseen | Entry::None => self.trial_record(facts).is_some_and(|armed| !armed.committing),
        }
    }

    /// Whether the running release was armed, nobody began to commit it, and yet its entry has no counter.
    pub fn lost_its_counter(&self, facts: &Facts) -> bool {
        facts.booted_slot().entry == Entry::Good && self.trial_record(facts).is_some_and(|armed| !armed.committing)
    }

    /// The release in the inactive slot, if it is whole, was read back, and its UKI is at hand.
    pub fn ready<'a>(&'a self, facts: &Facts) -> Option<&'a KnownRelease> {
        super::slots::ready(self, facts)
    }

    /// What this host can be relied upon for.
    pub fn guarantees(&self, facts: &Facts) -> Guarantees {
        host(self, facts).guarantees()
    }

    /// Whether a trial would end by itself: whether the boot loader counts, from this boot and from what was seen before, and
    /// whether it would take what is armed and come back.
    pub fn counting(&self, facts: &Facts) -> Counting {
        match self.counting_and_why(facts) {
            (Counting::Unknown, why) if why.is_none() => Counting::Works,
            (counting, _) => counting,
        }
    }

    /// The same, with the reason where it is not known to be so.
    pub fn counting_and_why(&self, facts: &Facts) -> (Counting, Option<String>) {
        let counts = self.boot_loader_counts(facts);
        // During a trial the other slot is the way back, and is not to be armed.
        match facts.boot.obstacle.as_ref().filter(|_| counts.0 != Counting::Broken && !self.is_trial(facts)) {
            Some(obstacle) => (Counting::Broken, Some(obstacle.clone())),
            None => counts,
        }
    }

    /// Whether the boot loader takes what is armed and counts its tries, from this boot and from what was seen before.
    pub(super) fn boot_loader_counts(&self, facts: &Facts) -> (Counting, Option<String>) {
        let journal = self.journal.as_ref();
        if facts.boot.counting == Counting::Broken {
            return (Counting::Broken, facts.boot.counting_message.clone());
        }
        if journal.is_some_and(|journal| journal.counting_seen == Some(false)) {
            return (Counting::Broken, Some("the boot loader was seen not to count the tries of a trial".to_owned()));
        }
        if let Some(not_taken) = journal.and_then(|journal| journal.not_taken.as_ref()) {
            let message = format!(
                "{} was armed and the boot loader did not take it ({} times, last at {}): something else decides what is \
                 booted; correct that (boot menu, loader.conf, firmware), then stage the release by hand or change the boot \
                 loader's set-up",
                not_taken.version, not_taken.times, not_taken.at
            );
            return (Counting::Broken, Some(message));
        }
        match (facts.boot.counting, journal.and_then(|journal| journal.counting_seen)) {
            (Counting::Unknown, Some(true)) => (Counting::Works, None),
            (counting, _) => (counting, facts.boot.counting_message.clone()),
        }
    }

    /// Whether what failed last is waited for. A repair is waited for by nobody.
    pub fn is_held_back(&self, now: Now) -> bool {
        self.problem.as_ref().is_some_and(|problem| {
            let waits_for_repairs = self.config.without == Some(Safeguard::CommitBeforeRepair);
            let holds = problem.during != During::Goal && (!problem.during.is_repair() || waits_for_repairs);
            holds && problem.retry_at.is_some_and(|at| at > now.since_boot)
        })
    }

    /// For how long what is being done has been silent, if that is too long: a disk or a file system hangs, and only a new
    /// start of the agent, or of the machine, can help.
    pub fn hangs(&self, now: Now) -> Option<Duration> {
        let silent = now.since_boot.saturating_sub(self.last_sign);
        self.work.filter(|work| silent >= work.patience()).map(|_| silent)
    }

    /// Whether a repair failed a short time ago.
    pub(super) fn repair_waits(&self, now: Now) -> bool {
        let failed = self.problem.as_ref().filter(|problem| problem.during.is_repair());
        failed.is_some_and(|problem| problem.retry_at.is_some_and(|at| at > now.since_boot))
    }

    /// How long nothing has to be looked at unless something happens, from `now`.
    pub fn rest(&self, now: Now) -> Duration {
        if let Some(work) = self.work {
            // Its end is an event.
            let patience = (self.last_sign + work.patience()).saturating_sub(now.since_boot);
            return if patience.is_zero() {
                self.config.observe_every
            } else {
                self.config.observe_every.min(patience)
            };
        }
        let waits = self.is_held_back(now) || self.repair_waits(now);
        if let Some(at) = self.problem.as_ref().filter(|_| waits).and_then(|problem| problem.retry_at) {
            return at.saturating_sub(now.since_boot).min(self.config.observe_every);
        }
        let look = self.observed_at + self.config.observe_every;
        let inspection = self.inspected_at + self.config.inspect_every;
        let reboot = self.reboot_asked.map_or(look, |at| at + self.config.reboot_retry);
        look.min(inspection).min(reboot).saturating_sub(now.since_boot)
    }
}
