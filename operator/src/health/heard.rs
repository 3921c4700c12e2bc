//! What each health gate answered last, for people. A gate is asked while a node waits for its answer, so on a quiet fleet nobody would
//! know of one that can't be read before the night in which every node waits for it. Whoever reads the live report has those gates
//! asked whose last answer is old, at a bounded rate, and waits for none of them. The planner hears nothing of such an answer.

use super::{Answered, Asked, Asker, GateAnswer as Answer, GateKey, kept};
use crate::{clock::Clock, metrics::Metrics};
use bascule_api::{LiveGate, Time};
use futures::StreamExt as _;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// For how long an answer that passes serves people.
const FRESH: Duration = Duration::from_secs(300);
/// The same of another, which somebody may be mending; and the shortest between two questions to one gate.
const AGAIN: Duration = Duration::from_secs(60);
/// How many gates are asked for people at once.
const AT_ONCE: usize = 8;

/// A gate of a policy as it is now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Present {
    /// The policy, as an index into those of the plan.
    pub(crate) policy: usize,
    /// Its name, and a node of the policy for one that speaks of nodes: they have it in common whether it can be read.
    pub(crate) key: GateKey,
    /// What is asked.
    pub(crate) asked: Asked,
}

/// The last answers of gates, and the questions that people have. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Heard(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    known: Mutex<Known>,
    /// There is a question.
    news: Notify,
}

/// A policy and a gate of it.
type Name = (String, String);

#[derive(Debug, Default)]
struct Known {
    gates: BTreeMap<Name, Last>,
    /// What is to be asked, each gate once however many read.
    wanted: BTreeMap<Name, (GateKey, Asked)>,
    /// Their order: who has waited longest comes first. By name, those that nobody answers would be due again before the last is asked.
    queue: VecDeque<Name>,
}

impl Known {
    fn want(&mut self, name: Name, question: (GateKey, Asked)) {
        if self.wanted.insert(name.clone(), question).is_none() {
            self.queue.push_back(name);
        }
    }

    fn pop(&mut self) -> Option<(GateKey, Asked)> {
        loop {
            let name = self.queue.pop_front()?;
            // One that is no gate any more is passed over.
            if let Some(question) = self.wanted.remove(&name) {
                return Some(question);
            }
        }
    }
}

/// What is known of a gate.
#[derive(Debug)]
struct Last {
    asked: Asked,
    said: Option<Said>,
    /// It is asked for somebody who read the report.
    asking: bool,
    /// When it answered last, or was to be asked.
    at: Option<Instant>,
}

/// An answer.
#[derive(Debug)]
struct Said {
    node: Option<String>,
    holds: Option<bool>,
    message: String,
    at: Time,
}

impl Last {
    const fn new(asked: Asked) -> Self {
        Self { asked, said: None, asking: false, at: None }
    }

    fn is_due(&self, now: Instant) -> bool {
        let passes = self.said.as_ref().is_some_and(|said| said.holds == Some(true));
        let pause = if passes { FRESH } else { AGAIN };
        self.at.is_none_or(|at| now.duration_since(at) >= pause)
    }

    fn told(&self, policy: usize, gate: String) -> LiveGate {
        let said = self.said.as_ref();
        LiveGate {
            policy,
            gate,
            node: said.and_then(|said| said.node.clone()),
            holds: said.and_then(|said| said.holds),
            message: said.map(|said| said.message.clone()).unwrap_or_default(),
            at: said.map(|said| said.at),
            asking: self.asking,
        }
    }
}

impl Heard {
    /// Nothing yet.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner { clock, known: Mutex::default(), news: Notify::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A gate answered, whoever asked. What a gate said that is another one by now is forgotten.
    pub(super) fn hear(&self, key: &GateKey, asked: &Asked, answered: &Answered) {
        let answer = &answered.answer;
        let holds = (!matches!(answer, Answer::Unknown(_))).then(|| answer.passed());
        let at = answered.at(self.0.clock.now());
        let mut known = self.lock();
        let name = (key.policy.clone(), key.gate.clone());
        let last = known.gates.entry(name).or_insert_with(|| Last::new(asked.clone()));
        if last.asked == *asked {
            last.said = Some(Said { node: key.node.clone(), holds, message: kept(answer), at });
            (last.asking, last.at) = (false, Some(Instant::now()));
        }
    }

    /// What these gates answered last. Those whose answer is old are asked from now on, and all others are forgotten.
    pub(crate) fn read(&self, gates: Vec<Present>) -> Vec<LiveGate> {
        let now = Instant::now();
        let mut held = self.lock();
        let present: BTreeSet<Name> =
            gates.iter().map(|gate| (gate.key.policy.clone(), gate.key.gate.clone())).collect();
        held.gates.retain(|name, _| present.contains(name));
        held.wanted.retain(|name, _| present.contains(name));
        held.queue.retain(|name| present.contains(name));
        let mut told = Vec::with_capacity(gates.len());
        for Present { policy, key, asked } in gates {
            let name = (key.policy.clone(), key.gate.clone());
            let last = held.gates.entry(name.clone()).or_insert_with(|| Last::new(asked.clone()));
            if last.asked != asked {
                *last = Last::new(asked.clone());
            }
            let is_due = last.is_due(now);
            if is_due {
                (last.asking, last.at) = (true, Some(now));
            }
            told.push(last.told(policy, key.gate.clone()));
            if is_due {
                held.want(name, (key, asked));
            }
        }
        let news = !held.wanted.is_empty();
        drop(held);
        if news {
            self.0.news.notify_one();
        }
        told
    }

    /// The next question, as soon as there is one.
    async fn next(&self) -> (GateKey, Asked) {
        loop {
            let wanted = self.lock().pop();
            if let Some(question) = wanted {
                return question;
            }
            self.0.news.notified().await;
        }
    }
}

/// Asks what people want to know, for as long as it is polled.
pub(super) async fn ask_for_people(heard: Heard, asker: Asker, metrics: Metrics) {
    let questions = futures::stream::unfold(heard.clone(), |heard| async move {
        let question = heard.next().await;
        Some((question, heard))
    });
    let (heard, asker, metrics) = (&heard, &asker, &metrics);
    questions
        .for_each_concurrent(AT_ONCE, |(key, asked)| async move {
            let answered = asker.ask_for_people(&asked.health, &asked.gate, key.node.as_deref()).await;
            metrics.asked(answered.answer.result());
            heard.hear(&key, &asked, &answered);
        })
        .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_api::Health;

    fn present(policy: &str, gate: &str, url: &str) -> Present {
        let asked = serde_json::from_value(serde_json::json!({"http": {"url": url, "status": 200}})).unwrap();
        let key = GateKey { policy: policy.to_owned(), gate: gate.to_owned(), node: None };
        Present { policy: 0, key, asked: Asked { health: Health::default(), gate: asked } }
    }

    fn just_now(answer: Answer) -> Answered {
        Answered { answer, as_of: crate::clock::Moment::now() }
    }

    fn wanted(heard: &Heard) -> usize {
        heard.lock().wanted.len()
    }

    #[tokio::test(start_paused = true)]
    async fn a_gate_is_asked_when_somebody_reads_and_once_a_minute_at_most_however_many_do() {
        let heard = Heard::new(Clock::system());
        let gate = present("workers", "ceph", "https://ceph.example");
        let read = || heard.read(vec![gate.clone()]).remove(0);
        let first = read();
        assert_eq!((first.asking, first.at, first.holds), (true, None, None));
        assert_eq!(heard.next().await, (gate.key.clone(), gate.asked.clone()));
        for _ in 0..50 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(read().asking && wanted(&heard) == 0, "it is under way");
        }
        heard.hear(&gate.key, &gate.asked, &just_now(Answer::Unknown("no route".to_owned())));
        let told = read();
        assert_eq!((told.holds, told.message.as_str(), told.asking), (None, "no route", false));
        assert!(told.at.is_some());
        tokio::time::advance(AGAIN - Duration::from_secs(1)).await;
        assert!(!read().asking);
        tokio::time::advance(Duration::from_secs(1)).await;
        let again = read();
        assert!(again.asking && again.message == "no route" && wanted(&heard) == 1, "{again:?}");
        heard.next().await;
        heard.hear(&gate.key, &gate.asked, &just_now(Answer::Passed));
        tokio::time::advance(FRESH - Duration::from_secs(1)).await;
        assert_eq!((read().holds, read().asking), (Some(true), false), "what passes is not asked so soon");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(read().asking);
    }

    #[tokio::test(start_paused = true)]
    async fn gates_that_nobody_answers_keep_no_other_from_being_asked() {
        let heard = Heard::new(Clock::system());
        let gates: Vec<_> = (0..100).map(|number| present(&format!("p{number:02}"), "ceph", "https://a")).collect();
        let mut asked = BTreeSet::new();
        // One is asked in a second, and a page reads every second: after a minute the first ones are due again.
        for _ in 0..100 {
            assert!(heard.read(gates.clone()).iter().any(|gate| gate.asking));
            let (key, question) = heard.next().await;
            heard.hear(&key, &question, &just_now(Answer::Unknown("no answer within 10 s".to_owned())));
            asked.insert(key.policy);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(asked.len(), gates.len());
        // What is no gate any more stands in no queue.
        heard.read(gates[..1].to_vec());
        let (wanted, queued) = (wanted(&heard), heard.lock().queue.len());
        assert!(wanted <= 1 && queued == wanted);
    }

    /// While the plan itself asks, nobody else does.
    #[tokio::test(start_paused = true)]
    async fn what_the_plan_asks_is_not_asked_for_people_too() {
        let heard = Heard::new(Clock::system());
        let gate = present("workers", "ceph", "https://ceph.example");
        for _ in 0..100 {
            heard.hear(&gate.key, &gate.asked, &just_now(Answer::Failed("2 of 3".to_owned())));
            let told = heard.read(vec![gate.clone()]).remove(0);
            assert_eq!((told.holds, told.asking, wanted(&heard)), (Some(false), false, 0));
            tokio::time::advance(Duration::from_secs(3)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_gate_said_that_is_another_one_now_or_none_is_not_told() {
        let heard = Heard::new(Clock::system());
        let (before, after) = (present("workers", "ceph", "https://old"), present("workers", "ceph", "https://new"));
        heard.hear(&before.key, &before.asked, &just_now(Answer::Passed));
        let told = heard.read(vec![after.clone()]).remove(0);
        assert_eq!((told.holds, told.at, told.asking), (None, None, true), "nobody has asked the new one");
        // The old one's answer was on its way.
        heard.hear(&before.key, &before.asked, &just_now(Answer::Passed));
        assert_eq!(heard.read(vec![after.clone()]).remove(0).holds, None);
        heard.hear(&after.key, &after.asked, &just_now(Answer::Passed));
        assert_eq!(heard.read(vec![after.clone()]).remove(0).holds, Some(true));
        assert!(heard.read(Vec::new()).is_empty());
        assert_eq!(heard.read(vec![after]).remove(0).at, None, "it was forgotten meanwhile");
    }

    #[tokio::test(start_paused = true)]
    async fn people_are_told_as_of_when_an_answer_is_so() {
        let now = chrono::DateTime::from_timestamp(1_000_000_000, 0).unwrap();
        let heard = Heard::new(Clock::from_fn(move || now));
        let gate = present("workers", "ci", "https://ci.example");
        let as_of = crate::clock::Moment::now().before(Duration::from_secs(20));
        heard.hear(&gate.key, &gate.asked, &Answered { answer: Answer::Passed, as_of });
        let told = heard.read(vec![gate]).remove(0);
        // This machine may have other things to do.
        let age = (now - told.at.unwrap().get()).num_seconds();
        assert!((20..60).contains(&age) && !told.asking, "{told:?}");
    }
}
