//! The dead man: from the first second of a boot it waits for the commit of a running trial, and takes the machine back
//! when that does not come. It needs neither network nor API server, neither kubelet nor agent, and the system bus only
//! to go down politely.
//!
//! Time is counted from the start of the boot by a clock that nobody can set.

use std::time::Duration;

use bascule_api::RootHash;

use crate::core::{Config, Entry, Facts, GuardReport, JOURNAL_FILE, Journal, MAX_JOURNAL, State};
use crate::engine::{COMMIT_FILE, CommitNote, in_one_line};
use crate::host::Host;
use crate::observe::{self, Lens};

/// How often the guard looks for the commit while a trial runs.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long logind may take to bring the machine down before the kernel is told to.
pub const POLITE: Duration = Duration::from_secs(60);
/// How long after the start of the boot the state folder may come to be mounted: systemd gives up on a device after 90 s.
const MOUNTS: Duration = Duration::from_secs(120);
/// Longest commit note in bytes.
const MAX_NOTE: u64 = 4 << 10;

/// What the guard knows at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// The running release is permanent, or there is nothing to go back to.
    NoTrial(&'static str),
    /// A trial runs.
    Trial {
        /// Its root hash.
        root_hash: RootHash,
    },
    /// The entry has no counter, and there is no journal that could tell whether it lost one. State may be mounted late.
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
pub fn decide(sight: &Sight, committed: bool, since_boot: Duration, deadline: Duration) -> Verdict {
    if committed {
        return Verdict::End("the trial was committed");
    }
    let over = since_boot >= deadline;
    let wait = LOOK_EVERY.min(deadline.saturating_sub(since_boot)).max(Duration::from_millis(10));
    let late = || format!("no commit within {} s of the boot", deadline.as_secs());
    match sight {
        Sight::NoTrial(why) => Verdict::End(why),
        Sight::Unproven if since_boot >= MOUNTS.min(deadline) => {
            Verdict::End("the running release has no trial on record")
        }
        Sight::Unproven => Verdict::Wait(wait),
        Sight::Trial { .. } if over => Verdict::Revert { reason: late() },
        Sight::TrialUnseen(why) if over => Verdict::Reboot { reason: format!("{}; {why}", late()) },
        // A machine that is good must not be rebooted for ever because its disk can't be read.
        Sight::Blind(_) if over => Verdict::End("whether this is a trial could not be seen until the deadline"),
        Sight::Trial { .. } | Sight::TrialUnseen(_) | Sight::Blind(_) => Verdict::Wait(wait),
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
pub fn run(host: &Host, lens: &Lens, deadline: Duration, machinery: &dyn Machinery) -> Outcome {
    // Units are not the guard's business, and asking for them would need the bus.
    let lens = Lens { units: Vec::new(), ..lens.clone() };
    let mut told = false;
    loop {
        let sight = look(host, &lens);
        if matches!(sight, Sight::Trial { .. } | Sight::TrialUnseen(_)) && !told {
            tracing::warn!(deadline_s = deadline.as_secs(), "this boot is a trial");
            told = true;
        }
        let committed = is_committed(host);
        match decide(&sight, committed, host.clock.since_boot(), deadline) {
            Verdict::End(why) => {
                match &sight {
                    Sight::Blind(reason) => tracing::error!(reason, why, "the guard ends"),
                    _ => tracing::info!(why, "the guard ends"),
                }
                return Outcome::Ended(why);
            }
            Verdict::Wait(time) => machinery.wait(time),
            Verdict::Revert { reason } => {
                tracing::error!(reason, "the trial is reverted");
                revert(host, &lens, &sight, &reason);
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
pub fn look(host: &Host, lens: &Lens) -> Sight {
    let facts = match observe::observe(host, lens) {
        Ok(facts) => facts,
        Err(error) => {
            let why = in_one_line(&error);
            let counted = host.firmware.variable("LoaderBootCountPath").ok().flatten();
            let counted = counted.is_some_and(|path| path.iter().any(|byte| *byte != 0));
            let seen = if counted || armed_by_record(host) { Sight::TrialUnseen } else { Sight::Blind };
            return seen(why);
        }
    };
    judge(&facts, journal(host))
}

fn judge(facts: &Facts, journal: Option<Journal>) -> Sight {
    let known = journal.is_some();
    let state = State { journal: Some(journal.unwrap_or_default()), ..State::new(Config::default()) };
    if !state.is_trial(facts) {
        let good = facts.booted_slot().entry == Entry::Good && facts.inactive_slot().content.root_hash().is_some();
        return if known || !good { Sight::NoTrial("the running release is not a trial") } else { Sight::Unproven };
    }
    let other = facts.inactive_slot();
    if other.content.root_hash().is_none() || other.entry == Entry::None {
        return Sight::NoTrial("the other slot holds nothing to go back to");
    }
    Sight::Trial { root_hash: facts.root_hash.clone() }
}

/// The journal, if there is one that can be read: the guard goes by what it has.
fn journal(host: &Host) -> Option<Journal> {
    let bytes = host.state.read(JOURNAL_FILE, MAX_JOURNAL).ok().flatten()?;
    Journal::parse(&bytes).ok()
}

/// Whether the journal says that what runs was armed in an earlier boot and that nobody began to commit it. Needs neither
/// disk nor boot partition.
fn armed_by_record(host: &Host) -> bool {
    let Some(armed) = journal(host).and_then(|journal| journal.armed) else { return false };
    let (Ok(boot_id), Ok(line)) = (host.system.boot_id(), host.system.command_line()) else { return false };
    let root_hash = armed.root_hash.as_str();
    let runs =
        line.split_ascii_whitespace().any(|word| word.split_once('=').is_some_and(|(_, value)| value == root_hash));
    runs && armed.boot_id != boot_id && !armed.committing
}

fn is_committed(host: &Host) -> bool {
    let note = host.state.read(COMMIT_FILE, MAX_NOTE).ok().flatten();
    let note = note.and_then(|bytes| serde_json::from_slice::<CommitNote>(&bytes).ok());
    let boot_id = host.system.boot_id().ok();
    note.is_some_and(|note| boot_id.as_deref() == Some(note.boot_id.as_str()))
}

/// Makes the boot loader go back. Each part that fails is logged and the next is tried: what the names of the boot
/// entries don't do, the count of tries does over the next boots.
fn revert(host: &Host, lens: &Lens, sight: &Sight, reason: &str) {
    let note = |what: &str, error: &dyn std::error::Error| {
        tracing::error!(what, error = in_one_line(error), "the guard goes on without it");
    };
    if let (Sight::Trial { root_hash }, Ok(boot_id)) = (sight, host.system.boot_id()) {
        let report =
            GuardReport { boot_id, root_hash: root_hash.clone(), at: host.clock.now(), reason: reason.to_owned() };
        let written = serde_json::to_vec(&report)
            .map_err(std::io::Error::other)
            .and_then(|bytes| host.state.write(GuardReport::FILE, &bytes));
        if let Err(error) = written {
            note("writing the report", &error);
        }
    }
    let (machine, ..) = match observe::machine(host, lens) {
        Ok(found) => found,
        Err(error) => return note("looking at the slots", &error),
    };
    let boot = match observe::backend_kind(host, lens, &machine) {
        Ok(kind) => observe::backend(host, kind),
        Err(error) => return note("finding the boot loader", &error),
    };
    // First the way back, then the way out: at no moment is there neither.
    if let Err(error) = boot.bless(&machine, machine.booted.other()) {
        note("restoring the other slot's boot entry", &error);
    }
    if let Err(error) = boot.mark_bad(&machine, machine.booted) {
        note("marking the trial as failed", &error);
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

    fn trial() -> Sight {
        Sight::Trial { root_hash: RootHash::from_bytes(&[7; 32]) }
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
        let unseen = Sight::TrialUnseen("no disk".into());
        assert!(matches!(decide(&unseen, false, DEADLINE, DEADLINE), Verdict::Reboot { .. }));
        let blind = Sight::Blind("no disk".into());
        assert!(matches!(decide(&blind, false, Duration::ZERO, DEADLINE), Verdict::Wait(_)));
        assert!(matches!(decide(&blind, false, DEADLINE, DEADLINE), Verdict::End(_)));
    }

    #[test]
    fn it_does_not_wait_past_the_deadline() {
        let just_before = DEADLINE - Duration::from_millis(100);
        let Verdict::Wait(time) = decide(&trial(), false, just_before, DEADLINE) else { panic!() };
        assert!(time <= Duration::from_millis(100));
    }
}
