//! The live report: whoever leads serves what its last plan says, so that people need not wait for the objects.
//!
//! Nothing is kept but pointers to the last plan's own facts and report, a forecast, and what health gates answered last; the answer is
//! made when it is asked for. Readers come through the API server's pod proxy with their own rights; the port itself asks for none, as that of the metrics
//! (docs/decisions/0016-the-leader-serves-its-report.md).

mod dashboard;
mod foreseen;
mod gates;
mod make;

use crate::{gather::Caches, health::Heard, pulse::Pulse};
use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bascule_api::NoReport;
use bascule_planner::{Report, Snapshot};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::Semaphore;

/// How many reports are made at once; each takes about a megabyte of memory for 5,000 nodes while it is sent.
const AT_ONCE: usize = 2;
/// How long a reader waits for its turn.
const PATIENCE: Duration = Duration::from_secs(2);

/// What there is to be told. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Live(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<Known>,
    plans: AtomicU64,
    turns: Semaphore,
    foreseen: foreseen::Foreseen,
    pulse: Pulse,
}

#[derive(Debug, Clone)]
enum Known {
    /// Somebody else leads, or nobody.
    Follows { leader: Option<Arc<str>> },
    /// This replica leads and has not planned yet.
    Leads,
    /// This replica leads.
    Planned(Box<Stamped>),
}

/// A plan with its number.
#[derive(Debug, Clone)]
struct Stamped {
    plan: Planned,
    stamp: u64,
}

impl Known {
    /// Why there is no report.
    fn absence(&self) -> String {
        match self {
            Self::Follows { leader: Some(leader) } => format!("this replica does not lead: {leader} does"),
            Self::Follows { leader: None } => "this replica does not lead, and does not know who does".to_owned(),
            Self::Leads | Self::Planned(_) => {
                "this replica has just begun to lead and has not planned yet: try again in a moment".to_owned()
            }
        }
    }
}

/// The last plan.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Its facts.
    pub snapshot: Arc<Snapshot>,
    /// What it says.
    pub report: Arc<Report>,
    /// Where it is looked up since when a node waits.
    pub world: Caches,
    /// The replica's name in the Lease.
    pub identity: Arc<str>,
    /// What health gates answered last. Who reads the report has those asked whose answer is old.
    pub gates: Heard,
}

impl Default for Live {
    fn default() -> Self {
        Self::beating(Pulse::default())
    }
}

impl Live {
    /// Nothing to be told yet. To lead and to have planned are signs of life.
    #[must_use]
    pub fn beating(pulse: Pulse) -> Self {
        let state = Mutex::new(Known::Follows { leader: None });
        Self(Arc::new(Inner {
            state,
            plans: AtomicU64::new(0),
            turns: Semaphore::new(AT_ONCE),
            foreseen: Default::default(),
            pulse,
        }))
    }

    /// This replica does not lead; what it knew is forgotten.
    pub fn follows(&self, leader: Option<Arc<str>>) {
        self.0.pulse.rests();
        self.0.foreseen.forget();
        self.set(Known::Follows { leader });
    }

    /// This replica leads from now on.
    pub fn leads(&self) {
        self.0.pulse.acts();
        self.set(Known::Leads);
    }

    /// There is a new plan, which was carried out as far as it can be now.
    pub fn planned(&self, plan: Planned) {
        self.0.pulse.carried_out();
        let stamp = self.0.plans.fetch_add(1, Ordering::Relaxed);
        self.set(Known::Planned(Box::new(Stamped { plan, stamp })));
    }

    fn set(&self, state: Known) {
        *self.0.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn get(&self) -> Known {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Answers with the report, or says why there is none and who has one.
pub(crate) async fn answer(State(live): State<Live>) -> Response {
    let Ok(Ok(_turn)) = tokio::time::timeout(PATIENCE, live.0.turns.acquire()).await else {
        return none("too many ask for the report at once: try again in a moment", None);
    };
    let known = live.get();
    match known {
        Known::Planned(plan) => {
            let ahead = live.0.foreseen.of(&plan.plan).await;
            let made = move || {
                let mut report = make::report(&plan.plan);
                report.health_gates = plan.plan.gates.read(gates::present(&plan.plan));
                if let Some(ahead) = ahead {
                    foreseen::put(&mut report, &ahead);
                }
                serde_json::to_vec(&report)
            };
            match tokio::task::spawn_blocking(made).await {
                Ok(Ok(body)) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
                _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            }
        }
        Known::Follows { leader: Some(ref leader) } => none(&known.absence(), Some(leader.to_string())),
        Known::Follows { leader: None } | Known::Leads => none(&known.absence(), None),
    }
}

fn none(message: &str, leader: Option<String>) -> Response {
    let body = NoReport { message: message.to_owned(), leader };
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_api::LiveReport;

    async fn ask(live: &Live) -> (StatusCode, Vec<u8>) {
        let response = answer(State(live.clone())).await;
        let status = response.status();
        (status, axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec())
    }

    pub(super) fn plan() -> Planned {
        let changes = Arc::new(tokio::sync::watch::Sender::new(0));
        Planned {
            snapshot: Arc::default(),
            report: Arc::default(),
            world: Caches::new(changes, &crate::clock::Clock::system()),
            identity: Arc::from("first"),
            gates: Heard::new(crate::clock::Clock::system()),
        }
    }

    #[tokio::test]
    async fn a_follower_says_who_leads_and_a_leader_that_was_deposed_tells_nothing_old() {
        let live = Live::default();
        assert_eq!(ask(&live).await.0, StatusCode::SERVICE_UNAVAILABLE);
        live.leads();
        assert_eq!(ask(&live).await.0, StatusCode::SERVICE_UNAVAILABLE);
        live.planned(plan());
        let (status, body) = ask(&live).await;
        let report: LiveReport = serde_json::from_slice(&body).unwrap();
        assert_eq!((status, report.planned_by.as_str()), (StatusCode::OK, "first"));
        live.follows(Some(Arc::from("second")));
        let (status, body) = ask(&live).await;
        let told: NoReport = serde_json::from_slice(&body).unwrap();
        assert_eq!((status, told.leader.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("second")));
    }

    /// Nobody waits for a gate here, and its server may be dead: the answer comes at once, and says that it is being asked.
    #[tokio::test]
    async fn a_report_has_every_gate_whether_a_node_waits_for_it_or_not_and_waits_for_none() {
        let live = Live::default();
        let snapshot = Snapshot { policies: vec![gates::tests::policy("workers")], ..Snapshot::default() };
        live.planned(Planned { snapshot: Arc::new(snapshot), ..plan() });
        let (status, body) = ask(&live).await;
        let report: LiveReport = serde_json::from_slice(&body).unwrap();
        let [gate] = &report.health_gates[..] else { panic!("{report:?}") };
        assert_eq!((status, gate.policy, gate.gate.as_str()), (StatusCode::OK, 0, "ceph"));
        assert!(gate.asking && gate.at.is_none() && gate.holds.is_none(), "{gate:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn more_readers_than_turns_are_sent_away_after_a_while() {
        let live = Live::default();
        live.planned(plan());
        let _held = live.0.turns.acquire_many(AT_ONCE as u32).await.unwrap();
        let (status, body) = ask(&live).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(String::from_utf8(body).unwrap().contains("too many"));
    }
}
