//! Keeps asking the gates that the plan has questions about, and remembers the answers. Prometheus and HTTP can't be
//! watched, and objects of any kind are not (docs/decisions/0043-gates-read-objects-and-watch-none.md), so this is the one place
//! that polls; it does so only while somebody waits for the answer.

use super::{Asker, GateAnswer as Answer};
use crate::{clock::Clock, metrics::Metrics};
use bascule_api::{Gate, Health, Time};
use bascule_planner::{plan::GateQuestion, snapshot::GateAnswer};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Semaphore, watch},
    task::AbortHandle,
};

/// How often a gate is asked while its answer is needed; where many are, each comes in its turn.
const EVERY: Duration = Duration::from_secs(3);
/// Over all gates one is asked in so much time, once a few dozen are needed.
const EACH: Duration = Duration::from_millis(60);
/// The longest between two answers to one question. The planner takes no answer that is older than two minutes.
const SELDOM: Duration = Duration::from_secs(60);
/// How many gates are asked at once.
const AT_ONCE: usize = 16;
/// Longest message that is kept.
const MESSAGE: usize = 512;

/// A gate of a policy, asked for the policy or for one node.
pub type GateKey = GateQuestion;

/// What is asked: the gate and where to ask it.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The policy's health settings, which name the Prometheus server.
    pub health: Health,
    /// The gate.
    pub gate: Gate,
}

/// The gates that are asked now, and their answers.
pub struct GateBoard {
    asker: Asker,
    clock: Clock,
    metrics: Metrics,
    changes: Arc<watch::Sender<u64>>,
    permits: Arc<Semaphore>,
    answers: Answers,
    asking: BTreeMap<GateKey, Asking>,
    /// How many questions there are.
    questions: Arc<AtomicUsize>,
}

type Answers = Arc<Mutex<BTreeMap<GateKey, GateAnswer>>>;

struct Asking {
    asked: Asked,
    task: AbortHandle,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::fmt::Debug for GateBoard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.asking.keys()).finish()
    }
}

impl GateBoard {
    /// Asks nothing yet. `changes` is told when an answer changes.
    #[must_use]
    pub fn new(asker: Asker, clock: Clock, metrics: Metrics, changes: Arc<watch::Sender<u64>>) -> Self {
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        Self {
            asker,
            clock,
            metrics,
            changes,
            permits,
            answers: Arc::default(),
            asking: BTreeMap::new(),
            questions: Arc::default(),
        }
    }

    /// Asks these from now on, and no others. Answers of others are forgotten: they would be stale when needed again.
    pub fn set(&mut self, questions: BTreeMap<GateKey, Asked>) {
        self.questions.store(questions.len(), Ordering::Relaxed);
        self.asking.retain(|key, asking| questions.get(key).is_some_and(|asked| *asked == asking.asked));
        lock(&self.answers).retain(|key, _| self.asking.contains_key(key));
        for (key, asked) in questions {
            if self.asking.contains_key(&key) {
                continue;
            }
            let task = tokio::spawn(ask_again_and_again(
                key.clone(),
                asked.clone(),
                self.asker.clone(),
                Board {
                    clock: self.clock.clone(),
                    metrics: self.metrics.clone(),
                    changes: Arc::clone(&self.changes),
                    permits: Arc::clone(&self.permits),
                    answers: Arc::clone(&self.answers),
                    questions: Arc::clone(&self.questions),
                },
            ));
            self.asking.insert(key, Asking { asked, task: task.abort_handle() });
        }
    }

    /// The last answers.
    #[must_use]
    pub fn answers(&self) -> Vec<GateAnswer> {
        lock(&self.answers).values().cloned().collect()
    }
}

struct Board {
    clock: Clock,
    metrics: Metrics,
    changes: Arc<watch::Sender<u64>>,
    permits: Arc<Semaphore>,
    answers: Answers,
    questions: Arc<AtomicUsize>,
}

/// Between two answers to one of so many questions.
fn pause(questions: usize) -> Duration {
    EACH.saturating_mul(u32::try_from(questions).unwrap_or(u32::MAX)).clamp(EVERY, SELDOM)
}

fn lock(answers: &Answers) -> std::sync::MutexGuard<'_, BTreeMap<GateKey, GateAnswer>> {
    answers.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn ask_again_and_again(key: GateKey, asked: Asked, asker: Asker, board: Board) {
    loop {
        let answer = {
            let Ok(_permit) = board.permits.acquire().await else { return };
            asker.ask(&asked.health, &asked.gate, key.node.as_deref()).await
        };
        board.metrics.asked(match &answer {
            Answer::Passed => "passed",
            Answer::Failed(_) => "failed",
            Answer::Unknown(_) => "unknown",
        });
        board.take(&key, &answer);
        tokio::time::sleep(pause(board.questions.load(Ordering::Relaxed))).await;
    }
}

impl Board {
    fn take(&self, key: &GateKey, answer: &Answer) {
        let now = Time::new(self.clock.now());
        let mut answers = lock(&self.answers);
        let before = answers.get(key);
        let message: String = answer.message().chars().take(MESSAGE).collect();
        let known = !matches!(answer, Answer::Unknown(_));
        let same = before.filter(|before| before.passes == answer.passed() && before.known == known);
        let news = same.is_none_or(|before| before.message != message);
        let since = same.map_or(now, |before| before.since);
        let (policy, gate, node) = (key.policy.clone(), key.gate.clone(), key.node.clone());
        answers.insert(
            key.clone(),
            GateAnswer { policy, gate, node, passes: answer.passed(), known, message, at: now, since },
        );
        drop(answers);
        if news {
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_questions_are_asked_in_turn_and_none_too_seldom() {
        assert_eq!([1, 50].map(pause), [EVERY; 2]);
        assert_eq!(pause(500), Duration::from_secs(30), "17 a second");
        assert_eq!(pause(100_000), SELDOM);
    }
}
