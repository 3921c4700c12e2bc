//! The coming windows of every policy, with what a forecast puts into them.

use bascule_api::{Duration, Time};
use bascule_planner::{Snapshot, calendar::calendar as coming, forecast::Options, windows};
use serde::Serialize;

/// How far ahead the calendar looks.
pub const HORIZON: Duration = Duration::from_secs(14 * 86_400);
/// Up to how many nodes an operator foresees: a forecast copies what it changes, and the operator's memory is for the nodes
/// (docs/decisions/0055). `bascule` knows no such bound.
pub const FORESEEN_NODES: usize = 1_000;
/// How many windows of a policy are shown.
const WINDOWS: usize = 8;
/// How many plans one forecast may take.
const PLANS: u32 = 5_000;

/// What lies ahead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Calendar {
    /// When it was made.
    pub made_at: Time,
    /// Each policy, by name.
    pub policies: Vec<PolicyCalendar>,
    /// What a reader must know of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What lies ahead of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyCalendar {
    /// Its name.
    pub name: String,
    /// It has no windows, and may disrupt at any time.
    pub always: bool,
    /// Whether a forecast was made; without one the counts say nothing.
    pub foreseen: bool,
    /// When its last node will probably be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done_at: Option<Time>,
    /// The next windows.
    pub windows: Vec<Window>,
}

/// A window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// When it opens, or opened.
    pub start: Time,
    /// When it closes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<Time>,
    /// The start as the policy's people write it.
    pub in_its_zone: String,
    /// How many nodes will probably be done in it.
    pub nodes: usize,
}

/// Makes the calendar. With more nodes than `most` nothing is foreseen, and it says so.
#[must_use]
pub fn calendar(snapshot: &Snapshot, most: usize) -> Calendar {
    let options = Options { horizon: HORIZON, plans: PLANS, ..Options::default() };
    let foreseen = snapshot.nodes.len() <= most;
    let seen = foreseen.then(|| bascule_planner::forecast(snapshot, &options));
    // The same choice that the plan makes.
    let members = seen.as_ref().map(|_| bascule_planner::plan(snapshot).1);
    let policies = snapshot.policies.iter().enumerate().map(|(index, policy)| {
        let done: Vec<Time> = match (&seen, &members) {
            (Some(seen), Some(report)) => {
                let members = report.nodes.iter().zip(&seen.nodes).filter(|(said, _)| said.policy == Some(index));
                members.filter_map(|(_, done)| *done).collect()
            }
            _ => Vec::new(),
        };
        let windows = coming(policy, snapshot.now, HORIZON, &done).into_iter().take(WINDOWS);
        let valid = policy.spec.as_ref().ok();
        PolicyCalendar {
            name: policy.name.clone(),
            always: valid.is_some_and(|valid| {
                matches!(windows::opening(&valid.windows, snapshot.now), windows::Opening::Always)
            }),
            foreseen: seen.as_ref().is_some_and(|seen| !seen.cut),
            done_at: seen.as_ref().and_then(|seen| *seen.policies.get(index)?).filter(|_| !done.is_empty()),
            windows: windows
                .map(|one| Window { start: one.start, end: one.end, in_its_zone: one.in_its_zone, nodes: one.done })
                .collect(),
        }
    });
    let note = match &seen {
        None => Some(format!(
            "No forecast is made here for more than {most} nodes: `bascule forecast` makes one, and so does the page of `bascule dashboard`."
        )),
        Some(seen) if seen.cut => {
            Some("No forecast: too many steps lie ahead. `bascule forecast POLICY` looks further.".to_owned())
        }
        Some(_) => None,
    };
    Calendar { made_at: snapshot.now, policies: policies.collect(), note }
}
