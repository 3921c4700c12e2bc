//! What follows from the operator's word.

use bascule_api::{Counting, FailedRelease, Goal, NodeError, PackFallback, ReleaseRef};

use super::housekeeping::{Plan, next_journal, short, target_of};
use super::state::{Work, uki_is_there};
use super::step::refuse;
use super::{
    Armed, Committed, Desired, Effect, Entry, Facts, Journal, KnownRelease, ManualCommand, Now, ReleaseQuery,
    ReleaseTarget, SlotContent, State, Why,
};

/// Room that is left free on the file system of the boot entries, in bytes: directories grow.
const BOOT_MARGIN: u64 = 1 << 20;

/// The release that somebody wants in the inactive slot.
pub(super) fn wanted_release(state: &State) -> Option<&ReleaseRef> {
    if let Some(manual) = &state.manual {
        return match &manual.command {
            ManualCommand::Stage(release) => Some(release),
            ManualCommand::Commit | ManualCommand::Revert => None,
        };
    }
    let desired = state.desired.as_ref()?;
    match desired.goal {
        Goal::Staged | Goal::Booted => desired.release.as_ref(),
        Goal::Idle | Goal::Committed | Goal::Reverted => None,
    }
}

/// Whether work in progress still serves somebody.
pub(super) fn is_still_wanted(state: &State, work: Work) -> bool {
    match work {
        Work::Look | Work::Short | Work::Resolve => true,
        Work::Stage => match (&state.resolved, wanted_release(state)) {
            (Some(resolved), Some(wanted)) => resolved.digest == wanted.digest,
            _ => false,
        },
        Work::Inspect => !state.interrupted,
        Work::Verify => {
            state.desired.as_ref().is_some_and(|desired| desired.disruption_begun || desired.grant.is_some())
        }
    }
}

/// The next thing to do for the operator.
pub(super) fn next(state: &mut State, facts: &Facts, now: Now) -> Plan {
    if state.manual.is_some() {
        return None;
    }
    if let Some(plan) = disarm(state, facts) {
        return Some(plan);
    }
    let desired = state.desired.clone()?;
    let leaving = state.trial_record(facts).is_some_and(|armed| armed.given_up.is_some());
    if leaving && desired.goal != Goal::Committed {
        return give_up(state, facts, now, "the trial was given up".to_owned());
    }
    let Some(release) = desired.release.clone() else {
        if desired.goal != Goal::Idle {
            refuse(state, now, NodeError::Internal, format!("goal {:?} names no release", desired.goal));
        }
        return None;
    };
    if matches!(desired.goal, Goal::Staged | Goal::Booted) && !runs(state, facts, &release) {
        let failed = state.journal.as_ref().and_then(|journal| journal.failed(&release.digest)).cloned();
        if let Some(failed) = failed {
            refuse(state, now, NodeError::TrialFailed, failed_here(&failed));
            return None;
        }
    }
    match desired.goal {
        Goal::Idle => clean(facts),
        Goal::Staged => staged(state, facts, now, &desired, &release),
        Goal::Booted => booted(state, facts, now, &desired, &release),
        Goal::Committed => committed(state, facts, now, &release),
        Goal::Reverted => reverted(state, facts, now, &desired, &release),
    }
}

fn failed_here(failed: &FailedRelease) -> String {
    format!(
        "release {} failed on this node at {} and is not tried again: {}",
        failed.version, failed.at, failed.message
    )
}

/// A slot that nobody wants filled any more is nobody's half-written release.
fn clean(facts: &Facts) -> Plan {
    let half = matches!(facts.inactive_slot().content, SlotContent::Writing { .. });
    half.then(|| (Work::Short, vec![Effect::MarkEmpty(facts.inactive())]))
}

/// Whether the running release is the one that is named.
fn runs(state: &State, facts: &Facts, release: &ReleaseRef) -> bool {
    let known = state.journal.as_ref().and_then(|journal| journal.known(&facts.root_hash));
    facts.version == release.version && known.is_none_or(|known| known.digest == release.digest)
}

/// What was armed in this boot and is not granted any more is taken back.
fn disarm(state: &State, facts: &Facts) -> Plan {
    let journal = state.journal.as_ref()?;
    let armed = journal.armed.as_ref().filter(|armed| armed.boot_id == facts.boot_id && armed.given_up.is_none())?;
    // Generation 0 is a person's own doing. Before the operator was heard, silence means nothing.
    if armed.generation == 0 || !state.heard {
        return None;
    }
    let granted = state.desired.as_ref().is_some_and(|desired| {
        let same_grant = desired
            .grant
            .as_ref()
            .is_some_and(|grant| grant.generation == armed.generation && grant.boot_id == armed.boot_id);
        let same_release = match desired.goal {
            Goal::Booted => desired.release.as_ref().map(|release| &release.digest) == armed.digest.as_ref(),
            Goal::Reverted => desired.release.as_ref().is_some_and(|release| release.version == facts.version),
            Goal::Idle | Goal::Staged | Goal::Committed => false,
        };
        same_grant && same_release && desired.disruption_begun
    });
    if granted {
        return None;
    }
    let mut effects = Vec::new();
    if matches!(facts.booted_slot().entry, Entry::Bad { .. }) {
        effects.push(Effect::Restore(facts.booted));
    }
    effects.push(Effect::Disarm(target_of(armed, journal)));
    let mut next = next_journal(journal);
    next.armed = None;
    effects.push(Effect::Persist(next));
    short(effects)
}

fn staged(state: &mut State, facts: &Facts, now: Now, desired: &Desired, release: &ReleaseRef) -> Plan {
    if runs(state, facts, release) {
        return None;
    }
    if let Some(known) = state.ready(facts).filter(|known| known.digest == release.digest) {
        let target = ReleaseTarget::known(facts.inactive(), known);
        // The node is being drained: read the slot again now, so that arming need not wait for it.
        if desired.disruption_begun && !read_back_lately(state, &target, now) {
            return Some((Work::Verify, vec![Effect::Verify { target, quick: false }]));
        }
        return None;
    }
    bring(state, facts, now, release, desired.pack_fallback)
}

/// Brings a release into the inactive slot, if that may be.
pub(super) fn bring(state: &mut State, facts: &Facts, now: Now, release: &ReleaseRef, fallback: PackFallback) -> Plan {
    let journal = state.journal.clone()?;
    if state.is_trial(facts) {
        let message = format!(
            "{} runs as a trial: the other slot is the way back and is not overwritten before a commit",
            facts.version
        );
        refuse(state, now, NodeError::Unsuitable, message);
        return None;
    }
    let Some(resolved) = state.resolved.clone().filter(|resolved| resolved.digest == release.digest) else {
        state.resolved = None;
        return Some((Work::Resolve, vec![Effect::Resolve(query(&journal, facts, release))]));
    };
    let manifest = resolved.manifest;
    if manifest.version != release.version {
        let message =
            format!("the manifest {} is of {}, asked was {}", release.digest, manifest.version, release.version);
        refuse(state, now, NodeError::Trust, message);
        return None;
    }
    if let Err(refusal) = manifest.accept_for(&facts.product, facts.architecture) {
        refuse(state, now, NodeError::Unsuitable, refusal.to_string());
        return None;
    }
    let known = KnownRelease {
        root_hash: manifest.verity.root_hash.clone(),
        version: manifest.version.clone(),
        digest: release.digest.clone(),
        uki_digest: manifest.uki.digest.clone(),
        uki_size: manifest.uki.size,
        verified_at: Some(now.wall),
    };
    let target = ReleaseTarget::known(facts.inactive(), &known);
    if let Err((category, message)) = fits(state.config.memory_limit, facts, &manifest, &known) {
        refuse(state, now, category, message);
        return None;
    }
    let mut next = next_journal(&journal);
    next.remember(known.clone());
    let slot = target.slot;
    let damaged = state.damaged.as_ref().is_some_and(|(at, root)| *at == slot && *root == known.root_hash);
    let mut effects = Vec::new();
    if facts.inactive_slot().content.root_hash() == Some(&known.root_hash) && !damaged {
        // The slot says that it is whole already: believe it after reading it.
        if !uki_is_there(facts, &known) {
            effects.push(Effect::StageUki(target.clone()));
        }
        effects.push(Effect::ReadBack(target));
    } else {
        effects.extend([
            Effect::RetireEntry(slot),
            Effect::MarkWriting(target.clone()),
            Effect::WriteSlot { target: target.clone(), fallback, from_running: state.running_changed.is_none() },
            Effect::StageUki(target.clone()),
            Effect::ReadBack(target.clone()),
            Effect::Seal(target),
        ]);
        state.damaged = None;
    }
    effects.push(Effect::Persist(next));
    Some((Work::Stage, effects))
}

fn query(journal: &Journal, facts: &Facts, release: &ReleaseRef) -> ReleaseQuery {
    let other = match &facts.inactive_slot().content {
        SlotContent::Release { version, root_hash } => {
            let verified = journal.known(root_hash).is_some_and(|known| known.verified_at.is_some());
            // A permanent entry means that it once ran and was committed here, or that an installer put it there.
            let once_good = facts.inactive_slot().entry == Entry::Good;
            (verified || once_good).then(|| (version.clone(), root_hash.clone()))
        }
        _ => None,
    };
    ReleaseQuery {
        repository: release.repository.clone(),
        channel: release.channel.clone(),
        version: release.version.clone(),
        digest: release.digest.clone(),
        product: facts.product.clone(),
        architecture: facts.architecture,
        booted: Some((facts.version.clone(), facts.root_hash.clone())),
        other,
    }
}

/// Bytes of an image for each byte of its blocks' digests: 32 for 4096.
const DIGESTS: u64 = 128;

/// Room is checked before the first write.
fn fits(
    memory_limit: Option<u64>,
    facts: &Facts,
    manifest: &bascule_image::Manifest,
    known: &KnownRelease,
) -> Result<(), (NodeError, String)> {
    // While a slot is written or read back, the digests of all its blocks are in memory, next to everything else.
    let digests = manifest.image.size / DIGESTS;
    if let Some(limit) = memory_limit.filter(|limit| digests > limit / 2) {
        const MIB: u64 = 1 << 20;
        let message = format!(
            "the image of {} has {} MiB and needs {} MiB of memory for its digests; the agent may use {} MiB, which is enough \
             for images of up to {} MiB: raise its limit (MemoryMax= of the unit, limits.memory of the pod) to {}M",
            manifest.version,
            manifest.image.size.div_ceil(MIB),
            digests.div_ceil(MIB),
            limit / MIB,
            limit / 2 * DIGESTS / MIB,
            (digests * 2).div_ceil(MIB)
        );
        return Err((NodeError::Unsuitable, message));
    }
    let slot = facts.inactive_slot();
    let parts =
        [("image", manifest.image.size, &slot.data), ("verity tree", manifest.verity.hash_tree_size, &slot.verity)];
    for (what, needed, partition) in parts {
        if needed > partition.extent.length {
            let message = format!(
                "the {what} of {} needs {needed} bytes, partition {} has {}",
                manifest.version, partition.number, partition.extent.length
            );
            return Err((NodeError::Space, message));
        }
    }
    let boot = &facts.boot;
    let room = boot.space.free.saturating_add(boot.reclaimable);
    if !uki_is_there(facts, known) && known.uki_size.saturating_add(BOOT_MARGIN) > room {
        let message = format!(
            "the boot image of {} needs {} bytes and {BOOT_MARGIN} to spare; the boot partition has {room} free: remove \
             what does not belong there",
            manifest.version, known.uki_size
        );
        return Err((NodeError::Space, message));
    }
    Ok(())
}

fn read_back_lately(state: &State, target: &ReleaseTarget, now: Now) -> bool {
    state.verified.as_ref().is_some_and(|(slot, root_hash, at)| {
        *slot == target.slot
            && *root_hash == target.root_hash
            && now.since_boot.saturating_sub(*at) < state.config.reverify_after
    })
}

fn booted(state: &mut State, facts: &Facts, now: Now, desired: &Desired, release: &ReleaseRef) -> Plan {
    if runs(state, facts, release) {
        return None;
    }
    let Some(known) = state.ready(facts).filter(|known| known.digest == release.digest).cloned() else {
        return bring(state, facts, now, release, desired.pack_fallback);
    };
    let target = ReleaseTarget::known(facts.inactive(), &known);
    arm_granted(state, facts, now, desired, target)
}

/// Arms with the operator's grant, or says what is wrong with it.
fn arm_granted(state: &mut State, facts: &Facts, now: Now, desired: &Desired, target: ReleaseTarget) -> Plan {
    let journal = state.journal.clone()?;
    // A grant without a disruption is only the counter that is left of an earlier one.
    let Some(grant) = desired.grant.as_ref().filter(|_| desired.disruption_begun) else {
        refuse(state, now, NodeError::Grant, "there is no grant: nothing is armed without one".to_owned());
        return None;
    };
    if grant.boot_id != facts.boot_id {
        let message = format!(
            "grant {} is for boot {}, this is boot {}: the operator gives another when it has seen this boot",
            grant.generation, grant.boot_id, facts.boot_id
        );
        refuse(state, now, NodeError::Grant, message);
        return None;
    }
    let armed_by_it = journal.armed.as_ref().is_some_and(|armed| {
        armed.generation == grant.generation && armed.boot_id == facts.boot_id && armed.root_hash == target.root_hash
    });
    if journal.last_grant.is_some_and(|last| grant.generation <= last) && !armed_by_it {
        let message = format!(
            "grant {} is spent, the last one used is {}: the cluster's state may come from a backup",
            grant.generation,
            journal.last_grant.unwrap_or_default()
        );
        refuse(state, now, NodeError::Grant, message);
        return None;
    }
    arm(state, facts, now, target, grant.generation)
}

/// Arms and reboots, continuing where a former try ended.
pub(super) fn arm(state: &mut State, facts: &Facts, now: Now, target: ReleaseTarget, generation: i64) -> Plan {
    let journal = state.journal.clone()?;
    if state.counting(facts) == Counting::Broken {
        let message = format!(
            "the boot loader's counting does not work, so a trial would not revert by itself: {}",
            facts.boot.counting_message.as_deref().unwrap_or("it was seen not to count")
        );
        refuse(state, now, NodeError::BootControl, message);
        return None;
    }
    if state.is_trial(facts) {
        let message = format!("{} runs as a trial: commit or revert it first", facts.version);
        refuse(state, now, NodeError::Unsuitable, message);
        return None;
    }
    let reboot = Effect::Reboot(Why::Boot { from: facts.version.clone(), to: target.version.clone() });
    let set_aside = facts.boot.running_sorts_first;
    let armed_already = journal.armed.as_ref().is_some_and(|armed| {
        armed.boot_id == facts.boot_id && armed.generation == generation && armed.root_hash == target.root_hash
    });
    let entry_stands = matches!(facts.inactive_slot().entry, Entry::Trying { .. });
    let running_is_aside = matches!(facts.booted_slot().entry, Entry::Bad { .. });
    if armed_already && entry_stands && (!set_aside || running_is_aside) {
        if state.reboot_asked.is_some_and(|at| now.since_boot.saturating_sub(at) < state.config.reboot_retry) {
            return None;
        }
        state.reboot_asked = Some(now.since_boot);
        return short(vec![reboot]);
    }
    let mut next = next_journal(&journal);
    if generation > 0 {
        next.last_grant = Some(generation);
    }
    next.armed = Some(Armed {
        slot: target.slot,
        version: target.version.clone(),
        root_hash: target.root_hash.clone(),
        digest: target.digest.clone(),
        boot_id: facts.boot_id.clone(),
        generation,
        tries: state.config.tries,
        at: now.wall,
        given_up: None,
        committing: false,
    });
    let quick = read_back_lately(state, &target, now);
    state.reboot_asked = None;
    short(vec![
        Effect::Verify { target: target.clone(), quick },
        Effect::Persist(next),
        Effect::Arm { target, tries: state.config.tries, set_aside_running: set_aside },
    ])
}

fn committed(state: &mut State, facts: &Facts, now: Now, release: &ReleaseRef) -> Plan {
    if !runs(state, facts, release) {
        let message = format!("{} is to be committed, but {} runs", release.version, facts.version);
        refuse(state, now, NodeError::Unsuitable, message);
        return None;
    }
    commit(state, facts, now)
}

/// Makes the running trial permanent.
pub(super) fn commit(state: &State, facts: &Facts, now: Now) -> Plan {
    let journal = state.journal.as_ref()?;
    let recorded = journal.committed.as_ref().is_some_and(|committed| committed.root_hash == facts.root_hash);
    if !state.is_trial(facts) && recorded {
        return None;
    }
    let mut next = next_journal(journal);
    next.armed = journal.armed.clone().filter(|armed| armed.boot_id == facts.boot_id);
    if !recorded {
        next.committed = Some(Committed { root_hash: facts.root_hash.clone(), at: now.wall });
    }
    let mut effects = Vec::new();
    if let Some(armed) = state.trial_record(facts).filter(|armed| !armed.committing) {
        // Before the counter goes: who finds an entry without one must be able to tell a commit from a loss.
        let begun = Some(Armed { committing: true, ..armed.clone() });
        effects.push(Effect::Persist(Journal { armed: begun, ..next_journal(journal) }));
        next.revision += 1;
    }
    if state.is_trial(facts) {
        effects.push(Effect::Bless { slot: facts.booted, root_hash: facts.root_hash.clone() });
        if !facts.boot.running_sorts_first && facts.inactive_slot().entry == Entry::Good {
            effects.push(Effect::SetAside(facts.inactive()));
        }
        effects.push(Effect::TellGuard { boot_id: facts.boot_id.clone() });
    }
    effects.push(Effect::Persist(next));
    short(effects)
}

/// Leaves `release` for what the other slot holds. Only the version counts: it may be known to nobody else any more.
fn reverted(state: &mut State, facts: &Facts, now: Now, desired: &Desired, release: &ReleaseRef) -> Plan {
    if facts.version != release.version {
        return None;
    }
    if state.is_trial(facts) {
        return give_up(state, facts, now, "the operator gave the trial up".to_owned());
    }
    match way_back(state, facts) {
        Ok(target) => arm_granted(state, facts, now, desired, target),
        Err(message) => {
            refuse(state, now, NodeError::Unsuitable, message);
            None
        }
    }
}

/// What the other slot holds, to be armed as it is.
pub(super) fn way_back(state: &State, facts: &Facts) -> Result<ReleaseTarget, String> {
    let slot = facts.inactive_slot();
    let SlotContent::Release { version, root_hash } = &slot.content else {
        return Err(format!("slot {} holds no whole release to go back to", facts.inactive()));
    };
    match state.journal.as_ref().and_then(|journal| journal.known(root_hash)) {
        Some(known) => Ok(ReleaseTarget::known(facts.inactive(), known)),
        None if slot.entry == Entry::None => {
            Err(format!("slot {} holds {version}, but its boot image is gone", facts.inactive()))
        }
        None => Ok(ReleaseTarget {
            slot: facts.inactive(),
            version: version.clone(),
            root_hash: root_hash.clone(),
            digest: None,
            uki: None,
        }),
    }
}

/// Leaves a trial: back to the other slot at once.
pub(super) fn give_up(state: &mut State, facts: &Facts, now: Now, reason: String) -> Plan {
    let journal = state.journal.clone()?;
    let other = facts.inactive_slot();
    if other.content.root_hash().is_none() || other.entry == Entry::None {
        let message = format!("slot {} holds nothing that could be booted instead", facts.inactive());
        refuse(state, now, NodeError::BootControl, message);
        return None;
    }
    let reboot = Effect::Reboot(Why::Revert { from: facts.version.clone(), reason: reason.clone() });
    let noted = journal.armed.as_ref().is_some_and(|armed| armed.given_up.is_some());
    let marked = matches!(facts.booted_slot().entry, Entry::Bad { .. }) && other.entry == Entry::Good;
    if noted && marked {
        if state.reboot_asked.is_some_and(|at| now.since_boot.saturating_sub(at) < state.config.reboot_retry) {
            return None;
        }
        state.reboot_asked = Some(now.since_boot);
        return short(vec![reboot]);
    }
    let mut next = next_journal(&journal);
    let record = journal.armed.clone().filter(|armed| armed.root_hash == facts.root_hash);
    next.armed = Some(Armed {
        given_up: record.as_ref().and_then(|record| record.given_up.clone()).or(Some(reason)),
        committing: false,
        ..record.unwrap_or_else(|| Armed {
            slot: facts.booted,
            version: facts.version.clone(),
            root_hash: facts.root_hash.clone(),
            digest: journal.known(&facts.root_hash).map(|known| known.digest.clone()),
            // The boot that armed it is not known; any other than this one says that it is a trial.
            boot_id: String::new(),
            generation: 0,
            tries: state.config.tries,
            at: now.wall,
            given_up: None,
            committing: false,
        })
    });
    let mut effects = vec![Effect::Persist(next)];
    if other.entry != Entry::Good {
        effects.push(Effect::Restore(facts.inactive()));
    }
    effects.push(Effect::MarkBad(facts.booted));
    state.reboot_asked = None;
    short(effects)
}
