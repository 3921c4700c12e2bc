//! The shipped agent's decisions (`bascule_agent::core`) on a machine in memory: two slots that say what they hold, boot images by name,
//! and what the agent remembers. Nothing of it is a byte; the names of boot images are, by which the simulated firmware counts.
//!
//! What is decided is the agent's own: when a word is followed, what is a trial, what failed, what is said. What is played here is the
//! machine below it, as the engine and Linux would have it (`node-agent/src/engine`), and each effect is done at once but the writing of
//! a slot.

use super::build;
use crate::firmware::entries::{self, Entry};
use bascule_agent::core::{
    BootFacts, Committed, Config, Desired, Effect, EffectKind, Entry as Judged, Event, Extent, Facts, Failure,
    GuardReport, Journal, Now, Partition, PerSlot, ReleaseQuery, SlotContent, SlotFacts, Space, State, TableHealth,
    Why,
    boot::{
        BootChange, BootFile, BootInventory, BootPartition, FileContent, ImageFacts, LoaderFacts, PartitionFacts,
        steps_back, waiting_name,
    },
    step,
};
use bascule_api::{
    Architecture, BootControlBackend, Digest, NodeError, NodeUpdateStatus, Product, RootHash, SlotName, Time, Version,
};
use bascule_image::Manifest;
use bascule_image::release::{manifest, names::TargetPath};
use bascule_names::entry_base;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use uuid::Uuid;

/// When the guard takes a trial back, in seconds from the start of its boot.
pub(super) const GUARD: u64 = 900;
/// Steps of one moment after which the agent is taken for one that runs in circles.
const MAX_STEPS: usize = 300;
/// Bytes of each boot image, of each slot, and of the boot partition: there is room.
const BOOT_IMAGE: u64 = 16 << 20;
const SLOT: u64 = 4 << 30;
const BOOT_PARTITION: u64 = 1 << 30;
/// PARTUUID of the boot partition.
const ESP: Uuid = Uuid::from_u128(0xe5b);
/// `LoaderFeatures`, bit 4: the boot loader counts (systemd, "The Boot Loader Interface").
const COUNTS: u64 = 1 << 4;

/// What surrounds an agent at a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Around<'a> {
    /// The present boot.
    pub(super) boot_id: &'a str,
    /// How long a slot is written.
    pub(super) stage_seconds: i64,
    /// Whether somebody holds the reboot back.
    pub(super) inhibited: bool,
    /// Whether the boot loader says that it counts.
    pub(super) counts: bool,
    /// How often somebody set the boot loader up anew.
    pub(super) setup: u32,
    /// The state versions that releases declare.
    pub(super) states: &'a BTreeMap<Version, u32>,
}

/// What the world sees of an agent's doing.
#[derive(Debug, Clone)]
pub(super) enum Done {
    /// The machine goes down.
    Reboots(Why),
    /// What runs is permanent.
    Commits(Version),
    /// A person's word to try again was followed.
    Forgives,
    /// It has on record that this release failed.
    Fails(Version),
}

/// What the firmware started.
#[derive(Debug, Clone)]
pub(super) struct Started {
    /// The release.
    pub(super) version: Version,
    /// Whether its tries were counted down for it.
    pub(super) tried: bool,
    /// The release that was tried before and will not be again.
    pub(super) failed: Option<Version>,
}

/// What runs.
#[derive(Debug, Clone)]
struct Running {
    slot: SlotName,
    root_hash: RootHash,
    version: Version,
    /// Whether the boot loader said that the entry has counters.
    counted: bool,
    file: String,
}

/// Effects that are still to be carried out.
#[derive(Debug, Clone)]
struct UnderWay {
    /// When the one before them is done, by time since boot.
    until: Duration,
    chain: VecDeque<Effect>,
}

/// What lives in the agent's process.
#[derive(Debug, Clone, Default)]
struct Process {
    state: State,
    /// The word that it heard last.
    heard: Option<Option<Desired>>,
    /// What it says.
    says: Option<NodeUpdateStatus>,
    under_way: Option<UnderWay>,
    /// When it looks again though nothing happens, by time since boot.
    wakes_at: Duration,
}

impl Process {
    fn new() -> Self {
        let trial_deadline = Duration::from_secs(GUARD);
        Self { state: State::new(Config { trial_deadline, ..Config::default() }), ..Self::default() }
    }
}

/// A machine's slots, boot images and agent.
#[derive(Debug, Clone)]
pub(super) struct Agent {
    product: Product,
    slots: PerSlot<SlotContent>,
    files: Vec<BootFile>,
    journal: Journal,
    guard: Option<GuardReport>,
    running: Option<Running>,
    /// The release that was started with a counter last and that nobody has committed.
    tried: Option<(Version, RootHash)>,
    /// Whether what runs is a trial.
    on_trial: bool,
    process: Process,
}

impl Agent {
    /// On a machine with nothing on its disk.
    pub(super) fn new() -> Self {
        Self {
            product: build::product(),
            slots: PerSlot { a: SlotContent::Empty, b: SlotContent::Empty },
            files: Vec::new(),
            journal: Journal::default(),
            guard: None,
            running: None,
            tried: None,
            on_trial: false,
            process: Process::new(),
        }
    }

    /// An installer writes a release into the slot that runs, or into the first.
    pub(super) fn install(&mut self, version: &Version, at: Time) {
        let slot = self.running.as_ref().map_or(SlotName::A, |running| running.slot);
        let root_hash = self.write(slot, version, EntryKind::Good);
        let file = entry_name(&self.product, version, EntryKind::Good);
        self.journal.committed = Some(Committed { root_hash: root_hash.clone(), at: at.get() });
        self.running = Some(Running { slot, root_hash, version: version.clone(), counted: false, file });
        (self.tried, self.on_trial, self.process) = (None, false, Process::new());
    }

    /// An installer writes a release into the other slot, as what can be gone back to.
    pub(super) fn keep(&mut self, version: &Version) {
        let Some(running) = &self.running else { return };
        // The newest would be started next, and what runs is to be.
        let kind = if *version < running.version { EntryKind::Good } else { EntryKind::Aside };
        let slot = running.slot.other();
        let _ = self.write(slot, version, kind);
        self.process.state.facts = None;
    }

    fn write(&mut self, slot: SlotName, version: &Version, kind: EntryKind) -> RootHash {
        let root_hash = build::root_hash(&build::digest(version.as_str()));
        let before = self.slots.get(slot).root_hash().cloned();
        let replaced = |boots: &RootHash| *boots == root_hash || before.as_ref() == Some(boots);
        self.files.retain(|file| !file.content.root_hash().is_some_and(replaced));
        let name = entry_name(&self.product, version, kind);
        self.files.push(self.boot_image(name, version, &root_hash));
        *self.slots.get_mut(slot) = SlotContent::Release { version: version.clone(), root_hash: root_hash.clone() };
        root_hash
    }

    fn boot_image(&self, name: String, version: &Version, root_hash: &RootHash) -> BootFile {
        let image = ImageFacts {
            sort_key: Some(self.product.to_string()),
            version: Some(version.to_string()),
            root_hash: Some(root_hash.clone()),
            profiles: Vec::new(),
        };
        let (partition, content) = (BootPartition::Esp, FileContent::Image(image));
        BootFile { partition, name, size: BOOT_IMAGE, content, digest: None, start: None }
    }

    /// The release that runs.
    pub(super) fn running(&self) -> Option<&Version> {
        self.running.as_ref().map(|running| &running.version)
    }

    /// Whether what runs is a trial.
    pub(super) const fn is_on_trial(&self) -> bool {
        self.on_trial
    }

    /// Whether it is in the middle of something that takes its time.
    pub(super) const fn is_busy(&self) -> bool {
        self.process.under_way.is_some()
    }

    /// What it says, once it has said anything in this boot.
    pub(super) const fn says(&self) -> Option<&NodeUpdateStatus> {
        self.process.says.as_ref()
    }

    /// Its process ends; the next begins anew.
    pub(super) fn stop(&mut self) {
        if self.process.heard.is_some() {
            self.process = Process::new();
        }
    }

    /// It looks at its machine as soon as it can.
    pub(super) fn look_again(&mut self) {
        (self.process.state.facts, self.process.wakes_at) = (None, Duration::ZERO);
    }

    /// The power comes: the firmware sorts the entries, takes the first (or, where somebody else decides, the one after it), and counts.
    /// `None`: there is nothing to be started.
    pub(super) fn power_on(&mut self, another: bool, around: &Around<'_>) -> Option<Started> {
        self.process = Process::new();
        let mut found: Vec<Entry> = self.files.iter().filter_map(entry).collect();
        entries::sort(&mut found);
        let entry = found.get(usize::from(another)).or(found.first())?;
        let left = entry.tries.map_or(0, |tries| tries.left);
        let image = self.files.iter_mut().find(|file| file.name == entry.file)?;
        image.name = entry.next_file().unwrap_or_else(|| entry.file.clone());
        let (file, root_hash) = (image.name.clone(), image.content.root_hash().cloned()?);
        let holds = |slot: &SlotName| self.slots.get(*slot).root_hash() == Some(&root_hash);
        let slot = [SlotName::A, SlotName::B].into_iter().find(holds)?;
        let SlotContent::Release { version, .. } = self.slots.get(slot).clone() else { return None };
        let before = self.tried.take_if(|(_, tried)| *tried != root_hash);
        let failed = before.filter(|(_, tried)| self.is_used_up(tried)).map(|(version, _)| version);
        if left > 0 {
            self.tried = Some((version.clone(), root_hash.clone()));
        }
        let counted = entry.tries.is_some();
        self.running = Some(Running { slot, root_hash, version: version.clone(), counted, file });
        self.judge(around);
        Some(Started { version, tried: left > 0, failed })
    }

    /// Whether the entry of a release has no tries left, and had some.
    fn is_used_up(&self, root_hash: &RootHash) -> bool {
        let mut files = self.files.iter().filter(|file| file.content.root_hash() == Some(root_hash));
        files.any(|file| entries::parse_tries(&file.name).is_some_and(|(_, tries)| tries.left == 0 && tries.done > 0))
    }

    /// The guard's time is over: it makes the boot loader go back.
    pub(super) fn give_up(&mut self, around: &Around<'_>, now: Now) {
        let Some(mut facts) = self.look(around) else { return };
        facts.judge(&self.journal, None);
        let (boot_id, reason) = (around.boot_id.to_owned(), format!("no commit within {GUARD} s of the boot"));
        self.guard = Some(GuardReport { boot_id, root_hash: facts.root_hash.clone(), at: now.wall, reason });
        for step in steps_back(&facts).into_iter().flatten() {
            for change in &step.changes {
                let _ = self.change(change);
            }
        }
    }

    /// Time has passed, and this is the operator's word.
    pub(super) fn live(&mut self, word: Option<Desired>, around: &Around<'_>, now: Now) -> Vec<Done> {
        let mut done = Vec::new();
        if self.running.is_none() {
            return done;
        }
        let mut events = VecDeque::new();
        if self.process.heard.as_ref() != Some(&word) {
            self.process.heard = Some(word.clone());
            events.push_back(Event::Desired(word));
        }
        if let Some(under_way) = self.process.under_way.take_if(|under_way| under_way.until <= now.since_boot) {
            self.go_on(under_way.chain, around, now, &mut events, &mut done);
        }
        if events.is_empty() && self.process.wakes_at <= now.since_boot {
            events.push_back(Event::Tick);
        }
        let moves = !events.is_empty();
        for _ in 0..MAX_STEPS {
            let Some(event) = events.pop_front() else { break };
            let (state, effects) = step(std::mem::take(&mut self.process.state), event, now);
            self.process.state = state;
            self.carry_out(effects, around, now, &mut events, &mut done);
            if done.iter().any(|done| matches!(done, Done::Reboots(_))) {
                break;
            }
        }
        self.process.wakes_at = now.since_boot + self.process.state.rest(now);
        // Every chain of effects ended with a look, but one that is under way, which changes nothing of a trial.
        if let Some(facts) = self.process.state.last_facts.as_ref().filter(|_| moves) {
            self.on_trial = self.process.state.is_trial(facts);
        }
        done
    }

    fn carry_out(
        &mut self,
        effects: Vec<Effect>,
        around: &Around<'_>,
        now: Now,
        events: &mut VecDeque<Event>,
        done: &mut Vec<Done>,
    ) {
        let mut chain = VecDeque::new();
        for effect in effects {
            match effect {
                Effect::Publish(status) => self.process.says = Some(*status),
                Effect::Cancel => {
                    if self.process.under_way.take().is_some() {
                        let why = "it is not wanted any more".to_owned();
                        let failure = failure(EffectKind::WriteSlot, NodeError::Internal, why);
                        events.push_back(Event::Failed(Failure { cancelled: true, ..failure }));
                    }
                }
                effect => chain.push_back(effect),
            }
        }
        if !chain.is_empty() {
            self.go_on(chain, around, now, events, done);
        }
    }

    /// Carries effects out in order, and ends with the first that fails or takes its time.
    fn go_on(
        &mut self,
        mut chain: VecDeque<Effect>,
        around: &Around<'_>,
        now: Now,
        events: &mut VecDeque<Event>,
        done: &mut Vec<Done>,
    ) {
        while let Some(effect) = chain.pop_front() {
            if matches!(effect, Effect::WriteSlot { .. }) && around.stage_seconds > 0 {
                let until = now.since_boot + Duration::from_secs(around.stage_seconds.unsigned_abs());
                self.process.under_way = Some(UnderWay { until, chain });
                return;
            }
            if let Err(failure) = self.perform(&effect, around, events, done) {
                events.push_back(Event::Failed(failure));
                return;
            }
            if matches!(effect, Effect::Reboot(_)) {
                return;
            }
        }
        events.push_back(Event::Done);
    }

    fn perform(
        &mut self,
        effect: &Effect,
        around: &Around<'_>,
        events: &mut VecDeque<Event>,
        done: &mut Vec<Done>,
    ) -> Result<(), Failure> {
        match effect {
            Effect::Observe => {
                events.push_back(Event::Loaded(Box::new(self.journal.clone())));
                events.extend(self.look(around).map(|facts| Event::Observed(Box::new(facts))));
            }
            Effect::Persist(journal) => {
                if journal.retried != self.journal.retried {
                    done.push(Done::Forgives);
                }
                let new = journal.failed.iter().filter(|failed| self.journal.failed(&failed.digest).is_none());
                done.extend(new.map(|failed| Done::Fails(failed.version.clone())));
                self.journal.clone_from(journal);
            }
            Effect::Resolve(query) => {
                let manifest = manifest_of(query, around.states.get(&query.version).copied());
                let nothing = || failure(effect.kind(), NodeError::Internal, "no manifest".to_owned());
                events.push_back(Event::Resolved(Arc::new(manifest.ok_or_else(nothing)?)));
            }
            Effect::Boot(step) => {
                for change in &step.changes {
                    self.change(change).map_err(|why| failure(effect.kind(), NodeError::Storage, why))?;
                }
            }
            Effect::MarkWriting(target) => {
                let version = Some(target.version.clone());
                *self.slots.get_mut(target.slot) = SlotContent::Writing { version };
            }
            Effect::MarkEmpty(slot) => *self.slots.get_mut(*slot) = SlotContent::Empty,
            Effect::Seal(target) => {
                let (version, root_hash) = (target.version.clone(), target.root_hash.clone());
                *self.slots.get_mut(target.slot) = SlotContent::Release { version, root_hash };
            }
            Effect::StageUki { target, .. } => {
                let name = target.uki.as_ref().map(|(digest, _)| waiting_name(digest)).unwrap_or_default();
                // What stands there is read first, and goes where it is another image.
                self.files.retain(|file| file.name != name || file.content.root_hash() == Some(&target.root_hash));
                if !self.files.iter().any(|file| file.name == name) {
                    self.files.push(self.boot_image(name, &target.version, &target.root_hash));
                }
            }
            Effect::ReadBack(target) | Effect::Verify { target, quick: false, .. } => {
                events.push_back(Event::Verified { slot: target.slot, root_hash: target.root_hash.clone() });
            }
            Effect::Inspect(_) => events.push_back(Event::Inspected { changed: None }),
            Effect::TellGuard { .. } => {
                self.tried = None;
                done.extend(self.running().cloned().map(Done::Commits));
            }
            Effect::Reboot(_) if around.inhibited => {
                let why = "the reboot waits for somebody: an inhibitor blocks shutdown".to_owned();
                let failure = failure(effect.kind(), NodeError::SystemBus, why);
                return Err(Failure { transient: true, ..failure });
            }
            Effect::Reboot(why) => done.push(Done::Reboots(why.clone())),
            Effect::RepairTable
            | Effect::WriteSlot { .. }
            | Effect::PreviewUki(_)
            | Effect::Verify { .. }
            | Effect::RunHook { .. }
            | Effect::PlaceLoader(_)
            | Effect::Cancel
            | Effect::Publish(_) => {}
        }
        Ok(())
    }

    /// One change of what boots, where what is expected is there.
    fn change(&mut self, change: &BootChange) -> Result<(), String> {
        match change {
            BootChange::Rename { from, to, .. } | BootChange::PutInPlace { from, to, .. } => {
                let file = self.files.iter_mut().find(|file| file.name == *from);
                file.ok_or_else(|| format!("{from} is gone"))?.name.clone_from(to);
            }
            BootChange::Remove { file, .. } => self.files.retain(|found| found.name != *file),
            BootChange::Copy { from, to, .. } => {
                let file = self.files.iter().find(|file| file.name == *from).cloned();
                let file = file.ok_or_else(|| format!("{from} is gone"))?;
                self.files.push(BootFile { name: to.clone(), ..file });
            }
            BootChange::Attributes(_) => return Err("the boot loader of this machine goes by names".to_owned()),
        }
        Ok(())
    }

    /// Whether what runs is a trial is the agent's own judgement, also before its process has looked: the guard asks it, too.
    fn judge(&mut self, around: &Around<'_>) {
        let Some(mut facts) = self.look(around) else { return };
        facts.judge(&self.journal, None);
        let state = State { journal: Some(self.journal.clone()), ..State::new(Config::default()) };
        self.on_trial = state.is_trial(&facts);
    }

    /// The machine as it is seen, not judged yet.
    fn look(&self, around: &Around<'_>) -> Option<Facts> {
        let running = self.running.as_ref()?;
        let partition = |number: u32| Partition {
            number,
            extent: Extent { start: u64::from(number) * SLOT, length: SLOT },
            uuid: Uuid::from_u128(u128::from(number)),
            label: String::new(),
            attributes: 0,
        };
        let slot = |name: SlotName, first: u32| SlotFacts {
            data: partition(first),
            verity: partition(first + 1),
            content: self.slots.get(name).clone(),
            entry: Judged::Unseen,
            entry_doubled: false,
        };
        let space = Space { free: BOOT_PARTITION, total: BOOT_PARTITION };
        let esp = PartitionFacts { partition: BootPartition::Esp, uuid: Some(ESP), space, read_only: false };
        let loader = LoaderFacts {
            info: Some(format!("systemd-boot 260 ({})", around.setup)),
            features: Some(if around.counts { COUNTS } else { 0 }),
            counted: running.counted,
            selected: Some(running.file.clone()),
            device: Some(ESP),
            ..LoaderFacts::default()
        };
        let mut files = self.files.clone();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let inventory = BootInventory { partitions: vec![esp], files, loader, ..BootInventory::default() };
        Some(Facts {
            boot_id: around.boot_id.to_owned(),
            product: self.product.clone(),
            architecture: Architecture::X86_64,
            version: running.version.clone(),
            state_version: around.states.get(&running.version).copied(),
            root_hash: running.root_hash.clone(),
            booted: running.slot,
            slots: PerSlot { a: slot(SlotName::A, 2), b: slot(SlotName::B, 4) },
            boot: BootFacts::read(BootControlBackend::SystemdBoot, inventory),
            table: TableHealth::Good,
            guard: self.guard.clone(),
            guard_unread: None,
            failing_units: Vec::new(),
        })
    }
}

/// How an installer names an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EntryKind {
    /// Permanent.
    Good,
    /// Permanent, and started only where there is nothing else.
    Aside,
}

fn entry_name(product: &Product, version: &Version, kind: EntryKind) -> String {
    let base = entry_base(product.as_str(), version.as_str());
    match kind {
        EntryKind::Good => format!("{base}.efi"),
        EntryKind::Aside => format!("{base}+0-0.efi"),
    }
}

/// A boot image as the firmware sorts it; of what waits under another name it knows nothing.
fn entry(file: &BootFile) -> Option<Entry> {
    let image = file.content.image().filter(|_| file.name.ends_with(".efi"))?;
    Some(Entry::named(&file.name, image.sort_key.clone(), image.version.clone()))
}

fn failure(effect: EffectKind, category: NodeError, message: String) -> Failure {
    Failure { effect, category, message, transient: false, cancelled: false }
}

/// What the repository says of a release. The digest of a manifest names it, and tells what its image is.
fn manifest_of(query: &ReleaseQuery, state_version: Option<u32>) -> Option<Manifest> {
    let root_hash = build::root_hash(&query.digest);
    let path = format!("releases/{}/x86-64/boot.efi", query.version).parse::<TargetPath>().ok()?;
    let uki = manifest::File { path, size: BOOT_IMAGE, digest: boot_image_of(&root_hash) };
    Some(Manifest {
        format: manifest::format_for(state_version),
        product: query.product.clone(),
        version: query.version.clone(),
        architecture: query.architecture,
        image: manifest::Image { size: SLOT / 2 },
        verity: manifest::Verity {
            algorithm: "sha256".to_owned(),
            block_size: 4096,
            salt: Vec::new(),
            uuid: Uuid::nil(),
            root_hash,
            hash_tree_size: SLOT / 128,
        },
        uki,
        packs: Vec::new(),
        packages: None,
        kubernetes: None,
        state_version,
        measured: None,
        boot_loader: None,
    })
}

/// The digest of the boot image that names a root hash.
fn boot_image_of(root_hash: &RootHash) -> Digest {
    Digest::from_sha256(&root_hash.to_bytes().map(|byte| byte ^ 0xa5))
}
