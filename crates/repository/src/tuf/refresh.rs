//! The client workflow of TUF 1.0, section 5, up to the top-level targets (5.1 to 5.6.6), as a state machine: it says which
//! file it wants next, is told the bytes that came, and says when its memory has to be written down. No I/O, no clock.
//!
//! ```text
//! 5.2 begin ─ 5.3 Root ──absent──▶ 5.4 Timestamp ──▶ 5.5 Snapshot ──▶ 5.6 Targets ──▶ finish
//!             └─▶ N+1 ┘            (equal: ours stays)  (ours fits: no fetch, also for targets)
//! ```
//!
//! Where the specification says "persist", [`Refresh::unsaved`] has something to write, and the caller does so before it goes on,
//! also before it reports an error. Nothing that was refused is ever in there.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::budget::{Budget, Limits};
use super::keys::{fingerprint, verify};
use super::lineage::{self, next_root};
use super::memory::Memory;
use super::schema::{MetaFile, Role, Root, Signed, Snapshot, Targets, Timestamp, TopLevel, parse};
use crate::error::Error;
use crate::limits;

/// A metadata file that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its name below the metadata folder, percent-encoded.
    pub name: String,
    /// Most bytes that it may have.
    pub limit: u64,
    /// Whether it may be missing: only the next root may (5.3.3).
    pub may_be_absent: bool,
}

/// What an update ends with: verified, and not expired at its time.
#[derive(Debug, Clone)]
pub struct Trusted {
    /// The keys.
    pub root: Root,
    /// Its bytes.
    pub root_bytes: String,
    /// The newest snapshot's version.
    pub timestamp: Timestamp,
    /// The versions of all targets roles.
    pub snapshot: Snapshot,
    /// The files and delegations of the top-level role.
    pub targets: Targets,
    /// The time that expiry was judged by (5.1).
    pub now: DateTime<Utc>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Root,
    Timestamp,
    Snapshot,
    Targets,
    Done,
}

/// An update under way.
#[derive(Debug, Clone)]
pub struct Refresh {
    now: DateTime<Utc>,
    budget: Budget,
    phase: Phase,
    /// Version of the caller's trust root.
    trust_root: u64,
    /// New roots that came in this update.
    roots: u64,
    /// Those of them that are older than the newest that is remembered, until it follows from them.
    apart: lineage::Roots,
    memory: Memory,
    changed: bool,
    root: Signed<Root>,
    root_bytes: String,
    timestamp: Option<Timestamp>,
    snapshot: Option<Snapshot>,
    targets: Option<Targets>,
}

impl Refresh {
    /// 5.1 and 5.2: fixes the time and loads the trusted root: the newest that is remembered, where what is remembered leads to it from
    /// the caller's trust root, else that one.
    ///
    /// # Errors
    /// [`Error::TrustRoot`]
    pub fn begin(trust_root: &[u8], mut memory: Memory, now: DateTime<Utc>, limits: Limits) -> Result<Self, Error> {
        let refuse = |error: &Error| Error::TrustRoot { reason: crate::error::in_one_line(error) };
        let mut root: Signed<Root> = parse("root", trust_root).map_err(|error| refuse(&error))?;
        verify("root", &root, root.role.signers(TopLevel::Root)).map_err(|error| refuse(&error))?;
        let text = std::str::from_utf8(trust_root).map_err(|error| Error::TrustRoot { reason: error.to_string() })?;
        let mut root_bytes = text.to_owned();
        let trust_root = root.role.version();
        let changed = lineage::begin(&mut memory.roots, &root, text);
        if let Some((newest, text)) = lineage::newest(&memory.roots, &root) {
            root = newest;
            text.clone_into(&mut root_bytes);
        }
        Ok(Self {
            now,
            budget: Budget::new(limits),
            phase: Phase::Root,
            trust_root,
            roots: 0,
            apart: lineage::Roots::new(),
            memory,
            changed,
            root,
            root_bytes,
            timestamp: None,
            snapshot: None,
            targets: None,
        })
    }

    /// What is to be written down before anything else is done, if it has changed since the last call.
    pub fn unsaved(&mut self) -> Option<&Memory> {
        std::mem::take(&mut self.changed).then_some(&self.memory)
    }

    /// The next file to fetch, `None` when the update is complete. `elapsed`: since the beginning.
    ///
    /// # Errors
    /// [`Error::Limit`] instead of a fetch that the budget does not allow; [`Error::Expired`] where what is remembered is still
    /// the newest and has expired meanwhile.
    pub fn step(&mut self, elapsed: Duration) -> Result<Option<Request>, Error> {
        loop {
            let consistent = self.root.role.consistent_snapshot;
            let (file, pin, limit) = match self.phase {
                Phase::Root if self.roots >= limits::MAX_ROOT_UPDATES => {
                    // Not the repository's end: what is remembered lies further on than one update reads, and every one would end here.
                    lineage::within_reach(&self.memory.roots, &self.root)?;
                    self.roots_are_complete()?;
                    continue;
                }
                Phase::Root => {
                    let version = self.root.role.version().saturating_add(1);
                    let limit = self.budget.admit("the next root metadata", None, limits::MAX_ROOT, elapsed)?;
                    return Ok(Some(Request { name: format!("{version}.root.json"), limit, may_be_absent: true }));
                }
                Phase::Timestamp => {
                    let limit = self.budget.admit("the timestamp metadata", None, limits::MAX_TIMESTAMP, elapsed)?;
                    let name = "timestamp.json".to_owned();
                    return Ok(Some(Request { name, limit, may_be_absent: false }));
                }
                Phase::Snapshot => {
                    if let Some(snapshot) = self.fitting_snapshot()? {
                        self.refuse_expired("snapshot", &snapshot)?;
                        self.snapshot = Some(snapshot);
                        self.phase = Phase::Targets;
                        continue;
                    }
                    ("snapshot", self.snapshot_pin()?, limits::MAX_SNAPSHOT)
                }
                Phase::Targets => {
                    if let Some(targets) = self.fitting_targets()? {
                        self.refuse_expired("targets", &targets)?;
                        self.targets = Some(targets);
                        self.phase = Phase::Done;
                        continue;
                    }
                    ("targets", self.targets_pin()?, limits::MAX_TARGETS)
                }
                Phase::Done => return Ok(None),
            };
            let (version, length) = (pin.version, pin.length);
            let limit = self.budget.admit(&format!("the {file} metadata"), length, limit, elapsed)?;
            let name = if consistent { format!("{version}.{file}.json") } else { format!("{file}.json") };
            return Ok(Some(Request { name, limit, may_be_absent: false }));
        }
    }

    /// Takes what came for the last request; `None`: the server has no such file.
    ///
    /// # Errors
    /// Why the file is refused.
    pub fn came(&mut self, bytes: Option<&[u8]>) -> Result<(), Error> {
        self.budget.spend(bytes.map_or(0, <[u8]>::len));
        match (self.phase, bytes) {
            (Phase::Root, None) => self.roots_are_complete(),
            (Phase::Root, Some(bytes)) => self.came_root(bytes),
            (Phase::Timestamp, Some(bytes)) => self.came_timestamp(bytes),
            (Phase::Snapshot, Some(bytes)) => self.came_snapshot(bytes),
            (Phase::Targets, Some(bytes)) => self.came_targets(bytes),
            (Phase::Timestamp | Phase::Snapshot | Phase::Targets, None) => {
                Err(Error::Absent { what: format!("{:?} metadata", self.phase).to_lowercase(), hint: String::new() })
            }
            (Phase::Done, _) => Ok(()),
        }
    }

    /// What the update ended with and is to be remembered; `None` before [`Self::step`] said that it is complete.
    pub fn finish(self) -> Option<(Trusted, Memory)> {
        let trusted = Trusted {
            root: self.root.role,
            root_bytes: self.root_bytes,
            timestamp: self.timestamp?,
            snapshot: self.snapshot?,
            targets: self.targets?,
            now: self.now,
        };
        Some((trusted, Memory { verified_at: Some(self.now), ..self.memory }))
    }

    /// 5.3.4 to 5.3.9.
    fn came_root(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let next = next_root(&self.root, bytes)?;
        let text = text("root", bytes)?;
        let Self { memory, apart, trust_root, root, .. } = self;
        self.changed |= lineage::admit(&mut memory.roots, apart, *trust_root, root, &next, text.clone())?;
        self.root = next;
        self.root_bytes = text;
        self.roots += 1;
        Ok(())
    }

    /// 5.3.10 to 5.3.12, and loading what is remembered of the rest.
    fn roots_are_complete(&mut self) -> Result<(), Error> {
        lineage::reached(&self.memory.roots, &self.root)?;
        self.refuse_expired("root", &self.root.role)?;
        let root = &self.root.role;
        let keys = fingerprint(&[root.signers(TopLevel::Timestamp), root.signers(TopLevel::Snapshot)]);
        let rotated = self.memory.accepted_by.as_ref().is_some_and(|before| *before != keys);
        self.changed |= rotated && self.memory.forget();
        let timestamp = self.remembered::<Timestamp>("timestamp", self.memory.timestamp.as_deref());
        let snapshot = self.remembered::<Snapshot>("snapshot", self.memory.snapshot.as_deref());
        // Also where an older format did not say by which keys they were accepted.
        if timestamp.is_err() || snapshot.is_err() {
            self.changed |= self.memory.forget();
        } else {
            self.timestamp = timestamp.unwrap_or_default();
        }
        self.changed |= self.memory.accepted_by.as_ref() != Some(&keys);
        self.memory.accepted_by = Some(keys);
        self.phase = Phase::Timestamp;
        Ok(())
    }

    /// 5.4.2 to 5.4.5.
    fn came_timestamp(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let new: Signed<Timestamp> = parse("timestamp", bytes)?;
        verify("timestamp", &new, self.root.role.signers(TopLevel::Timestamp))?;
        let new = new.role;
        if let Some(trusted) = &self.timestamp {
            refuse_older("timestamp", trusted.version(), new.version())?;
            if new.version() == trusted.version() {
                // 5.4.3.1: ours stays, whatever the other says. It may have come without its snapshot, so the update goes on.
                self.refuse_expired("timestamp", trusted)?;
                self.phase = Phase::Snapshot;
                return Ok(());
            }
            refuse_older("snapshot", trusted.snapshot().version.get(), new.snapshot().version.get())?;
        }
        self.refuse_expired("timestamp", &new)?;
        self.memory.timestamp = Some(text("timestamp", bytes)?);
        self.timestamp = Some(new);
        self.phase = Phase::Snapshot;
        self.changed = true;
        Ok(())
    }

    /// 5.5.2 to 5.5.7.
    fn came_snapshot(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let pin = self.snapshot_pin()?;
        refuse_other_bytes("snapshot", &pin, bytes)?;
        let new: Signed<Snapshot> = parse("snapshot", bytes)?;
        verify("snapshot", &new, self.root.role.signers(TopLevel::Snapshot))?;
        let new = new.role;
        refuse_other_version("snapshot", &pin, new.version())?;
        let trusted = self.remembered::<Snapshot>("snapshot", self.memory.snapshot.as_deref()).unwrap_or_default();
        for (file, before) in trusted.iter().flat_map(|trusted| trusted.meta.iter()) {
            let Some(now) = new.meta.get(file) else {
                let reason = format!("the snapshot no longer names {file}");
                return Err(Error::Rollback { reason });
            };
            refuse_older(file, before.version.get(), now.version.get())?;
        }
        self.refuse_expired("snapshot", &new)?;
        self.memory.snapshot = Some(text("snapshot", bytes)?);
        self.snapshot = Some(new);
        self.phase = Phase::Targets;
        self.changed = true;
        Ok(())
    }

    /// 5.6.2 to 5.6.6.
    fn came_targets(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let pin = self.targets_pin()?;
        let new = accept_targets("targets", &pin, bytes, self.root.role.signers(TopLevel::Targets), self.now)?;
        self.memory.targets = Some(text("targets", bytes)?);
        self.targets = Some(new);
        self.phase = Phase::Done;
        self.changed = true;
        Ok(())
    }

    /// The remembered snapshot, if it is the one that the timestamp names.
    fn fitting_snapshot(&self) -> Result<Option<Snapshot>, Error> {
        let pin = self.snapshot_pin()?;
        let Some(text) = self.memory.snapshot.as_deref() else { return Ok(None) };
        let known = self.remembered::<Snapshot>("snapshot", Some(text)).unwrap_or_default();
        Ok(known.filter(|known| fits(&pin, known.version(), text.as_bytes())))
    }

    fn fitting_targets(&self) -> Result<Option<Targets>, Error> {
        let pin = self.targets_pin()?;
        let Some(text) = self.memory.targets.as_deref() else { return Ok(None) };
        let known = self.remembered::<Targets>("targets", Some(text)).unwrap_or_default();
        Ok(known.filter(|known| fits(&pin, known.version(), text.as_bytes())))
    }

    /// A remembered file, verified by the trusted root's keys.
    fn remembered<T: Role>(&self, role: &str, text: Option<&str>) -> Result<Option<T>, Error> {
        let Some(text) = text else { return Ok(None) };
        let of = match role {
            "timestamp" => TopLevel::Timestamp,
            "snapshot" => TopLevel::Snapshot,
            _ => TopLevel::Targets,
        };
        let checked = parse::<T>(role, text.as_bytes()).and_then(|signed| {
            verify(role, &signed, self.root.role.signers(of))?;
            Ok(Some(signed.role))
        });
        checked.inspect_err(|error| tracing::warn!(role, %error, "what was remembered does not hold any more"))
    }

    fn snapshot_pin(&self) -> Result<MetaFile, Error> {
        let pin = self.timestamp.as_ref().map(|timestamp| timestamp.snapshot().clone());
        pin.ok_or_else(|| Error::Absent { what: "timestamp metadata".to_owned(), hint: String::new() })
    }

    fn targets_pin(&self) -> Result<MetaFile, Error> {
        let pin = self.snapshot.as_ref().and_then(|snapshot| snapshot.meta.get("targets.json").cloned());
        pin.ok_or_else(|| Error::Invalid {
            what: "the snapshot metadata".to_owned(),
            reason: "it does not name targets.json".to_owned(),
        })
    }

    fn refuse_expired(&self, role: &str, metadata: &impl Role) -> Result<(), Error> {
        refuse_expired(role, metadata, self.now)
    }
}

/// 5.6.2 to 5.6.5, for the top-level role and for delegated ones.
pub(crate) fn accept_targets(
    role: &str,
    pin: &MetaFile,
    bytes: &[u8],
    signers: super::schema::Signers<'_>,
    now: DateTime<Utc>,
) -> Result<Targets, Error> {
    refuse_other_bytes(role, pin, bytes)?;
    let new: Signed<Targets> = parse(role, bytes)?;
    verify(role, &new, signers)?;
    refuse_other_version(role, pin, new.role.version())?;
    refuse_expired(role, &new.role, now)?;
    Ok(new.role)
}

/// 5.3.10, 5.4.4, 5.5.6 and 5.6.5: the expiry must be later than the time of the update.
pub(super) fn refuse_expired(role: &str, metadata: &impl Role, now: DateTime<Utc>) -> Result<(), Error> {
    let expired = metadata.expires();
    if expired > now { Ok(()) } else { Err(Error::Expired { role: role.to_owned(), expired, now }) }
}

fn refuse_older(what: &str, trusted: u64, new: u64) -> Result<(), Error> {
    if new >= trusted {
        return Ok(());
    }
    Err(Error::Rollback { reason: format!("{what} version {new} came after version {trusted}") })
}

/// 5.5.2 and 5.6.2.
fn refuse_other_bytes(role: &str, pin: &MetaFile, bytes: &[u8]) -> Result<(), Error> {
    let refuse = |reason: String| Err(Error::Mismatch { what: format!("the {role} metadata"), reason });
    if let Some(length) = pin.length.filter(|length| *length != bytes.len() as u64) {
        return refuse(format!("{} bytes came, {length} are signed", bytes.len()));
    }
    if pin.hashes.as_ref().is_some_and(|hashes| !hashes.match_bytes(bytes)) {
        return refuse("it has another digest, or none of the signed ones is of a known algorithm".to_owned());
    }
    Ok(())
}

/// 5.5.4 and 5.6.4.
fn refuse_other_version(role: &str, pin: &MetaFile, version: u64) -> Result<(), Error> {
    if version == pin.version.get() {
        return Ok(());
    }
    let reason = format!("version {version} came, version {} is signed", pin.version);
    Err(Error::Mismatch { what: format!("the {role} metadata"), reason })
}

fn fits(pin: &MetaFile, version: u64, bytes: &[u8]) -> bool {
    refuse_other_version("", pin, version).is_ok() && refuse_other_bytes("", pin, bytes).is_ok()
}

fn text(what: &str, bytes: &[u8]) -> Result<String, Error> {
    let text = std::str::from_utf8(bytes);
    let text = text.map_err(|source| Error::Format { what: format!("the {what} metadata"), source: source.into() })?;
    Ok(text.to_owned())
}
