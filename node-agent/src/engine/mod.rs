//! Carries effects out on a host, one after the other. Blocking; knows no network and no API server of its own.

mod error;
mod pace;
mod slot;

use std::sync::Arc;

use bascule_api::Digest;

pub(crate) use error::category_of;
pub use error::{EffectError, in_one_line};
pub use pace::{PressureLimits, Stop};
pub use slot::StageLimits;

use crate::boot::{self, BootFolder, DigestCache};
use crate::core::boot::{BootPurpose, waiting_name};
use crate::core::{Effect, Event, HOOK_LIMIT, Hook, JOURNAL_FILE, Journal, MAX_JOURNAL, ReleaseTarget};
use crate::fitness::{self, Wanted};
use crate::gpt::{Change, Table};
use crate::host::{BusError, Host, Inhibition, ResolvedRelease, UnitRun};
use crate::observe::{self, LookSettings, ObserveError, RunningSlots};
use crate::slots;

/// Name of the file by which the guard is told that the trial is over.
pub const COMMIT_FILE: &str = "commit.json";

/// What the guard is told.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommitNote {
    /// The boot whose trial is over.
    pub boot_id: String,
}

/// Carries effects out.
pub struct Engine {
    host: Host,
    look_settings: LookSettings,
    limits: StageLimits,
    stop: Stop,
    resolved: Option<(Digest, Arc<dyn ResolvedRelease>)>,
    digests: DigestCache,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("look_settings", &self.look_settings).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine on a host.
    pub fn new(host: Host, look_settings: LookSettings, limits: StageLimits) -> Self {
        Self { host, look_settings, limits, stop: Stop::default(), resolved: None, digests: DigestCache::default() }
    }

    /// Stops work in progress from another thread.
    pub fn stop_handle(&self) -> Stop {
        self.stop.clone()
    }

    /// The host.
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// Carries effects out in order and ends with the first that fails. What happens meanwhile goes to `tell`, at last
    /// [`Event::Done`] or [`Event::Failed`]. [`Effect::Publish`] and [`Effect::Cancel`] are the caller's and are skipped.
    pub fn perform(&mut self, effects: &[Effect], tell: &(dyn Fn(Event) + Sync)) {
        self.stop.clear();
        for effect in effects {
            let kind = effect.kind();
            tracing::debug!(effect = kind.name(), "begins");
            if let Err(error) = self.carry_out(effect, tell) {
                let failure = error.into_failure(kind);
                if !failure.cancelled {
                    tracing::warn!(
                        effect = kind.name(),
                        category = failure.category.as_str(),
                        error = failure.message,
                        "failed"
                    );
                }
                tell(Event::Failed(failure));
                return;
            }
            Self::tell_milestone(effect);
        }
        tell(Event::Done);
    }

    /// The few steps that an on-call engineer looks for in the log.
    fn tell_milestone(effect: &Effect) {
        match effect {
            Effect::PlaceLoader(step) => {
                tracing::info!(version = step.loader.version, changes = ?step.changes, "the boot loader was put in place");
            }
            Effect::Seal(target) => tracing::info!(version = %target.version, slot = %target.slot, "staged"),
            Effect::Boot(step) => {
                let (slot, release) = (step.slot, step.release.as_ref().map(ToString::to_string));
                match step.purpose {
                    BootPurpose::Arm => tracing::info!(%slot, release, "armed"),
                    BootPurpose::Disarm => tracing::info!(%slot, release, "disarmed"),
                    BootPurpose::Commit => tracing::info!(%slot, release, "committed"),
                    BootPurpose::MarkBad => tracing::warn!(%slot, release, "the release in this slot failed"),
                    BootPurpose::ClearAway | BootPurpose::Untangle => {
                        tracing::warn!(%slot, changes = ?step.changes, "the boot partition was put in order");
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn carry_out(&mut self, effect: &Effect, tell: &(dyn Fn(Event) + Sync)) -> Result<(), EffectError> {
        match effect {
            Effect::Publish(_) | Effect::Cancel => Ok(()),
            Effect::Observe => self.look(tell),
            Effect::Persist(journal) => self.persist(journal),
            Effect::Resolve(query) => {
                // Where logind can't be asked nothing that is staged is ever booted. That is said now, and not when the node
                // has been drained for it.
                self.host.bus.inhibitors()?;
                self.hook_can_be_asked_for(&Hook::BeforeArm.unit(&query.version))?;
                let release = self.host.releases.resolve(query)?;
                let manifest = Arc::new(release.manifest().clone());
                self.resolved = Some((query.digest.clone(), release));
                tell(Event::Resolved(manifest));
                Ok(())
            }
            Effect::RepairTable => {
                let _hold = self.hold("repairing the partition table");
                let mut table = Table::read(&*self.host.disk)?;
                tracing::warn!(health = ?table.health(), "the partition table is repaired from its other copy");
                Ok(table.write(&*self.host.disk)?)
            }
            Effect::Boot(step) => {
                let slots = self.slots()?;
                if let Some(release) = &step.release
                    && slots.root_hash_of(step.slot) != Some(release)
                {
                    return Err(EffectError::Order(
                        "the slot holds another release than its boot entry was planned for",
                    ));
                }
                // A slot is overwritten after this: what an earlier try removed must be gone for good.
                if step.changes.is_empty() && step.purpose != BootPurpose::Retire {
                    return Ok(());
                }
                let backend = observe::backend(&self.host, &self.look_settings, &slots)?;
                let _hold = self.hold(step.purpose.words());
                let outcome = boot::apply(&self.host, backend, &slots, &step.changes);
                self.digests.clear();
                outcome?;
                if step.purpose == BootPurpose::Retire { Ok(boot::sync(&self.host, backend)?) } else { Ok(()) }
            }
            Effect::MarkWriting(target) => self.label(target.slot, &slots::writing(&target.version, &target.root_hash)),
            Effect::MarkEmpty(slot) => self.label(*slot, &slots::emptied()),
            Effect::Seal(target) => self.label(target.slot, &slots::sealed(&target.version, &target.root_hash)),
            Effect::WriteSlot { target, fallback, from_running } => {
                let slots = self.slots()?;
                Self::not_running(&slots, target.slot)?;
                self.quietly(|| self.write_slot(&slots, target, *fallback, *from_running, tell))
            }
            Effect::PreviewUki(target) => {
                let release = self.resolved_for(target)?;
                let slots = self.slots()?;
                let backend = observe::backend(&self.host, &self.look_settings, &slots)?;
                if !boot::firmware_starts_images(backend) {
                    return Ok(());
                }
                let options = self.transfer_options();
                self.quietly(|| self.judge_fitness(&*release.open_uki(&options)?, true, &slots, target))
            }
            Effect::StageUki { target, partition } => {
                let release = self.resolved_for(target)?;
                let options = self.transfer_options();
                let slots = self.slots()?;
                Self::not_running(&slots, target.slot)?;
                let backend = observe::backend(&self.host, &self.look_settings, &slots)?;
                let folder = BootFolder::on(&self.host, backend, *partition)?;
                let outcome = self.quietly(|| {
                    let hold = || self.hold("writing a boot image");
                    Ok(boot::lay_down(&folder, target, &hold, &mut |out| release.copy_uki(out, &options))?)
                });
                self.digests.clear();
                outcome?;
                let file = target.uki.as_ref().map(|(digest, _)| waiting_name(digest)).unwrap_or_default();
                self.check_fitness(&folder, &file, true, &slots, target)
            }
            Effect::Inspect(target) => {
                let slots = self.slots()?;
                let changed = match self.quietly(|| self.read_back(&slots, target, &|_| {})) {
                    Ok(()) => None,
                    Err(error @ (EffectError::ReadBack(_) | EffectError::Superblock(_)))
                        if error.category() == bascule_api::NodeError::Trust && !error.is_cancelled() =>
                    {
                        let changed = in_one_line(&error);
                        tracing::error!(slot = %target.slot, error = changed, "the running slot was changed");
                        Some(changed)
                    }
                    Err(error) => return Err(error),
                };
                tell(Event::Inspected { changed });
                Ok(())
            }
            Effect::ReadBack(target) => {
                let slots = self.slots()?;
                self.quietly(|| self.read_back(&slots, target, tell))?;
                // It is in its slot: an agent at rest keeps neither its metadata nor connections.
                self.resolved = None;
                Ok(())
            }
            Effect::Verify { target, image, quick } => {
                let slots = self.slots()?;
                if let Some((partition, file)) = image {
                    let backend = observe::backend(&self.host, &self.look_settings, &slots)?;
                    let folder = BootFolder::on(&self.host, backend, *partition)?;
                    boot::verify(&*folder.esp, &folder.path(file), target)?;
                    // Keys may have been revoked since it was staged.
                    self.check_fitness(&folder, file, false, &slots, target)?;
                }
                if *quick { Ok(()) } else { self.read_back(&slots, target, tell) }
            }
            Effect::RunHook { hook, version } => {
                self.run_hook(&hook.unit(version))?;
                // The operator may have given the node back meanwhile.
                if self.stop.is_stopped() { Err(EffectError::Unwanted) } else { Ok(()) }
            }
            Effect::PlaceLoader(step) => {
                let architecture = observe::architecture()?;
                let bytes = boot::brought(&*self.host.system, &*self.host.firmware, architecture, &step.loader)?;
                let _hold = self.hold("updating the boot loader");
                Ok(boot::place(&*self.host.esp, step, &bytes)?)
            }
            Effect::TellGuard { boot_id } => {
                let note = CommitNote { boot_id: boot_id.clone() };
                let bytes = serde_json::to_vec(&note).map_err(crate::core::JournalError::Damaged)?;
                let failed = |source| EffectError::State { doing: "writing", name: COMMIT_FILE, source };
                self.host.state.write(COMMIT_FILE, &bytes).map_err(failed)
            }
            Effect::Reboot(why) => self.reboot(&why.to_string()),
        }
    }

    /// Reads the journal and looks at the machine.
    fn look(&self, tell: &(dyn Fn(Event) + Sync)) -> Result<(), EffectError> {
        self.look_settings.usable()?;
        let failed = |source| EffectError::State { doing: "reading", name: JOURNAL_FILE, source };
        let journal = match self.host.state.read(JOURNAL_FILE, MAX_JOURNAL).map_err(failed)? {
            None => Journal::default(),
            Some(bytes) => match Journal::parse(&bytes) {
                Ok(journal) => journal,
                Err(error) => self.set_journal_aside(&bytes, &error)?,
            },
        };
        tell(Event::Loaded(Box::new(journal)));
        let facts = observe::observe(&self.host, &self.look_settings, &self.digests)?;
        tell(Event::Observed(Box::new(facts)));
        Ok(())
    }

    /// A journal that can't be read is kept for whoever wants to know, and a new one begins.
    fn set_journal_aside(&self, bytes: &[u8], error: &crate::core::JournalError) -> Result<Journal, EffectError> {
        const ASIDE: &str = "journal.damaged";
        tracing::error!(error = in_one_line(error), kept = ASIDE, "the journal can't be used; a new one begins");
        let failed = |source| EffectError::State { doing: "writing", name: ASIDE, source };
        self.host.state.write(ASIDE, bytes).map_err(failed)?;
        let failed = |source| EffectError::State { doing: "removing", name: JOURNAL_FILE, source };
        self.host.state.remove(JOURNAL_FILE).map_err(failed)?;
        Ok(Journal::default())
    }

    fn persist(&self, journal: &Journal) -> Result<(), EffectError> {
        let bytes = journal.to_bytes()?;
        let failed = |source| EffectError::State { doing: "writing", name: JOURNAL_FILE, source };
        self.host.state.write(JOURNAL_FILE, &bytes).map_err(failed)
    }

    fn slots(&self) -> Result<RunningSlots, EffectError> {
        Ok(observe::running_slots(&self.host, &self.look_settings)?.0)
    }

    /// Whether the firmware would start a boot image, and whether it is what it should be.
    fn check_fitness(
        &self,
        folder: &BootFolder,
        file: &str,
        is_new: bool,
        slots: &RunningSlots,
        target: &ReleaseTarget,
    ) -> Result<(), EffectError> {
        // What the other boot loaders start is their own business: a kernel from the slot, or this file after a check of
        // their own.
        let Some(file) = boot::open(folder, file)? else { return Ok(()) };
        self.judge_fitness(&*file, is_new, slots, target)
    }

    fn judge_fitness(
        &self,
        file: &dyn bascule_image::io::ReadAt,
        is_new: bool,
        slots: &RunningSlots,
        target: &ReleaseTarget,
    ) -> Result<(), EffectError> {
        let wanted = Wanted {
            architecture: observe::architecture()?,
            // A product that the settings name is one that os-release does not.
            product: self.look_settings.product.is_none().then_some(&slots.product),
            version: &target.version,
            is_new,
        };
        Ok(fitness::check(file, &wanted, &*self.host.firmware)?)
    }

    /// Changes the table entries of a slot that does not run.
    fn label(&self, slot: bascule_api::SlotName, (data, verity): &(Change, Change)) -> Result<(), EffectError> {
        let slots = self.slots()?;
        Self::not_running(&slots, slot)?;
        let _hold = self.hold("labelling a slot");
        let mut table = Table::read(&*self.host.disk)?;
        let (data_part, verity_part) = slots.partitions.get(slot);
        table.change(data_part.number, data)?;
        table.change(verity_part.number, verity)?;
        Ok(table.write(&*self.host.disk)?)
    }

    /// Keeps the machine from being shut down. Each write survives a power cut, so without a bus it is done all the same.
    fn hold(&self, why: &str) -> Option<Box<dyn Inhibition>> {
        match self.host.bus.inhibit_shutdown(why) {
            Ok(hold) => Some(hold),
            Err(error) => {
                tracing::warn!(error = in_one_line(&error), why, "shutdown is not held back");
                None
            }
        }
    }

    /// Runs long work on a thread of the lowest priority.
    fn quietly(&self, work: impl FnOnce() -> Result<(), EffectError> + Send) -> Result<(), EffectError> {
        if !self.limits.low_priority {
            return work();
        }
        std::thread::scope(|scope| {
            let quiet = || {
                // For threads of the best-effort class the kernel takes the disk priority from this number too
                // (ioprio_set(2), "Selecting an I/O scheduler"). Threads that are started from here inherit it.
                let lowest = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
                if let Err(error) = lowest {
                    tracing::debug!(%error, "the priority stays as it is");
                }
                work()
            };
            let spawned = std::thread::Builder::new().name("stage".to_owned()).spawn_scoped(scope, quiet);
            match spawned.map(std::thread::ScopedJoinHandle::join) {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Err(EffectError::Order("the staging thread died")),
                Err(_) => Err(EffectError::Order("no thread for staging could be started")),
            }
        })
    }

    fn resolved_for(&self, target: &ReleaseTarget) -> Result<Arc<dyn ResolvedRelease>, EffectError> {
        let wanted = target.digest.as_ref();
        match &self.resolved {
            Some((digest, release)) if wanted == Some(digest) => Ok(Arc::clone(release)),
            _ => Err(EffectError::Order("the release was not resolved since the agent started")),
        }
    }

    /// Whether the image has a hook, by its files.
    fn has_hook(&self, unit: &str) -> Result<bool, ObserveError> {
        self.host.system.has_unit(unit).map_err(|source| ObserveError::Read { what: "the folders of units", source })
    }

    /// Refuses an image with a hook where nobody can be asked to start it.
    fn hook_can_be_asked_for(&self, unit: &str) -> Result<(), EffectError> {
        if self.has_hook(unit)? {
            let asked = self.host.bus.unit_states(&[unit.to_owned()]);
            asked.map_err(|source| EffectError::HookUnasked { unit: unit.to_owned(), source })?;
        }
        Ok(())
    }

    fn run_hook(&self, unit: &str) -> Result<(), EffectError> {
        let failed = |what| Err(EffectError::Hook { unit: unit.to_owned(), what });
        let end = match self.host.bus.run_unit(unit, HOOK_LIMIT) {
            // Who has no hook needs nobody to start it.
            Err(source @ BusError::NotAsked { .. }) if self.has_hook(unit)? => {
                return Err(EffectError::HookUnasked { unit: unit.to_owned(), source });
            }
            Err(error @ BusError::NotAsked { .. }) => {
                tracing::info!(unit, why = in_one_line(&error), "the OS image has no such hook, by its files");
                UnitRun::Absent
            }
            end => end?,
        };
        match end {
            UnitRun::Absent => Ok(()),
            UnitRun::Done => {
                tracing::info!(unit, "the OS image's hook is done");
                Ok(())
            }
            UnitRun::Failed(what) => failed(what),
            UnitRun::TimedOut => failed(format!("was stopped after {} s", HOOK_LIMIT.as_secs())),
        }
    }

    fn reboot(&self, message: &str) -> Result<(), EffectError> {
        let blocking = self.host.bus.inhibitors()?.into_iter().find(|inhibitor| {
            inhibitor.what.split(':').any(|what| what == "shutdown") && inhibitor.mode.starts_with("block")
        });
        if let Some(inhibitor) = blocking {
            return Err(EffectError::Inhibited { who: inhibitor.who, why: inhibitor.why, mode: inhibitor.mode });
        }
        tracing::warn!(why = message, "rebooting");
        Ok(self.host.bus.reboot(message)?)
    }
}
