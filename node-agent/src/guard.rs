//! The dead man: from the first second of a boot it waits for the commit of a running trial, and takes the machine back
//! when that does not come. It needs neither network nor API server, neither kubelet nor agent, and the system bus only
//! to go down politely.
//!
//! Time is counted from the start of the boot by a clock that nobody can set.

use std::time::Duration;

use bascule_api::RootHash;
use bascule_image::command_line::CommandLine;

use crate::boot::{self, DigestCache};
use crate::core::boot::{steps_back, unread};
use crate::core::{Config, Entry, Facts, GuardReport, JOURNAL_FILE, Journal, JournalError, MAX_JOURNAL, State};
use crate::engine::{COMMIT_FILE, CommitNote, in_one_line};
use crate::host::Host;
use crate::observe::{self, LookSettings};

/// How often the guard looks for the commit while a trial runs.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long logind may take to bring the machine down before the kernel is told to.
pub const POLITE: Duration = Duration::from_secs(60);
/// How long after the start of the boot the state folder may come to be mounted: systemd gives up on a device after 90 s.
const MOUNTS: Duration = Duration::from_secs(120);
/// How long after the deadline it goes on looking where the last look saw nothing: what failed once may be seen the next time.
const LAST_LOOKS: Duration = Duration::from_secs(10);
/// Longest commit note in bytes.
const MAX_NOTE: u64 = 4 << 10;

/// What the guard knows at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrialView {
    /// The running release is permanent, or there is nothing to go back to.
    NoTrial(&'static str),
    /// A trial runs.
    Trial {
        /// Its root hash.
        root_hash: RootHash,
    },
    /// The entry has no counter, and there is no journal that could tell whether it lost one; or there is no entry. State and
    /// boot partitions may be mounted late.
    Unproven,
    /// The boot loader says that it booted an entry that counts, or the journal that this release was armed; more can't be
    /// seen (the boot partition or the disk does not answer).
    TrialUnseen(String),
    /// Nothing can be seen.
    Blind(String),
}

/// What the guard does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its work is done.
    End(&'static str),
    /// Look again after this time.
    Wait(Duration),
    /// Go back to the other slot.
    Revert {
        /// Why.
        reason: String,
    },
    /// Reboot without changing anything: the boot loader's count does the rest.
    Reboot {
        /// Why.
        reason: String,
    },
}

/// Decides. Pure.
pub fn decide(view: &TrialView, committed: bool, since_boot: Duration, deadline: Duration) -> Verdict {
    if committed {
        return Verdict::End("the trial was committed");
    }
    let over = since_boot >= deadline;
    let wait = LOOK_EVERY.min(deadline.saturating_sub(since_boot)).max(Duration::from_millis(10));
    let late = || format!("no commit within {} s of the boot", deadline.as_secs());
    match view {
        TrialView::NoTrial(why) => Verdict::End(why),
        TrialView::Unproven if since_boot >= MOUNTS.min(deadline) => {
            Verdict::End("the running release has no trial on record")
        }
        TrialView::Unproven => Verdict::Wait(wait),
        TrialView::Trial { .. } if over => Verdict::Revert { reason: late() },
        TrialView::TrialUnseen(why) if over => Verdict::Reboot { reason: format!("{}; {why}", late()) },
        // A machine that is good must not be rebooted for ever because its disk can't be read.
        TrialView::Blind(_) if over => Verdict::End("whether this is a trial could not be seen until the deadline"),
        TrialView::Trial { .. } | TrialView::TrialUnseen(_) | TrialView::Blind(_) => Verdict::Wait(wait),
    }
}

/// What was seen in this boot: a look that fails takes nothing of it away.
#[derive(Debug, Default)]
struct Seen(Option<TrialView>);

impl Seen {
    /// What to go by after a look, and whether that look saw it itself.
    fn take_in(&mut self, view: TrialView) -> (TrialView, bool) {
        if matches!((&view, &self.0), (TrialView::Trial { .. }, _) | (TrialView::TrialUnseen(_), None)) {
            self.0 = Some(view.clone());
        }
        match (&view, &self.0) {
            (TrialView::Blind(_) | TrialView::Unproven, Some(before)) => (before.clone(), false),
            (TrialView::Blind(_), None) => (view, false),
            _ => (view, true),
        }
    }
}

/// How the guard's work ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to guard, or committed.
    Ended(&'static str),
    /// The machine was told to go down.
    Rebooting(String),
}

/// What the guard needs besides the host.
pub trait Machinery {
    /// Waits for about this long; may return early.
    fn wait(&self, time: Duration);

    /// Reboots at once, whatever runs (reboot(2)).
    fn reboot_hard(&self);
}

/// Guards this boot. Returns when nothing is left to guard, or when the machine goes down.
pub fn run(host: &Host, look_settings: &LookSettings, deadline: Duration, machinery: &dyn Machinery) -> Outcome {
    // Units are not the guard's business, and asking for them would need the bus.
    let look_settings = LookSettings { units: Vec::new(), ..look_settings.clone() };
    let digests = DigestCache::default();
    let mut told = false;
    let mut seen = Seen::default();
    loop {
        let (view, saw_it) = seen.take_in(look(host, &look_settings, &digests));
        if matches!(view, TrialView::Trial { .. } | TrialView::TrialUnseen(_)) && !told {
            tracing::warn!(deadline_s = deadline.as_secs(), "this boot is a trial");
            told = true;
        }
        let committed = is_committed(host);
        let until = if saw_it { deadline } else { deadline + LAST_LOOKS };
        match decide(&view, committed, host.clock.since_boot(), until) {
            Verdict::End(why) => {
                match &view {
                    TrialView::Blind(reason) => tracing::error!(reason, why, "the guard ends"),
                    _ => tracing::info!(why, "the guard ends"),
                }
                return Outcome::Ended(why);
            }
            Verdict::Wait(time) => machinery.wait(time),
            Verdict::Revert { reason } => {
                tracing::error!(reason, "the trial is reverted");
                revert(host, &look_settings, &digests, &view, &reason);
                return reboot(host, reason, machinery);
            }
            Verdict::Reboot { reason } => {
                tracing::error!(reason, "the trial is left by a reboot");
                return reboot(host, reason, machinery);
            }
        }
    }
}

/// Looks at what runs.
pub fn look(host: &Host, look_settings: &LookSettings, digests: &DigestCache) -> TrialView {
    let facts = match observe::observe_for_guard(host, look_settings, digests) {
        Ok(facts) => facts,
        Err(error) => return unseen(host, in_one_line(&error)),
    };
    judge(host, facts, journal(host))
}

/// What is left to go by where too little was seen.
fn unseen(host: &Host, why: String) -> TrialView {
    match is_said(host) {
        Ok(true) => TrialView::TrialUnseen(why),
        Ok(false) => TrialView::Blind(why),
        Err(more) => TrialView::Blind(format!("{why}; {more}")),
    }
}

/// Whether the boot loader's own word or the journal's is that this is a trial.
///
/// # Errors
/// None says so, and not both could be heard: why.
fn is_said(host: &Host) -> Result<bool, String> {
    let counted = host.firmware.variable("LoaderBootCountPath");
    let counted = counted.map(|path| path.is_some_and(|path| path.iter().any(|byte| *byte != 0)));
    match counted {
        Ok(true) => Ok(true),
        Ok(false) => armed_by_record(host),
        Err(error) => match armed_by_record(host) {
            Ok(true) => Ok(true),
            _ => Err(format!("the EFI variable LoaderBootCountPath can't be read: {error}")),
        },
    }
}

fn judge(host: &Host, mut facts: Facts, journal: Recorded) -> TrialView {
    let Recorded { journal, unseen: lost } = journal;
    let known = journal.is_some();
    let journal = journal.unwrap_or_default();
    facts.judge(&journal, None);
    let state = State { journal: Some(journal), ..State::new(Config::default()) };
    // Nothing is final that rests on what nobody could read.
    if facts.booted_slot().entry == Entry::Unseen {
        return unseen(host, unread(&facts));
    }
    // What runs was booted by something. Where that is not on the partitions that are mounted, it may be on one that will be.
    if facts.booted_slot().entry == Entry::None {
        let why = "what runs is booted by no image on the boot partitions that are mounted".to_owned();
        return match is_said(host) {
            Ok(true) => TrialView::TrialUnseen(why),
            // Everything was heard that there is to be heard now.
            Ok(false) if facts.boot.saw_everything() => TrialView::Unproven,
            Ok(false) => TrialView::Blind(unread(&facts)),
            Err(more) => TrialView::Blind(format!("{why}; {more}")),
        };
    }
    if !state.is_trial(&facts) {
        let good = facts.booted_slot().entry == Entry::Good && facts.inactive_slot().content.root_hash().is_some();
        // Whether the entry lost its counter is on record, and nobody could look.
        if let Some(why) = lost.filter(|_| good) {
            return TrialView::Blind(why);
        }
        let certain = known || !good;
        return if certain { TrialView::NoTrial("the running release is not a trial") } else { TrialView::Unproven };
    }
    let other = facts.inactive_slot();
    if other.content.root_hash().is_none() || other.entry == Entry::None {
        return TrialView::NoTrial("the other slot holds nothing to go back to");
    }
    if other.entry == Entry::Unseen {
        return TrialView::TrialUnseen(unread(&facts));
    }
    TrialView::Trial { root_hash: facts.root_hash.clone() }
}

/// What is on record. One that can't be read, or not be understood, is not one that is not there.
#[derive(Default)]
struct Recorded {
    /// What there is to go by. Of a newer agent's journal that is what this one knows: it says that this is a trial, and can't say
    /// that it is none.
    journal: Option<Journal>,
    /// Why that may not be all.
    unseen: Option<String>,
}

fn journal(host: &Host) -> Recorded {
    let unseen = |why: String| Recorded { unseen: Some(why), ..Recorded::default() };
    let bytes = match host.state.read(JOURNAL_FILE, MAX_JOURNAL) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Recorded::default(),
        Err(error) => return unseen(format!("the journal can't be read: {error}")),
    };
    match Journal::parse(&bytes) {
        Ok(journal) => Recorded { journal: Some(journal), unseen: None },
        Err(error) => {
            let why = unseen(in_one_line(&error));
            match error {
                JournalError::Newer { rest, .. } => Recorded { journal: Some(*rest), ..why },
                JournalError::Damaged(_) => why,
            }
        }
    }
}

/// Whether the journal says that what runs was armed in an earlier boot and that nobody began to commit it. Needs neither
/// disk nor boot partition.
///
/// # Errors
/// It does not say so, and could not be read or understood whole: why.
fn armed_by_record(host: &Host) -> Result<bool, String> {
    let Recorded { journal, unseen } = journal(host);
    if let Some(armed) = journal.and_then(|journal| journal.armed) {
        let boot_id = host.system.boot_id().map_err(|error| format!("the boot ID can't be read: {error}"))?;
        let line = host.system.command_line();
        let line = line.map_err(|error| format!("the kernel's command line can't be read: {error}"))?;
        let runs = CommandLine::from(line).verity_hash().ok().flatten();
        if runs.as_ref() == Some(&armed.root_hash) && armed.boot_id != boot_id && !armed.committing {
            return Ok(true);
        }
    }
    unseen.map_or(Ok(false), Err)
}

fn is_committed(host: &Host) -> bool {
    let note = host.state.read(COMMIT_FILE, MAX_NOTE).ok().flatten();
    let note = note.and_then(|bytes| serde_json::from_slice::<CommitNote>(&bytes).ok());
    let boot_id = host.system.boot_id().ok();
    note.is_some_and(|note| boot_id.as_deref() == Some(note.boot_id.as_str()))
}

/// Makes the boot loader go back. Each part that fails is logged and the next is tried: what the names of the boot
/// entries don't do, the count of tries does over the next boots.
fn revert(host: &Host, look_settings: &LookSettings, digests: &DigestCache, view: &TrialView, reason: &str) {
    let note = |what: &str, error: &dyn std::error::Error| {
        tracing::error!(what, error = in_one_line(error), "the guard goes on without it");
    };
    if let (TrialView::Trial { root_hash }, Ok(boot_id)) = (view, host.system.boot_id()) {
        let report =
            GuardReport { boot_id, root_hash: root_hash.clone(), at: host.clock.now(), reason: reason.to_owned() };
        let written = serde_json::to_vec(&report)
            .map_err(std::io::Error::other)
            .and_then(|bytes| host.state.write(GuardReport::FILE, &bytes));
        if let Err(error) = written {
            note("writing the report", &error);
        }
    }
    let (slots, ..) = match observe::running_slots(host, look_settings) {
        Ok(found) => found,
        Err(error) => return note("looking at the slots", &error),
    };
    let mut facts = match observe::observe_for_guard(host, look_settings, digests) {
        Ok(facts) => facts,
        Err(error) => return note("looking at the boot entries", &error),
    };
    // Where the looks before saw nothing, it may have been committed meanwhile.
    if let TrialView::NoTrial(why) = judge(host, facts.clone(), journal(host)) {
        tracing::error!(why, "nothing is taken back");
        return;
    }
    facts.judge(&journal(host).journal.unwrap_or_default(), None);
    for step in steps_back(&facts) {
        match step {
            Ok(step) => {
                if let Err(error) = boot::apply(host, facts.boot.backend, &slots, &step.changes) {
                    note(step.purpose.words(), &error);
                }
            }
            Err(why) => tracing::error!(why, "the guard goes on without a step"),
        }
    }
}

fn reboot(host: &Host, reason: String, machinery: &dyn Machinery) -> Outcome {
    // Inhibitors are for what can wait. This is what happens when everything else has failed.
    match host.bus.reboot(&format!("Bascule's guard leaves this OS release: {reason}")) {
        Ok(()) => {
            // When the machine goes down, this process goes with it.
            let until = host.clock.since_boot() + POLITE;
            while host.clock.since_boot() < until {
                machinery.wait(POLITE);
            }
            tracing::error!("logind took the reboot and did not do it");
        }
        Err(error) => tracing::error!(error = in_one_line(&error), "logind can't reboot the machine"),
    }
    machinery.reboot_hard();
    Outcome::Rebooting(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(600);

    fn trial() -> TrialView {
        TrialView::Trial { root_hash: RootHash::from_bytes(&[7; 32]) }
    }

    #[test]
    fn it_reverts_exactly_when_the_time_is_over() {
        let before = DEADLINE - Duration::from_millis(1);
        assert!(matches!(decide(&trial(), false, before, DEADLINE), Verdict::Wait(_)));
        assert!(matches!(decide(&trial(), false, DEADLINE, DEADLINE), Verdict::Revert { .. }));
        assert!(matches!(decide(&trial(), true, DEADLINE, DEADLINE), Verdict::End(_)));
    }

    #[test]
    fn blind_it_reboots_only_a_machine_that_counts_its_tries() {
        let unseen = TrialView::TrialUnseen("no disk".into());
        assert!(matches!(decide(&unseen, false, DEADLINE, DEADLINE), Verdict::Reboot { .. }));
        let blind = TrialView::Blind("no disk".into());
        assert!(matches!(decide(&blind, false, Duration::ZERO, DEADLINE), Verdict::Wait(_)));
        assert!(matches!(decide(&blind, false, DEADLINE, DEADLINE), Verdict::End(_)));
    }

    #[test]
    fn a_look_that_fails_takes_nothing_away_of_what_was_seen() {
        let (blind, unseen) = (|| TrialView::Blind("EIO".into()), || TrialView::TrialUnseen("EIO".into()));
        let mut seen = Seen::default();
        for (look, go_by, saw_it) in [
            (blind(), blind(), false),
            (TrialView::Unproven, TrialView::Unproven, true),
            (unseen(), unseen(), true),
            (TrialView::Unproven, unseen(), false),
            (trial(), trial(), true),
            (blind(), trial(), false),
            // Now less than that is seen, and not nothing.
            (unseen(), unseen(), true),
            (blind(), trial(), false),
            (TrialView::NoTrial("committed"), TrialView::NoTrial("committed"), true),
        ] {
            assert_eq!(seen.take_in(look.clone()), (go_by, saw_it), "{look:?}");
        }
    }

    #[test]
    fn it_does_not_wait_past_the_deadline() {
        let just_before = DEADLINE - Duration::from_millis(100);
        let Verdict::Wait(time) = decide(&trial(), false, just_before, DEADLINE) else { panic!() };
        assert!(time <= Duration::from_millis(100));
    }
}
