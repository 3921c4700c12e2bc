//! What follows from the operator's word, in the words of the protocol ([`crate::protocol`]).

use bascule_api::{Counting, FailedRelease, Goal, NodeError, PackFallback, ReleaseRef};
use bascule_image::release::manifest::BootLoader;

use super::housekeeping::{Plan, next_journal, planned, short, target_of};
use super::protocol::{HostProtocol as _, NoPlan, host};
use super::state::Work;
use super::state_version;
use super::step::{no_plan, refuse};
use super::{
    Armed, Committed, Desired, Effect, Facts, Hook, Journal, KnownRelease, ManualCommand, Now, ReleaseQuery,
    ReleaseTarget, State, Why,
};

/// The release that somebody wants beside the running one.
pub(super) fn wanted_release(state: &State) -> Option<&ReleaseRef> {
    if let Some(manual) = &state.manual {
        return match &manual.command {
            ManualCommand::Stage(release) => Some(release),
            ManualCommand::Commit | ManualCommand::Revert { .. } => None,
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
        Work::Arm => {
            let told = state.desired.as_ref().filter(|desired| desired.disruption_begun && desired.grant.is_some());
            state.manual.is_some() || told.is_some_and(|desired| matches!(desired.goal, Goal::Booted | Goal::Reverted))
        }
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
    match disarm(state, facts, now) {
        Some(plan) => return Some(plan),
        // What has to be taken back could not be seen.
        None if state.facts.is_none() => return None,
        None => {}
    }
    let desired = state.desired.clone()?;
    if let Some(asked) = desired.retry
        && let Some(journal) = state.journal.as_ref().filter(|journal| journal.retried != Some(asked))
    {
        let mut next = next_journal(journal);
        next.try_again(|_| true);
        next.retried = Some(asked);
        return short(vec![Effect::Persist(Box::new(next))]);
    }
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
        Goal::Idle => clean(state, facts),
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

/// What nobody wants any more is not left half done.
fn clean(state: &State, facts: &Facts) -> Plan {
    let effects = host(state, facts).discard();
    (!effects.is_empty()).then_some((Work::Short, effects))
}

/// Whether the running release is the one that is named.
pub(super) fn runs(state: &State, facts: &Facts, release: &ReleaseRef) -> bool {
    let known = state.journal.as_ref().and_then(|journal| journal.known(&facts.root_hash));
    facts.version == release.version && known.is_none_or(|known| known.digest == release.digest)
}

/// What was armed in this boot and is not granted any more is taken back.
fn disarm(state: &mut State, facts: &Facts, now: Now) -> Plan {
    let journal = state.journal.clone()?;
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
    let disarming = host(state, facts).disarm(&target_of(armed, &journal));
    let mut effects = planned(state, now, disarming)?;
    let mut next = next_journal(&journal);
    next.armed = None;
    effects.push(Effect::Persist(Box::new(next)));
    short(effects)
}

fn staged(state: &mut State, facts: &Facts, now: Now, desired: &Desired, release: &ReleaseRef) -> Plan {
    if runs(state, facts, release) {
        return None;
    }
    let host = host(state, facts);
    if let Some(known) = host.staged().filter(|known| known.digest == release.digest) {
        let target = host.target(known);
        // The node is being drained: read what is staged again now, so that arming need not wait for it.
        if desired.disruption_begun && !read_back_lately(state, &target, now) {
            return Some((Work::Verify, vec![host.check(&target, false)]));
        }
        return None;
    }
    bring(state, facts, now, release, desired.pack_fallback)
}

/// Brings a release beside the running one, if that may be.
pub(super) fn bring(state: &mut State, facts: &Facts, now: Now, release: &ReleaseRef, fallback: PackFallback) -> Plan {
    let journal = state.journal.clone()?;
    if state.is_trial(facts) {
        let message = format!(
            "{} runs as a trial: the other release is the way back and is not overwritten before a commit",
            facts.version
        );
        refuse(state, now, NodeError::Unsuitable, message);
        return None;
    }
    let Some(resolved) = state.resolved.clone().filter(|resolved| resolved.digest == release.digest) else {
        state.resolved = None;
        return Some((Work::Resolve, vec![Effect::Resolve(query(state, facts, release))]));
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
    if known.root_hash == facts.root_hash {
        return published_anew(state, facts, now, known, manifest.boot_loader.as_ref());
    }
    let same = journal.known(&known.root_hash).filter(|before| before.uki_digest == known.uki_digest);
    let failed = same.and_then(|before| journal.failed(&before.digest)).filter(|_| state.manual.is_none());
    if let Some(failed) = failed {
        // The same image and boot image, under another manifest.
        let message = failed_here(failed);
        refuse(state, now, NodeError::TrialFailed, message);
        return None;
    }
    let staging = match host(state, facts).refuses(&manifest, &known) {
        Some((category, message)) => {
            refuse(state, now, category, message);
            return None;
        }
        None => host(state, facts).stage(&known, fallback),
    };
    let mut effects = planned(state, now, staging)?;
    // Where it was damaged, it is written afresh.
    state.damaged = None;
    let mut next = next_journal(&journal);
    next.state.note(&known.root_hash, manifest.state_version, &facts.root_hash);
    next.boot_loaders.note(&known.root_hash, manifest.boot_loader.as_ref(), &facts.root_hash);
    next.remember(known);
    effects.push(Effect::Persist(Box::new(next)));
    Some((Work::Stage, effects))
}

/// What runs, under another manifest. A release is known by its root hash: there is nothing to bring, and a second slot with it would
/// have the running one's PARTUUIDs.
fn published_anew(
    state: &mut State,
    facts: &Facts,
    now: Now,
    known: KnownRelease,
    boot_loader: Option<&BootLoader>,
) -> Plan {
    let journal = state.journal.clone()?;
    let before = journal.known(&known.root_hash).cloned();
    let differs = if known.version != facts.version {
        Some("version")
    } else {
        before.as_ref().filter(|before| before.uki_digest != known.uki_digest).map(|_| "boot image")
    };
    if let Some(what) = differs {
        let message = format!(
            "the manifest {} names the root hash that runs as {}, and another {what}: publish that as a release with an image \
             of its own",
            known.digest, facts.version
        );
        refuse(state, now, NodeError::Unsuitable, message);
        return None;
    }
    let mut next = next_journal(&journal);
    // It may have been brought by mistake, or forgotten: the image is the same either way.
    next.boot_loaders.note(&facts.root_hash, boot_loader, &facts.root_hash);
    next.remember(KnownRelease { verified_at: before.and_then(|before| before.verified_at), ..known });
    short(vec![Effect::Persist(Box::new(next))])
}

fn query(state: &State, facts: &Facts, release: &ReleaseRef) -> ReleaseQuery {
    ReleaseQuery {
        repository: release.repository.clone(),
        channel: release.channel.clone(),
        version: release.version.clone(),
        digest: release.digest.clone(),
        product: facts.product.clone(),
        architecture: facts.architecture,
        booted: Some((facts.version.clone(), facts.root_hash.clone())),
        other: host(state, facts).held(),
    }
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
    let staged = host(state, facts).staged().filter(|known| known.digest == release.digest).cloned();
    let Some(known) = staged else {
        return bring(state, facts, now, release, desired.pack_fallback);
    };
    let target = host(state, facts).target(&known);
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
    let asked = Asked { generation: grant.generation, accept_state: grant.accept_state };
    arm(state, facts, now, target, asked)
}

/// By whose word a release is armed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// The generation of the grant; 0 when a person asks on the node.
    pub(super) generation: i64,
    /// Whether a person accepts that it is made for an older state of the machine.
    pub(super) accept_state: bool,
}

/// Arms and reboots, continuing where a former try ended.
pub(super) fn arm(state: &mut State, facts: &Facts, now: Now, target: ReleaseTarget, asked: Asked) -> Plan {
    let generation = asked.generation;
    let journal = state.journal.clone()?;
    if let Some(message) = state_version::refusal(&journal, &target).filter(|_| !asked.accept_state) {
        refuse(state, now, NodeError::StateVersion, message);
        return None;
    }
    let unseen = host(state, facts).unseen();
    if let Some(why) = unseen {
        no_plan(state, now, NoPlan::Unseen(why));
        return None;
    }
    if let (Counting::Broken, why) = state.counting_and_why(facts) {
        let message = format!("a trial would not end by itself: {}", why.unwrap_or_default());
        refuse(state, now, NodeError::BootControl, message);
        return None;
    }
    if state.is_trial(facts) {
        let message = format!("{} runs as a trial: commit or revert it first", facts.version);
        refuse(state, now, NodeError::Unsuitable, message);
        return None;
    }
    let reboot = Effect::Reboot(Why::Boot { from: facts.version.clone(), to: target.version.clone() });
    let armed_already = journal.armed.as_ref().is_some_and(|armed| {
        armed.boot_id == facts.boot_id && armed.generation == generation && armed.root_hash == target.root_hash
    });
    if armed_already && host(state, facts).is_armed() {
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
    let arming = host(state, facts).arm(&target, state.config.tries, quick);
    let arming = planned(state, now, arming)?;
    if let Some(placed) = arming.placed {
        next.placed.retain(|record| record.root_hash != placed.root_hash);
        next.placed.push(placed);
    }
    state.reboot_asked = None;
    let hook = Effect::RunHook { hook: Hook::BeforeArm, version: target.version.clone() };
    let mut effects = vec![arming.check, hook, Effect::Persist(Box::new(next))];
    effects.extend(arming.effects);
    Some((Work::Arm, effects))
}

fn committed(state: &mut State, facts: &Facts, now: Now, release: &ReleaseRef) -> Plan {
    if !is_meant(facts, release) {
        let message = format!("{} is to be committed, but {} runs", release.version, facts.version);
        refuse(state, now, NodeError::Unsuitable, message);
        return None;
    }
    commit(state, facts, now)
}

/// Whether a commit means what runs. Its version says so: the digest of a way back's manifest is not reported by anybody, so that it is
/// named by what the channel offers under that version now, or by its root hash.
fn is_meant(facts: &Facts, release: &ReleaseRef) -> bool {
    facts.version == release.version
}

/// The commit of a trial that runs, if somebody asks for it: it goes before everything else.
pub(super) fn commit_of_a_trial(state: &mut State, facts: &Facts, now: Now) -> Plan {
    if !state.is_trial(facts) {
        return None;
    }
    let asked = match (&state.manual, &state.desired) {
        // A person's word is written down first.
        (Some(_), _) | (None, None) => false,
        (None, Some(desired)) => {
            let release = desired.release.as_ref().filter(|_| desired.goal == Goal::Committed);
            release.is_some_and(|release| is_meant(facts, release))
        }
    };
    if asked { commit(state, facts, now) } else { None }
}

/// Makes the running trial permanent.
pub(super) fn commit(state: &mut State, facts: &Facts, now: Now) -> Plan {
    let journal = &state.journal.clone()?;
    let recorded = journal.committed.as_ref().is_some_and(|committed| committed.root_hash == facts.root_hash);
    if !state.is_trial(facts) && recorded {
        return None;
    }
    let mut next = next_journal(journal);
    next.armed = journal.armed.clone().filter(|armed| armed.boot_id == facts.boot_id);
    if !recorded {
        next.committed = Some(Committed { root_hash: facts.root_hash.clone(), at: now.wall });
    }
    let declared = state_version::of_running(journal, facts);
    match state.trial_record(facts) {
        Some(_) => {
            next.state.use_with(declared);
            next.after_commit = Some(facts.root_hash.clone());
        }
        None => next.state.use_at_least(declared),
    }
    let mut effects = Vec::new();
    if let Some(armed) = state.trial_record(facts).filter(|armed| !armed.committing) {
        // Before the counter goes: who finds an entry without one must be able to tell a commit from a loss.
        let begun = Some(Armed { committing: true, ..armed.clone() });
        effects.push(Effect::Persist(Box::new(Journal { armed: begun, ..next_journal(journal) })));
        next.revision += 1;
    }
    if state.is_trial(facts) {
        let committing = host(state, facts).commit();
        effects.extend(planned(state, now, committing)?);
        effects.push(Effect::TellGuard { boot_id: facts.boot_id.clone() });
    }
    effects.push(Effect::Persist(Box::new(next)));
    short(effects)
}

/// Leaves `release` for the other one. Only the version counts: it may be known to nobody else any more.
fn reverted(state: &mut State, facts: &Facts, now: Now, desired: &Desired, release: &ReleaseRef) -> Plan {
    if facts.version != release.version {
        return None;
    }
    if state.is_trial(facts) {
        return give_up(state, facts, now, "the operator gave the trial up".to_owned());
    }
    let other = host(state, facts).other();
    match other {
        Ok(target) => arm_granted(state, facts, now, desired, target),
        Err(message) => {
            refuse(state, now, NodeError::Unsuitable, message);
            None
        }
    }
}

/// Leaves a trial: back to the other release at once.
pub(super) fn give_up(state: &mut State, facts: &Facts, now: Now, reason: String) -> Plan {
    let journal = state.journal.clone()?;
    let reverting = host(state, facts).revert();
    let reverting = planned(state, now, reverting)?;
    let reboot = Effect::Reboot(Why::Revert { from: facts.version.clone(), reason: reason.clone() });
    let noted = journal.armed.as_ref().is_some_and(|armed| armed.given_up.is_some());
    if noted && reverting.is_empty() {
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
    let mut effects = vec![Effect::Persist(Box::new(next))];
    effects.extend(reverting);
    state.reboot_asked = None;
    short(effects)
}
