//! Which slot boots next: disarm, commit, revert. Arming is [`plan::arm`].

use bascule_api::BootControlBackend;

use crate::boot::plan;
use crate::boot::{BootPartition, BootPurpose};
use crate::protocol::NoPlan;
use crate::{Effect, Entry, Facts, ReleaseTarget};

/// Takes back what was armed and not booted, and first brings back what was set aside for it.
pub(super) fn disarm(facts: &Facts, target: &ReleaseTarget) -> Result<Vec<Effect>, NoPlan> {
    let mut effects = Vec::new();
    if matches!(facts.booted_slot().entry, Entry::Bad { .. }) {
        effects.push(Effect::Boot(plan::permanent(facts, facts.booted, BootPurpose::Restore)?));
    }
    effects.push(Effect::Boot(plan::disarm(facts, target)?));
    Ok(effects)
}

/// Makes the running slot's entry permanent.
pub(super) fn commit(facts: &Facts) -> Result<Vec<Effect>, NoPlan> {
    let mut effects = vec![Effect::Boot(plan::permanent(facts, facts.booted, BootPurpose::Commit)?)];
    if !facts.boot.running_sorts_first && facts.inactive_slot().entry == Entry::Good {
        // What is not the agent's stays where it is; the boot loader's order then decides as ever.
        effects.extend(plan::set_aside(facts, facts.inactive()).ok().map(Effect::Boot));
    }
    Ok(effects)
}

/// Makes the other slot's entry permanent and the running one's the last choice, in this order: at no moment there is neither.
pub(super) fn revert(facts: &Facts) -> Result<Vec<Effect>, NoPlan> {
    let other = facts.inactive_slot();
    if other.entry == Entry::Unseen {
        return Err(NoPlan::Unseen(plan::unread(facts)));
    }
    if other.content.root_hash().is_none() || other.entry == Entry::None {
        return Err(NoPlan::Refused(format!("slot {} holds nothing that could be booted instead", facts.inactive())));
    }
    if matches!(facts.booted_slot().entry, Entry::Bad { .. }) && other.entry == Entry::Good {
        return Ok(Vec::new());
    }
    let mut effects = Vec::new();
    if other.entry != Entry::Good {
        effects.push(Effect::Boot(plan::permanent(facts, facts.inactive(), BootPurpose::Restore)?));
    }
    effects.push(Effect::Boot(plan::mark_bad(facts, facts.booted)?));
    Ok(effects)
}

/// Where the boot image of a target lies.
pub(super) fn image_of(facts: &Facts, target: &ReleaseTarget) -> Option<(BootPartition, String)> {
    let entry = facts.boot.view.slots.get(target.slot).images.first();
    let goes_first = entry.is_none() || facts.boot.backend == BootControlBackend::GptPrio;
    let file = plan::waiting(facts, target).filter(|_| goes_first).or(entry).or_else(|| {
        let name = plan::slot_file(target.slot);
        facts.boot.inventory.files.iter().find(|file| file.name.eq_ignore_ascii_case(name))
    });
    file.map(|file| (file.partition, file.name.clone()))
}
