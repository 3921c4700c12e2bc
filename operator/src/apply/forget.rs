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
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};
use tokio::{
    task::{Id, JoinSet},
    time::Instant,
};

/// How many are removed at once.
const AT_ONCE: usize = 4;
/// How long none is tried after one that failed.
const AGAIN: Duration = Duration::from_secs(15 * 60);

/// What a removal came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The API server has it no more.
    Gone,
    /// It is another by now, or holds something: a newer plan knows.
    Left,
    /// It can't be done now.
    Failed,
}

/// One Freeze and no other of its name.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Record {
    name: String,
    uid: String,
}

/// The removals under way. Dropping it gives them up.
#[derive(Debug, Default)]
pub(super) struct Forgetting {
    tasks: JoinSet<Outcome>,
    under_way: HashMap<Id, Record>,
    /// Gone, and still known here: the watch is late, and plans name them again.
    gone: HashSet<Record>,
    not_before: Option<Instant>,
}

impl Forgetting {
    /// Takes note of what ended and of what is known no more, and says how many may be begun now.
    fn room(&mut self, now: Instant, known: impl Fn(&Record) -> bool) -> usize {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            let (id, outcome) = match ended {
                Ok(ended) => ended,
                Err(error) => {
                    tracing::error!(error = crate::one_line(&error), "the removal of a Freeze broke off");
                    (error.id(), Outcome::Failed)
                }
            };
            let record = self.under_way.remove(&id);
            match outcome {
                Outcome::Gone => self.gone.extend(record),
                Outcome::Left => {}
                Outcome::Failed => self.not_before = Some(now + AGAIN),
            }
        }
        self.gone.retain(known);
        if self.not_before.is_some_and(|at| now < at) { 0 } else { AT_ONCE.saturating_sub(self.under_way.len()) }
    }

    fn begin(&mut self, record: Record, removal: impl Future<Output = Outcome> + Send + 'static) {
        let task = self.tasks.spawn(removal);
        self.under_way.insert(task.id(), record);
    }

    fn has(&self, record: &Record) -> bool {
        self.gone.contains(record) || self.under_way.values().any(|one| one == record)
    }
}

impl Writer {
    /// Begins to remove what a plan says, as far as there is room. The rest stands in the next plan too.
    pub(super) fn forget(&self, plan: &Plan, forgetting: &mut Forgetting) {
        let uid = |name: &str| self.world.freezes.get(&Key::cluster(name)).map(|known| known.1.clone());
        let known = |record: &Record| uid(&record.name).is_some_and(|uid| uid == record.uid);
        let mut room = forgetting.room(Instant::now(), known);
        for step in &plan.steps {
            let Action::ForgetFreeze { freeze } = &step.action else { continue };
            // One that is known no more has gone meanwhile.
            let Some(uid) = uid(freeze) else { continue };
            let record = Record { name: freeze.clone(), uid };
            if room == 0 || forgetting.has(&record) {
                continue;
            }
            room -= 1;
            let (writer, step, name) = (self.clone(), step.clone(), freeze.clone());
            forgetting.begin(record, async move {
                let removed = super::in_time(&step, writer.remove(&name, &step)).await;
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

    /// Counts and logs.
    fn note_removal(&self, freeze: &str, step: &Step, removed: &Result<(), ApplyError>) -> Outcome {
        let action = step.action.name();
        match removed {
            Ok(()) => self.metrics.acted(action, "done"),
            Err(error) => self.metrics.acted(action, error.category()),
        }
        match removed {
            Ok(()) | Err(ApplyError::Gone(_)) => Outcome::Gone,
            Err(ApplyError::Conflict(_)) => Outcome::Left,
            Err(error) => {
                let minutes = AGAIN.as_secs() / 60;
                tracing::warn!(
                    action,
                    freeze,
                    error = crate::one_line(error),
                    "a record is not removed, and none is for {minutes} minutes"
                );
                Outcome::Failed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> Record {
        Record { name: name.to_owned(), uid: "1".to_owned() }
    }

    /// Where everything is still known.
    fn room(forgetting: &mut Forgetting) -> usize {
        forgetting.room(Instant::now(), |_| true)
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_at_a_time_and_none_for_a_while_after_one_that_failed() {
        let mut forgetting = Forgetting::default();
        assert_eq!(room(&mut forgetting), AT_ONCE);
        forgetting.begin(record("a"), async { Outcome::Gone });
        forgetting.begin(record("b"), std::future::pending());
        assert!(forgetting.has(&record("a")) && !forgetting.has(&record("c")));
        assert_eq!(room(&mut forgetting), AT_ONCE - 2);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(room(&mut forgetting), AT_ONCE - 1, "the first has ended");
        forgetting.begin(record("c"), async { Outcome::Failed });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(room(&mut forgetting), 0);
        tokio::time::sleep(AGAIN - Duration::from_secs(1)).await;
        assert_eq!(room(&mut forgetting), 0, "from when it was noted");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(room(&mut forgetting), AT_ONCE - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_gone_is_not_removed_again_while_the_watch_is_late() {
        let mut forgetting = Forgetting::default();
        forgetting.begin(record("a"), async { Outcome::Gone });
        forgetting.begin(record("b"), async { Outcome::Left });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(room(&mut forgetting), AT_ONCE);
        assert!(forgetting.has(&record("a")) && !forgetting.has(&record("b")));
        let another = Record { uid: "2".to_owned(), ..record("a") };
        assert!(!forgetting.has(&another), "of its name, and not it");
        assert_eq!(forgetting.room(Instant::now(), |_| false), AT_ONCE);
        assert!(!forgetting.has(&record("a")));
    }
}
