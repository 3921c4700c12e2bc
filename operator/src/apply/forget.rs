//! Removing the records of Freezes that ended long ago: a few at a time, and nothing waits for it. Where it can't be done (a Role
//! from before it was a right) it is told now and then, and everything else goes on.

use super::{ApplyError, Writer};
use crate::{
    events::{About, Notice},
    gather::Key,
};
use bascule_api::Freeze;
use bascule_planner::{Action, Plan, Step};
use kube::{
    Api,
    api::{DeleteParams, Preconditions},
};
use std::{collections::HashMap, time::Duration};
use tokio::{
    task::{Id, JoinSet},
    time::Instant,
};

/// How many are removed at once.
const AT_ONCE: usize = 4;
/// How long none is tried after one that failed.
const AGAIN: Duration = Duration::from_secs(15 * 60);

/// The removals under way. Dropping it gives them up.
#[derive(Debug, Default)]
pub(super) struct Forgetting {
    tasks: JoinSet<bool>,
    names: HashMap<Id, String>,
    not_before: Option<Instant>,
}

impl Forgetting {
    /// Takes note of what ended, and says how many may be begun now.
    fn room(&mut self, now: Instant) -> usize {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            let (id, done) = match ended {
                Ok(ended) => ended,
                Err(error) => (error.id(), false),
            };
            self.names.remove(&id);
            if !done {
                self.not_before = Some(now + AGAIN);
            }
        }
        if self.not_before.is_some_and(|at| now < at) { 0 } else { AT_ONCE.saturating_sub(self.names.len()) }
    }

    fn begin(&mut self, freeze: &str, removal: impl Future<Output = bool> + Send + 'static) {
        let task = self.tasks.spawn(removal);
        self.names.insert(task.id(), freeze.to_owned());
    }

    fn has(&self, freeze: &str) -> bool {
        self.names.values().any(|one| one == freeze)
    }
}

impl Writer {
    /// Begins to remove what a plan says, as far as there is room. The rest stands in the next plan too.
    pub(super) fn forget(&self, plan: &Plan, forgetting: &mut Forgetting) {
        let mut room = forgetting.room(Instant::now());
        for step in &plan.steps {
            let Action::ForgetFreeze { freeze } = &step.action else { continue };
            if room == 0 || forgetting.has(freeze) {
                continue;
            }
            room -= 1;
            let (writer, step, name) = (self.clone(), step.clone(), freeze.clone());
            forgetting.begin(freeze, async move {
                let removed = match tokio::time::timeout(super::SLOW, writer.remove(&name, &step)).await {
                    Ok(removed) => removed,
                    Err(_) => Err(ApplyError::TooSlow { action: step.action.name() }),
                };
                writer.note_removal(&name, &step, &removed)
            });
        }
    }

    async fn remove(&self, name: &str, step: &Step) -> Result<(), ApplyError> {
        let gone = || ApplyError::Gone(format!("Freeze {name}"));
        let known = self.world.freezes.get(&Key::cluster(name)).ok_or_else(gone)?;
        // Another of its name may hold something by now.
        if known.0.status.ended_at.is_none() {
            return Err(ApplyError::Conflict(format!("Freeze {name}")));
        }
        let it = Preconditions { uid: Some(known.1.clone()), resource_version: None };
        let params = DeleteParams { preconditions: Some(it), ..DeleteParams::default() };
        let freezes: Api<Freeze> = Api::all(self.client.clone());
        let object = format!("Freeze {name}");
        freezes.delete(name, &params).await.map_err(|error| ApplyError::of(object, error))?;
        self.metrics.wrote("Freeze");
        self.events.tell(Notice {
            about: About::own("Freeze", name, &known.1),
            warning: false,
            reason: "RecordRemoved",
            action: step.action.name(),
            note: step.says.clone(),
            related: None,
        });
        self.announce(step);
        Ok(())
    }

    /// Whether it is gone, one way or another.
    fn note_removal(&self, freeze: &str, step: &Step, removed: &Result<(), ApplyError>) -> bool {
        let action = step.action.name();
        match removed {
            Ok(()) => self.metrics.acted(action, "done"),
            Err(error) => self.metrics.acted(action, error.category()),
        }
        match removed {
            Ok(()) | Err(ApplyError::Gone(_) | ApplyError::Conflict(_)) => true,
            Err(error) => {
                let minutes = AGAIN.as_secs() / 60;
                tracing::warn!(
                    action,
                    freeze,
                    error = crate::one_line(error),
                    "a record is not removed, and none is for {minutes} minutes"
                );
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_few_at_a_time_and_none_for_a_while_after_one_that_failed() {
        let mut forgetting = Forgetting::default();
        assert_eq!(forgetting.room(Instant::now()), AT_ONCE);
        forgetting.begin("a", async { true });
        forgetting.begin("b", std::future::pending());
        assert!(forgetting.has("a") && !forgetting.has("c"));
        assert_eq!(forgetting.room(Instant::now()), AT_ONCE - 2);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(forgetting.room(Instant::now()), AT_ONCE - 1, "the first has ended");
        forgetting.begin("c", async { false });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(forgetting.room(Instant::now()), 0);
        tokio::time::sleep(AGAIN - Duration::from_secs(1)).await;
        assert_eq!(forgetting.room(Instant::now()), 0, "from when it was noted");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(forgetting.room(Instant::now()), AT_ONCE - 1);
    }
}
