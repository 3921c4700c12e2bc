//! What lies ahead, for people who ask for the report: made when somebody reads, and kept for a while.
//!
//! A forecast costs as much as many plans, and plans come several times a second while much happens: so no reader waits long
//! for one, only one is made at a time, and the last one stands in for it. The dashboard asks seldom, and waits.

use super::Planned;
use bascule_api::{LiveForecast, LiveReport, Time, Version};
use bascule_dashboard::{Calendar, FORESEEN_NODES, PolicyCalendar, calendar};
use bascule_planner::Snapshot;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
};

/// How old a forecast may be before another one is made, in seconds.
const FRESH: i64 = 30;
/// How old one may be that is still told, in seconds.
const TOLD: i64 = 600;
/// How long a reader waits for a new one: less than a person notices.
const PATIENCE: Duration = Duration::from_millis(150);

/// What a forecast rests on. With another target, policy, freeze or rollback it is one of something else, however young.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Basis {
    /// Generation, target and what is blocked, by policy.
    policies: Vec<(String, i64, Option<Version>, usize)>,
    /// The freezes that hold somebody.
    freezes: Vec<String>,
    /// The rollbacks under way.
    rollbacks: Vec<String>,
}

impl Basis {
    fn of(snapshot: &Snapshot) -> Self {
        let policies = snapshot.policies.iter().map(|policy| {
            let target = policy.status.target.as_ref().map(|target| target.version.clone());
            (policy.name.clone(), policy.generation, target, policy.status.blocked.len())
        });
        let freezes = snapshot.freezes.iter().filter(|freeze| freeze.is_active(snapshot.now));
        let rollbacks = snapshot.rollbacks.iter().filter(|rollback| rollback.status.completed_at.is_none());
        Self {
            policies: policies.collect(),
            freezes: freezes.map(|freeze| freeze.name.clone()).collect(),
            rollbacks: rollbacks.map(|rollback| rollback.name.clone()).collect(),
        }
    }
}

#[derive(Debug, Default)]
struct Last {
    made: Option<(Basis, Arc<Calendar>)>,
    /// How often what was foreseen has been forgotten: what began before that is not kept.
    forgotten: u64,
}

/// The last forecast. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Foreseen(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    last: Mutex<Last>,
    turn: Arc<Semaphore>,
}

impl Default for Foreseen {
    fn default() -> Self {
        Self(Arc::new(Inner { last: Mutex::default(), turn: Arc::new(Semaphore::new(1)) }))
    }
}

impl Foreseen {
    /// What was foreseen is of somebody who led before.
    pub(super) fn forget(&self) {
        let mut last = self.lock();
        *last = Last { made: None, forgotten: last.forgotten.wrapping_add(1) };
    }

    fn lock(&self) -> MutexGuard<'_, Last> {
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last(&self, basis: &Basis, now: Time, oldest: i64) -> Option<Arc<Calendar>> {
        let last = self.lock().made.clone();
        let fits = last.filter(|(of, made)| of == basis && now.seconds_since(made.made_at) < oldest);
        fits.map(|(_, made)| made)
    }

    fn keep(&self, basis: Basis, made: &Arc<Calendar>, forgotten: u64) {
        let mut last = self.lock();
        if last.forgotten == forgotten {
            last.made = Some((basis, Arc::clone(made)));
        }
    }

    /// The forecast for a plan: a new one if it is made soon, else the last one that is not too old.
    pub(super) async fn of(&self, plan: &Planned) -> Option<Arc<Calendar>> {
        let (now, basis) = (plan.snapshot.now, Basis::of(&plan.snapshot));
        if let Some(fresh) = self.last(&basis, now, FRESH) {
            return Some(fresh);
        }
        if let Ok(turn) = Arc::clone(&self.0.turn).try_acquire_owned() {
            let made = self.make(plan, basis.clone(), turn);
            // Where it takes longer, it is made for the next reader.
            if let Ok(Ok(made)) = tokio::time::timeout(PATIENCE, made).await {
                return Some(made);
            }
        }
        self.last(&basis, now, TOLD)
    }

    /// The same for who can wait: one that is being made is waited for, and not made twice.
    pub(super) async fn in_time(&self, plan: &Planned) -> Option<Arc<Calendar>> {
        let (now, basis) = (plan.snapshot.now, Basis::of(&plan.snapshot));
        let turn = Arc::clone(&self.0.turn).acquire_owned().await.ok()?;
        if let Some(fresh) = self.last(&basis, now, FRESH) {
            return Some(fresh);
        }
        self.make(plan, basis, turn).await.ok()
    }

    fn make(&self, plan: &Planned, basis: Basis, turn: OwnedSemaphorePermit) -> JoinHandle<Arc<Calendar>> {
        let (foreseen, snapshot, forgotten) = (self.clone(), Arc::clone(&plan.snapshot), self.lock().forgotten);
        tokio::task::spawn_blocking(move || {
            let made = Arc::new(calendar(&snapshot, FORESEEN_NODES));
            foreseen.keep(basis, &made, forgotten);
            drop(turn);
            made
        })
    }
}

/// Puts into the report what lies ahead of its policies.
pub(super) fn put(report: &mut LiveReport, calendar: &Calendar) {
    for policy in &mut report.policies {
        let ahead = calendar.policies.iter().find(|one| one.name == policy.name && one.foreseen);
        policy.forecast = ahead.map(forecast);
    }
}

fn forecast(ahead: &PolicyCalendar) -> LiveForecast {
    LiveForecast { in_window: ahead.windows.first().map(|window| window.nodes), done_at: ahead.done_at }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::tests::plan;
    use bascule_dashboard::Window;

    fn at(second: i64) -> Time {
        Time::new(chrono::DateTime::from_timestamp(second, 0).unwrap())
    }

    #[tokio::test]
    async fn a_forecast_is_made_once_for_a_while_and_never_outlives_the_leader() {
        let of = |second| {
            let mut plan = plan();
            plan.snapshot = Arc::new(bascule_planner::Snapshot { now: at(second), ..Default::default() });
            plan
        };
        let foreseen = Foreseen::default();
        let first = until_made(&foreseen, &of(1_000)).await;
        assert_eq!(first.made_at, at(1_000));
        assert_eq!(foreseen.of(&of(1_029)).await.unwrap().made_at, at(1_000), "fresh enough");
        // Nobody is let wait while another makes one.
        let held = Arc::clone(&foreseen.0.turn).try_acquire_owned().unwrap();
        assert_eq!(foreseen.of(&of(1_100)).await.unwrap().made_at, at(1_000));
        assert!(foreseen.of(&of(1_000 + 600)).await.is_none(), "too old to be told");
        drop(held);
        assert_eq!(until_made(&foreseen, &of(1_601)).await.made_at, at(1_601));
        // One that was begun before is not told by whoever leads next.
        let begun = foreseen.lock().forgotten;
        let made = until_made(&foreseen, &of(2_300)).await;
        foreseen.forget();
        foreseen.keep(Basis::of(&of(2_300).snapshot), &made, begun);
        let _held = Arc::clone(&foreseen.0.turn).try_acquire_owned().unwrap();
        assert!(foreseen.of(&of(2_301)).await.is_none());
    }

    /// A release, a freeze or a changed policy makes what was foreseen a moment ago untrue.
    #[tokio::test]
    async fn a_forecast_of_something_else_is_not_told() {
        let with = |second, change: &dyn Fn(&mut bascule_planner::Snapshot)| {
            let mut plan = plan();
            let mut snapshot = (*plan.snapshot).clone();
            snapshot.now = at(second);
            change(&mut snapshot);
            plan.snapshot = Arc::new(snapshot);
            plan
        };
        let foreseen = Foreseen::default();
        until_made(&foreseen, &with(1_000, &|_| {})).await;
        let _held = Arc::clone(&foreseen.0.turn).try_acquire_owned().unwrap();
        assert!(foreseen.of(&with(1_001, &|_| {})).await.is_some());
        let freeze = bascule_planner::snapshot::FreezeFacts {
            name: "stop".to_owned(),
            generation: 1,
            created_at: at(1_000),
            kept_elsewhere: false,
            spec: serde_json::from_value(serde_json::json!({"reason": "incident", "duration": "1h"})).unwrap(),
            status: bascule_api::FreezeStatus::default(),
        };
        let frozen = with(1_001, &|snapshot| snapshot.freezes.push(Arc::new(freeze.clone())));
        assert!(foreseen.of(&frozen).await.is_none());
    }

    /// Each holds what it copies: two at once would take twice the memory.
    #[tokio::test]
    async fn who_can_wait_takes_what_is_being_made() {
        let mut plan = plan();
        plan.snapshot = Arc::new(bascule_planner::Snapshot { now: at(1_000), ..Default::default() });
        let foreseen = Foreseen::default();
        let held = Arc::clone(&foreseen.0.turn).try_acquire_owned().unwrap();
        let mut waiting = std::pin::pin!(foreseen.in_time(&plan));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        let made = Arc::new(Calendar { made_at: at(1_000), policies: Vec::new(), note: None });
        foreseen.keep(Basis::of(&plan.snapshot), &made, 0);
        drop(held);
        assert!(Arc::ptr_eq(&waiting.await.unwrap(), &made));
        let alone = Foreseen::default();
        let first = alone.in_time(&plan).await.unwrap();
        assert!(Arc::ptr_eq(&alone.of(&plan).await.unwrap(), &first), "and others take what it made");
    }

    async fn until_made(foreseen: &Foreseen, plan: &Planned) -> Arc<Calendar> {
        loop {
            match foreseen.of(plan).await {
                Some(made) if made.made_at == plan.snapshot.now => return made,
                _ => tokio::task::yield_now().await,
            }
        }
    }

    #[test]
    fn what_was_not_foreseen_is_not_told() {
        let window = Window { start: at(0), end: None, in_its_zone: String::new(), nodes: 3 };
        let ahead = |name: &str, foreseen: bool| PolicyCalendar {
            name: name.to_owned(),
            always: false,
            foreseen,
            done_at: Some(at(60)),
            windows: vec![window.clone()],
        };
        let calendar = Calendar { made_at: at(0), policies: vec![ahead("a", true), ahead("b", false)], note: None };
        let policies = ["a", "b", "new"]
            .map(|name| serde_json::from_value(serde_json::json!({"name": name, "status": {}})).unwrap());
        let mut report = LiveReport { policies: policies.into(), ..LiveReport::default() };
        put(&mut report, &calendar);
        let told: Vec<_> = report.policies.iter().map(|policy| policy.forecast).collect();
        assert_eq!(told, [Some(LiveForecast { in_window: Some(3), done_at: Some(at(60)) }), None, None]);
    }
}
