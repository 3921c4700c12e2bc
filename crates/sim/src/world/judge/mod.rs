//! Judges of a world's history: each a small model of one promise, which knows nothing of the planner's gates and looks at what
//! happened, not at what anybody believes. A pure function of the events, as etcd's robustness tests judge theirs.
//!
//! They are given machines, kubelets, pods, what the operator saw, said and wrote. What was not to be seen when a plan was made, or came
//! between a plan and its writes, is nobody's fault (docs/testing.md, "What the judges of the history allow").

mod budgets;
mod commits;
mod cordons;
mod drains;
mod facts;
mod past;
mod reasons;
mod rest;
mod windows;

use super::{Broken, history::Event};
use bascule_api::Time;
use past::Past;

/// A judge of the history, by what it looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judge {
    /// A machine reboots at our word only once it is empty of what had to go.
    Drains,
    /// Nodes that are unavailable, by policy, failure domain and cluster.
    Budgets,
    /// No application falls below its own budget because of us.
    Applications,
    /// A release is committed once it was healthy in its own boot for as long as the policy says.
    Commits,
    /// What a person cordoned stays so, and what a person uncordoned too.
    Cordons,
    /// What is said of a node is so.
    Reasons,
    /// Nobody waits for ever for what has come, or does not come.
    Rest,
}

impl Judge {
    /// The invariant that it judges, by its number; 0 for the promises of a policy's own fields.
    #[must_use]
    pub const fn invariant(self) -> u8 {
        match self {
            Self::Commits => 0,
            Self::Drains => 3,
            Self::Budgets | Self::Applications => 4,
            Self::Cordons => 7,
            Self::Reasons => 8,
            Self::Rest => 9,
        }
    }
}

/// What is wrong with a history.
pub(super) fn judge(history: &[(Time, Event)]) -> Vec<Broken> {
    let mut past = Past::default();
    let mut broken = Vec::new();
    for (at, event) in history {
        let found = [
            (Judge::Drains, drains::judge(&past, event)),
            (Judge::Budgets, budgets::nodes(&past, event)),
            (Judge::Applications, budgets::applications(&past, *at, event)),
            (Judge::Commits, commits::judge(&past, event)),
            (Judge::Cordons, cordons::judge(&past, event)),
            (Judge::Reasons, reasons::judge(&past, event)),
            (Judge::Rest, rest::judge(&past, event)),
        ];
        for (judge, what) in found {
            broken.extend(what.into_iter().map(|what| Broken::Judged(judge, format!("{at} {what}"))));
        }
        past.take(*at, event);
    }
    broken
}
