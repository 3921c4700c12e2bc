//! An agent as its operator sees one, without a machine and at once: for clusters of many nodes in one process.
//!
//! It keeps the contract of NodeUpdate in its smallest form. That it says what the shipped agent says at each step of a node's way is
//! held by `bascule-agent stand_in`.

use bascule_api::{Goal, NodeUpdateSpec, ReleaseRef, Time, Version};
use serde_json::{Map, Value, json};

/// A release in a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    version: Version,
    /// What it was named by when it was staged; an installer's release has no name that an agent knows.
    digest: Option<String>,
    /// Whether it ran here.
    ran: bool,
}

/// An agent, and the two slots of its machine.
#[derive(Debug, Clone)]
pub struct StandIn {
    /// The boot that runs.
    pub boot_id: String,
    /// What the machine's clock shows, RFC 3339.
    pub clock: String,
    running: Held,
    other: Option<Held>,
    trial: bool,
    committed_at: String,
    /// What failed here, and when.
    failed: Vec<(ReleaseRef, String)>,
    retried: Option<Time>,
    last_grant: i64,
}

impl StandIn {
    /// On a machine that was installed with a release, and nothing in its other slot.
    #[must_use]
    pub fn installed(version: Version, boot_id: String, clock: &str) -> Self {
        Self {
            boot_id,
            clock: clock.to_owned(),
            running: Held { version, digest: None, ran: true },
            other: None,
            trial: false,
            committed_at: clock.to_owned(),
            failed: Vec::new(),
            retried: None,
            last_grant: 0,
        }
    }

    /// The release that runs.
    #[must_use]
    pub const fn running(&self) -> &Version {
        &self.running.version
    }

    /// Does what needs no reboot: forgets failures, stages, commits.
    pub fn follow(&mut self, spec: &NodeUpdateSpec) {
        if spec.retry.is_some() && spec.retry != self.retried {
            self.retried = spec.retry;
            self.failed.clear();
        }
        let Some(release) = &spec.release else { return };
        let runs = self.running.version == release.version;
        match spec.goal {
            Goal::Staged | Goal::Booted
                if !runs && !self.trial && !self.holds(release) && !self.failed_here(release) =>
            {
                let digest = Some(release.digest.as_str().to_owned());
                self.other = Some(Held { version: release.version.clone(), digest, ran: false });
            }
            Goal::Committed if runs && self.trial => {
                self.trial = false;
                self.committed_at.clone_from(&self.clock);
            }
            _ => {}
        }
    }

    /// Whether it leads to a reboot, which [`StandIn::reboot`] does.
    #[must_use]
    pub fn must_reboot(&self, spec: &NodeUpdateSpec) -> bool {
        let Some(release) = &spec.release else { return false };
        let granted = spec.disruption.is_some()
            && spec
                .grant
                .as_ref()
                .is_some_and(|grant| grant.boot_id == self.boot_id && grant.generation > self.last_grant);
        let runs = self.running.version == release.version;
        match spec.goal {
            Goal::Booted => granted && !runs && !self.trial && self.holds(release) && !self.failed_here(release),
            Goal::Reverted => runs && (self.trial || (granted && self.other.is_some())),
            Goal::Idle | Goal::Staged | Goal::Committed => false,
        }
    }

    /// The machine goes down and is back in another boot. Where the release does not come up, the boot loader has led it back.
    pub fn reboot(&mut self, spec: &NodeUpdateSpec, boot_id: String, comes_up: bool) {
        self.boot_id = boot_id;
        if let Some(grant) = &spec.grant {
            self.last_grant = self.last_grant.max(grant.generation);
        }
        let fails = self.trial || !comes_up;
        if let Some(release) = spec.release.as_ref().filter(|_| fails) {
            self.failed.push((release.clone(), self.clock.clone()));
        }
        // A way back is armed with a counter like any release, and is a trial until somebody commits it.
        if (self.trial || comes_up)
            && let Some(next) = &mut self.other
        {
            std::mem::swap(&mut self.running, next);
            self.running.ran = true;
            self.trial = !self.trial;
        }
    }

    fn holds(&self, release: &ReleaseRef) -> bool {
        self.other.as_ref().is_some_and(|held| held.digest.as_deref() == Some(release.digest.as_str()))
    }

    fn failed_here(&self, release: &ReleaseRef) -> bool {
        self.failed.iter().any(|(failed, _)| failed.digest == release.digest)
    }

    /// What it reports: the agent's part of `NodeUpdate.status`.
    #[must_use]
    pub fn status(&self, generation: Option<i64>) -> Value {
        let hash = |letter: &str| letter.repeat(64);
        let state = if self.trial { "Trial" } else { "Good" };
        let mut booted = json!({"slot": "A", "version": self.running.version, "rootHash": hash("a")});
        let mut slots = json!({
            "a": {"state": state, "version": self.running.version, "rootHash": hash("a")},
            "b": {"state": "Empty"},
        });
        let mut more = Map::new();
        let mut add = |name: &str, value: Value| more.insert(name.to_owned(), value);
        if self.trial {
            add("trial", json!({"version": self.running.version, "triesLeft": 2}));
        } else if let Some(booted) = booted.as_object_mut() {
            booted.insert("committedAt".to_owned(), json!(self.committed_at));
        }
        if let Some(held) = &self.other {
            let failed = self.failed.iter().any(|(failed, _)| held.digest.as_deref() == Some(failed.digest.as_str()));
            let state = match held {
                _ if failed => "Bad",
                Held { ran: true, .. } => "Good",
                Held { ran: false, .. } => "Staged",
            };
            if let Some(slots) = slots.as_object_mut() {
                let slot = json!({"state": state, "version": held.version, "rootHash": hash("b")});
                slots.insert("b".to_owned(), slot);
            }
            // What was read back once could be armed again, whether or not it ran meanwhile.
            if let Some(digest) = held.digest.as_ref().filter(|_| !failed) {
                add("staged", json!({"version": held.version, "digest": digest}));
            }
        }
        if !self.failed.is_empty() {
            let failed = |(release, at): &(ReleaseRef, String)| {
                json!({
                    "version": release.version, "digest": release.digest, "at": at, "category": "TrialFailed",
                    "message": "the trial was given up",
                })
            };
            add("failedReleases", self.failed.iter().map(failed).collect());
        }
        if let Some(at) = &self.retried {
            add("retried", json!(at));
        }
        if self.last_grant > 0 {
            add("lastGrant", json!(self.last_grant));
        }
        let mut status = json!({
            "observedGeneration": generation,
            "bootID": self.boot_id,
            "agentVersion": "0.1.0",
            "architecture": "x86-64",
            "booted": booted,
            "slots": slots,
            "bootControl": {"backend": "SystemdBoot", "counting": "Works"},
        });
        if let Some(status) = status.as_object_mut() {
            status.append(&mut more);
        }
        status
    }
}

/// Whether a status has to be written: whether the one that is there says something else. An event of one's own write ends there.
#[must_use]
pub fn says_more(status: &Value, written: &Value) -> bool {
    status.as_object().into_iter().flatten().any(|(name, value)| written.get(name) != Some(value))
}
