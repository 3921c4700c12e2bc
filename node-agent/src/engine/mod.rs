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

use crate::boot::{BootBackend, Machine};
use crate::core::{Effect, Event, JOURNAL_FILE, Journal, MAX_JOURNAL, ReleaseTarget};
use crate::fitness::{self, Wanted};
use crate::gpt::{Change, Table};
use crate::host::{Hold, Host, ResolvedRelease};
use crate::observe::{self, Lens, ObserveError};
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
    lens: Lens,
    limits: StageLimits,
    stop: Stop,
    resolved: Option<(Digest, Arc<dyn ResolvedRelease>)>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("lens", &self.lens).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine on a host.
    pub fn new(host: Host, lens: Lens, limits: StageLimits) -> Self {
        Self { host, lens, limits, stop: Stop::default(), resolved: None }
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
            let name = effect.name();
            tracing::debug!(effect = name, "begins");
            if let Err(error) = self.carry_out(effect, tell) {
                let failure = error.into_failure(name);
                if !failure.cancelled {
                    tracing::warn!(
                        effect = name,
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
            Effect::Seal(target) => tracing::info!(version = %target.version, slot = %target.slot, "staged"),
            Effect::Arm { target, tries, .. } => {
                tracing::info!(version = %target.version, slot = %target.slot, tries, "armed");
            }
            Effect::Disarm(target) => tracing::info!(version = %target.version, slot = %target.slot, "disarmed"),
            Effect::Bless { slot, root_hash } => tracing::info!(%slot, %root_hash, "committed"),
            Effect::MarkBad(slot) => tracing::warn!(%slot, "the release in this slot failed"),
            _ => {}
        }
    }

    fn carry_out(&mut self, effect: &Effect, tell: &(dyn Fn(Event) + Sync)) -> Result<(), EffectError> {
        match effect {
            Effect::Publish(_) | Effect::Cancel => Ok(()),
            Effect::Observe => self.look(tell),
            Effect::Persist(journal) => self.persist(journal),
            Effect::Resolve(query) => {
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
            Effect::RemoveStrays => {
                self.with_boot("removing boot entries without a slot", |boot, machine| Ok(boot.remove_strays(machine)?))
            }
            Effect::TidyEntry(slot) => {
                self.with_boot("mending a boot entry", |boot, machine| Ok(boot.tidy(machine, *slot)?))
            }
            Effect::RetireEntry(slot) => self.with_boot("removing a boot entry", |boot, machine| {
                Self::not_running(machine, *slot)?;
                Ok(boot.retire(machine, *slot)?)
            }),
            Effect::MarkWriting(target) => self.label(target.slot, &slots::writing(&target.version, &target.root_hash)),
            Effect::MarkEmpty(slot) => self.label(*slot, &slots::emptied()),
            Effect::Seal(target) => self.label(target.slot, &slots::sealed(&target.version, &target.root_hash)),
            Effect::WriteSlot { target, fallback, from_running } => {
                let machine = self.machine()?;
                Self::not_running(&machine, target.slot)?;
                self.quietly(|| self.write_slot(&machine, target, *fallback, *from_running, tell))
            }
            Effect::StageUki(target) => {
                let release = self.resolved_for(target)?;
                let options = self.transfer_options();
                self.quietly(|| {
                    self.with_boot("writing a boot image", |boot, machine| {
                        Self::not_running(machine, target.slot)?;
                        Ok(boot.stage_uki(machine, target, &mut |out| release.copy_uki(out, &options))?)
                    })
                })?;
                self.check_fitness(&self.machine()?, target)
            }
            Effect::Inspect(target) => {
                let machine = self.machine()?;
                let changed = match self.quietly(|| self.read_back(&machine, target, &|_| {})) {
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
                let machine = self.machine()?;
                self.quietly(|| self.read_back(&machine, target, tell))?;
                // It is in its slot: an agent at rest keeps neither its metadata nor connections.
                self.resolved = None;
                Ok(())
            }
            Effect::Verify { target, quick } => {
                let machine = self.machine()?;
                self.boot(&machine)?.verify_uki(&machine, target)?;
                // Keys may have been revoked since it was staged.
                self.check_fitness(&machine, target)?;
                if *quick { Ok(()) } else { self.read_back(&machine, target, tell) }
            }
            Effect::Arm { target, tries, set_aside_running } => self.with_boot("arming a slot", |boot, machine| {
                if machine.root_hash_of(target.slot) != Some(&target.root_hash) {
                    return Err(EffectError::Order("the slot to arm holds another release than expected"));
                }
                Ok(boot.arm(machine, target, *tries, *set_aside_running)?)
            }),
            Effect::Recount { slot, left } => self
                .with_boot("giving a boot entry its counter back", |boot, machine| {
                    Ok(boot.recount(machine, *slot, *left)?)
                }),
            Effect::Disarm(target) => {
                self.with_boot("disarming a slot", |boot, machine| Ok(boot.disarm(machine, target)?))
            }
            Effect::Bless { slot, root_hash } => self.with_boot("committing a release", |boot, machine| {
                if *slot != machine.booted || *root_hash != machine.root_hash {
                    return Err(EffectError::Order("only the running release can be committed"));
                }
                Ok(boot.bless(machine, *slot)?)
            }),
            Effect::MarkBad(slot) => {
                self.with_boot("giving a release up", |boot, machine| Ok(boot.mark_bad(machine, *slot)?))
            }
            Effect::Restore(slot) => {
                self.with_boot("restoring a boot entry", |boot, machine| Ok(boot.bless(machine, *slot)?))
            }
            Effect::SetAside(slot) => {
                self.with_boot("setting a boot entry aside", |boot, machine| Ok(boot.set_aside(machine, *slot)?))
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
        let failed = |source| EffectError::State { doing: "reading", name: JOURNAL_FILE, source };
        let journal = match self.host.state.read(JOURNAL_FILE, MAX_JOURNAL).map_err(failed)? {
            None => Journal::default(),
            Some(bytes) => match Journal::parse(&bytes) {
                Ok(journal) => journal,
                Err(error) => self.set_journal_aside(&bytes, &error)?,
            },
        };
        tell(Event::Loaded(journal));
        let facts = observe::observe(&self.host, &self.lens)?;
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

    fn machine(&self) -> Result<Machine, EffectError> {
        Ok(observe::machine(&self.host, &self.lens)?.0)
    }

    fn boot(&self, machine: &Machine) -> Result<Box<dyn BootBackend + '_>, ObserveError> {
        Ok(observe::backend(&self.host, observe::backend_kind(&self.host, &self.lens, machine)?))
    }

    /// Whether the firmware would start the boot image of a target, and whether it is what it should be.
    fn check_fitness(&self, machine: &Machine, target: &ReleaseTarget) -> Result<(), EffectError> {
        let Some(file) = self.boot(machine)?.open_uki(machine, target)? else { return Ok(()) };
        let wanted = Wanted {
            architecture: observe::architecture()?,
            // A product that the settings name is one that os-release does not.
            product: self.lens.product.is_none().then_some(&machine.product),
            version: &target.version,
        };
        Ok(fitness::check(&*file, &wanted, &*self.host.firmware)?)
    }

    /// Changes boot entries while shutdown is held back.
    fn with_boot(
        &self,
        why: &str,
        change: impl FnOnce(&dyn BootBackend, &Machine) -> Result<(), EffectError>,
    ) -> Result<(), EffectError> {
        let machine = self.machine()?;
        let boot = self.boot(&machine)?;
        let _hold = self.hold(why);
        change(&*boot, &machine)
    }

    /// Changes the table entries of a slot that does not run.
    fn label(&self, slot: bascule_api::SlotName, (data, verity): &(Change, Change)) -> Result<(), EffectError> {
        let machine = self.machine()?;
        Self::not_running(&machine, slot)?;
        let _hold = self.hold("labelling a slot");
        let mut table = Table::read(&*self.host.disk)?;
        let (data_part, verity_part) = machine.partitions.get(slot);
        table.change(data_part.number, data)?;
        table.change(verity_part.number, verity)?;
        Ok(table.write(&*self.host.disk)?)
    }

    /// Keeps the machine from being shut down. Each write survives a power cut, so without a bus it is done all the same.
    fn hold(&self, why: &str) -> Option<Box<dyn Hold>> {
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
