//! The search for a file through the delegations (TUF 1.0, 5.6.7), as a state machine: roles are asked for on the way, each is
//! verified under the delegation by which it was reached, and only roles on the way can stop it.
//!
//! What is still to be asked is a place in the list of delegations of each role on the way, never a list of roles: so a role that
//! delegates to very many costs nothing until one of them is asked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::budget::Budget;
use super::refresh::{Request, Trusted, accept_targets, refuse_expired};
use super::schema::{RoleName, TOP_LEVEL, Target, Targets};
use crate::error::Error;
use crate::limits;

/// A verified targets role and the delegations by which it was reached.
#[derive(Debug, Clone)]
pub struct Reached {
    /// Names of the roles from below the top-level one down to this; empty for the top-level role itself.
    pub chain: Vec<String>,
    /// What it says.
    pub targets: Arc<Targets>,
    /// Length of its file in bytes.
    pub length: usize,
}

impl Reached {
    /// The top-level role.
    pub fn top(targets: Arc<Targets>) -> Self {
        Self { chain: Vec::new(), targets, length: 0 }
    }

    fn name(&self) -> &str {
        self.chain.last().map_or("targets", String::as_str)
    }
}

/// What a search wants next.
#[derive(Debug)]
pub enum Step {
    /// A role that was seen before, by this chain of names, or else [`Search::fetch`].
    Role(Vec<String>),
    /// The file, and the roles on the way to it, outermost first.
    Found(Target, Vec<Reached>),
    /// No role names it.
    Absent,
}

/// A delegation that is followed.
#[derive(Debug)]
struct Visit {
    /// The roles above it, outermost first; shared, because all that lies below has it in common.
    parents: Arc<[Reached]>,
    delegation: usize,
}

/// A role whose delegations are gone through.
#[derive(Debug)]
struct Place {
    way: Arc<[Reached]>,
    /// The first of its delegations that was not looked at yet.
    next: usize,
}

/// A search under way.
#[derive(Debug)]
pub struct Search<'a> {
    trusted: &'a Trusted,
    path: &'a str,
    /// Above its end only this chain of roles is followed.
    branch: &'a [String],
    budget: Budget,
    visited: BTreeSet<RoleName>,
    /// The roles on the way, innermost last: at most one more than the depth allows.
    stack: Vec<Place>,
    waiting: Option<Visit>,
    found: Option<(Target, Arc<[Reached]>)>,
}

impl<'a> Search<'a> {
    /// Begins at the top-level role. With a `branch`, only the roles on it and below its end are asked: a channel's files belong
    /// to the role that named the channel, and no other role of the same paths can get between.
    pub fn begin(trusted: &'a Trusted, top: Reached, path: &'a str, branch: &'a [String], budget: Budget) -> Self {
        let mut search = Self {
            trusted,
            path,
            branch,
            budget,
            visited: BTreeSet::new(),
            stack: Vec::new(),
            waiting: None,
            found: None,
        };
        search.enter(Arc::from([top]));
        search
    }

    /// The next step. After [`Step::Role`] comes [`Self::known`] or [`Self::fetch`] and [`Self::came`].
    ///
    /// # Errors
    /// [`Error::Role`] with [`Error::Limit`] when it would visit too many roles or too deep.
    pub fn step(&mut self) -> Result<Step, Error> {
        if let Some((target, way)) = self.found.take() {
            return Ok(Step::Found(target, way.to_vec()));
        }
        let Some(visit) = self.next_visit() else { return Ok(Step::Absent) };
        let (Some(parent), Some(name)) = (visit.parents.last(), visit.name()) else { return Ok(Step::Absent) };
        let limits = self.budget.limits();
        let what = || format!("the {name} metadata");
        let fault = if TOP_LEVEL.contains(&&**name) {
            let reason = "a delegated role must not have the name of a top-level one".to_owned();
            Some(Error::Invalid { what: what(), reason })
        } else if self.visited.len() > limits.roles {
            Some(Error::Limit { what: what(), reason: format!("the search asked {} roles already", limits.roles) })
        } else if parent.chain.len() >= limits.depth {
            Some(Error::Limit { what: what(), reason: format!("it is more than {} delegations deep", limits.depth) })
        } else {
            None
        };
        if let Some(fault) = fault {
            return Err(self.trouble(name, fault));
        }
        let chain = parent.chain.iter().cloned().chain([name.to_string()]).collect();
        self.waiting = Some(visit);
        Ok(Step::Role(chain))
    }

    /// The next delegation in pre-order that covers the path and leads to a role that was not visited.
    fn next_visit(&mut self) -> Option<Visit> {
        while let Some(mut place) = self.stack.pop() {
            let Some(role) = place.way.last() else { continue };
            let delegations = role.targets.delegations();
            let branch = self.branch.get(role.chain.len());
            while let Some(delegation) = delegations.get(place.next) {
                let number = place.next;
                place.next += 1;
                let on_the_way = branch.is_none_or(|only| **only == *delegation.name);
                if !on_the_way || !delegation.covers(self.path) {
                    continue;
                }
                // 5.6.7.1: a role that was visited is skipped, so cycles end. The top-level one was the first.
                let new = *delegation.name != *"targets" && !self.visited.contains(&delegation.name);
                if delegation.terminating {
                    // Neither its later siblings nor those of the roles above it are asked.
                    self.stack.clear();
                    if !new {
                        return None;
                    }
                } else if !new {
                    continue;
                }
                self.visited.insert(delegation.name.clone());
                let visit = Visit { parents: Arc::clone(&place.way), delegation: number };
                if !delegation.terminating {
                    self.stack.push(place);
                }
                return Some(visit);
            }
        }
        None
    }

    /// Goes on with a role that this chain of names led to before.
    ///
    /// # Errors
    /// [`Error::Role`] with [`Error::Expired`] or [`Error::Limit`].
    pub fn known(&mut self, role: Reached) -> Result<(), Error> {
        let Some(visit) = self.waiting.take() else { return Ok(()) };
        let checked = refuse_expired(role.name(), &*role.targets, self.trusted.now)
            .and_then(|()| self.budget.reuse(&format!("the {} metadata", role.name()), role.length));
        checked.map_err(|error| self.trouble(role.name(), error))?;
        self.enter(below(&visit.parents, role));
        Ok(())
    }

    /// What to fetch for the role that is wanted.
    ///
    /// # Errors
    /// [`Error::Role`] when the snapshot does not name it or the budget does not allow it; nothing may be fetched then.
    pub fn fetch(&mut self, elapsed: Duration) -> Result<Option<Request>, Error> {
        let Some(name) = self.waiting.as_ref().and_then(Visit::name).cloned() else { return Ok(None) };
        let admitted = match self.trusted.snapshot.meta.get(&format!("{name}.json")) {
            None => {
                Err(Error::Absent { what: format!("{name} metadata"), hint: "; the snapshot does not name it".into() })
            }
            Some(pin) => {
                let what = format!("the {name} metadata");
                let limit = self.budget.admit(&what, pin.length, limits::MAX_TARGETS, elapsed);
                limit.map(|limit| (limit, pin.version))
            }
        };
        let (limit, version) = admitted.map_err(|error| self.trouble(&name, error))?;
        let file = quote(&name);
        let consistent = self.trusted.root.consistent_snapshot;
        let name = if consistent { format!("{version}.{file}.json") } else { format!("{file}.json") };
        Ok(Some(Request { name, limit, may_be_absent: false }))
    }

    /// Takes the role's file, verified as 5.6.2 to 5.6.5 say, and gives the role for others to reuse.
    ///
    /// # Errors
    /// [`Error::Role`]
    pub fn came(&mut self, bytes: &[u8]) -> Result<Option<Reached>, Error> {
        self.budget.spend(bytes.len());
        let Some(visit) = self.waiting.take() else { return Ok(None) };
        let Some(parent) = visit.parents.last() else { return Ok(None) };
        let Some(delegation) = parent.targets.delegations().get(visit.delegation) else { return Ok(None) };
        let name = delegation.name.to_string();
        let Some(pin) = self.trusted.snapshot.meta.get(&format!("{name}.json")) else { return Ok(None) };
        let targets = accept_targets(&name, pin, bytes, parent.targets.signers(delegation), self.trusted.now)
            .map_err(|error| self.trouble(&name, error))?;
        let chain = parent.chain.iter().cloned().chain([name]).collect();
        let role = Reached { chain, targets: Arc::new(targets), length: bytes.len() };
        self.enter(below(&visit.parents, role.clone()));
        Ok(Some(role))
    }

    /// The error of a role that could not be used, with what was looked for. Also for one that could not be fetched.
    pub fn trouble(&self, role: &str, error: Error) -> Error {
        Error::Role { role: role.to_owned(), path: self.path.to_owned(), source: Box::new(error) }
    }

    /// The name of the role that is wanted.
    pub fn wanted(&self) -> String {
        self.waiting.as_ref().and_then(Visit::name).map(ToString::to_string).unwrap_or_default()
    }

    /// 5.6.7.1 and 5.6.7.2 for a role that was reached: its own word, else its delegations in their order.
    fn enter(&mut self, way: Arc<[Reached]>) {
        match way.last().and_then(|role| role.targets.targets.get(self.path)) {
            Some(target) => self.found = Some((target.clone(), way)),
            None => self.stack.push(Place { way, next: 0 }),
        }
    }
}

impl Visit {
    fn name(&self) -> Option<&RoleName> {
        let delegation = self.parents.last()?.targets.delegations().get(self.delegation)?;
        Some(&delegation.name)
    }
}

/// The way to a role below others.
fn below(parents: &[Reached], role: Reached) -> Arc<[Reached]> {
    parents.iter().cloned().chain([role]).collect()
}

/// A role's name as it stands in a file name and a URL: everything but unreserved characters (RFC 3986, 2.3) is
/// percent-encoded, also `/`.
pub fn quote(name: &str) -> String {
    let mut quoted = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            quoted.push(char::from(byte));
        } else {
            quoted.push_str(&format!("%{byte:02X}"));
        }
    }
    quoted
}
