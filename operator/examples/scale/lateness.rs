//! How late the objects' reasons are against the leader's own report: for each node how long its NodeUpdate gives another
//! reason than the last plan does. Who reads objects only (`kubectl get`) is that far behind.

use crate::measure::at;
use bascule_api::{LIVE_REPORT_PATH, LiveReport, NodeUpdate, WaitReason};
use futures::StreamExt as _;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How often the report is read.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Seen {
    /// What the object says.
    written: HashMap<String, WaitReason>,
    /// Since when it has not said what the report says.
    differs: HashMap<String, (Instant, WaitReason, WaitReason)>,
    /// Seconds of each difference that ended.
    ended: Vec<f64>,
    longest: Option<(f64, String)>,
    /// How often they were compared since it was told last.
    compared: u32,
}

impl Seen {
    fn compare(&mut self, report: &LiveReport, now: Instant) {
        self.compared += 1;
        for node in &report.nodes {
            let (Some(planned), Some(written)) = (report.wait(node), self.written.get(&node.name).copied()) else {
                continue;
            };
            if planned.reason != written {
                self.differs.entry(node.name.clone()).or_insert((now, planned.reason, written));
            } else if let Some((since, planned, before)) = self.differs.remove(&node.name) {
                let seconds = (now - since).as_secs_f64();
                self.ended.push(seconds);
                if self.longest.as_ref().is_none_or(|(longest, _)| seconds > *longest) {
                    self.longest = Some((seconds, format!("{}: {planned}, written {before}", node.name)));
                }
            }
        }
    }
}

/// Looks on until it is dropped.
pub(crate) struct Lateness {
    seen: Arc<Mutex<Seen>>,
    _tasks: JoinSet<()>,
}

impl Lateness {
    /// Watches the objects, and reads the report of the operator that listens there.
    pub(crate) fn start(client: Client, listen: &str) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let mut tasks = JoinSet::new();
        let written = Arc::clone(&seen);
        tasks.spawn(async move {
            let updates: Api<NodeUpdate> = Api::all(client);
            let mut events = pin!(watcher(updates, watcher::Config::default()).default_backoff().applied_objects());
            while let Some(event) = events.next().await {
                let Ok(update) = event else { continue };
                let reason = update.status.as_ref().and_then(|status| Some(status.rollout.as_ref()?.reason));
                if let Some(reason) = reason {
                    written.lock().unwrap().written.insert(update.name_any(), reason);
                }
            }
        });
        let (url, compared) = (format!("http://{listen}{LIVE_REPORT_PATH}"), Arc::clone(&seen));
        tasks.spawn(async move {
            let mut ticks = tokio::time::interval(LOOK);
            loop {
                ticks.tick().await;
                let Ok(answer) = reqwest::get(&url).await else { continue };
                let Ok(report) = answer.json::<LiveReport>().await else { continue };
                compared.lock().unwrap().compare(&report, Instant::now());
            }
        });
        Self { seen, _tasks: tasks }
    }

    /// What was seen since the last call.
    pub(crate) fn tell(&self, during: &str) {
        let mut seen = self.seen.lock().unwrap();
        let now = Instant::now();
        let mut seconds = std::mem::take(&mut seen.ended);
        let longest = seen.longest.take().map_or_else(String::new, |(_, which)| format!(" ({which})"));
        seconds.sort_by(f64::total_cmp);
        let open: Vec<f64> = seen.differs.values().map(|(since, ..)| (now - *since).as_secs_f64()).collect();
        assert!(std::mem::take(&mut seen.compared) > 0, "the leader's report was never read, {during}");
        let ended = if seconds.is_empty() {
            "never".to_owned()
        } else {
            let [median, p99, most] = [50, 99, 100].map(|percent| at(&seconds, percent));
            format!("{} times, median {median:.1} s, p99 {p99:.1} s, most {most:.1} s{longest}", seconds.len())
        };
        println!(
            "an object says another reason than the plan, {during}: {ended}; {} still, for {:.1} s at most",
            open.len(),
            open.iter().copied().fold(0.0, f64::max),
        );
    }
}
