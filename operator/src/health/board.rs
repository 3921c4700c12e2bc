//! Keeps asking the gates that the plan has questions about, and remembers the answers. Prometheus and HTTP can't be
//! watched, so this is the one place that polls; it does so only while somebody waits for the answer. What object gates
//! look at is watched (docs/decisions/0043-gates-watch-what-they-ask-about.md), and what it comes to is reckoned here as
//! often as all else.

use super::{Answered, Asker, GateAnswer as Answer, Heard, heard::ask_for_people, kept};
use crate::{clock::Clock, metrics::Metrics};
use bascule_api::{Gate, Health, Time};
use bascule_planner::{
    plan::GateQuestion,
    snapshot::{GateAnswer, Missed},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Semaphore, watch},
    task::{AbortHandle, JoinSet},
};

/// How often a gate is asked while its answer is needed; where many are, each comes in its turn.
const EVERY: Duration = Duration::from_secs(3);
/// Over all gates one is asked in so much time, once a few dozen are needed. Each policy has the same share of it.
const EACH: Duration = Duration::from_millis(60);
/// The longest between two answers to one question. The planner takes no answer that is older than two minutes.
const SELDOM: Duration = Duration::from_secs(60);
/// How many gates of a policy are asked at once: whom nobody answers keeps each place for as long as a question may take, and
/// has to leave others theirs.
const AT_ONCE: usize = 16;
/// How many of all policies. Those of more than four that nobody answers take turns, of which each policy has at most
/// [`AT_ONCE`] before another's.
const OF_ALL_AT_ONCE: usize = 64;

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
    /// How many questions were begun to be asked.
    turns: u64,
    shares: BTreeMap<String, Arc<Share>>,
    heard: Heard,
    /// Who asks for people, and ends with this.
    _for_people: JoinSet<()>,
}

/// What a policy may ask.
#[derive(Debug)]
struct Share {
    permits: Semaphore,
    /// Between two answers to one of its questions, in milliseconds.
    pause: AtomicU64,
}

impl Default for Share {
    fn default() -> Self {
        Self { permits: Semaphore::new(AT_ONCE), pause: AtomicU64::default() }
    }
}

/// The answer to a question, once there is one.
#[derive(Debug)]
struct Place {
    /// Which time the question is asked. Who was told to stop may be about to say what it heard: of a gate as it was before.
    turn: u64,
    answer: Option<GateAnswer>,
}

type Answers = Arc<Mutex<BTreeMap<GateKey, Place>>>;

struct Asking {
    asked: Asked,
    turn: u64,
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
    /// Asks nothing yet. `changes` is told when an answer changes. Within a Tokio runtime.
    #[must_use]
    pub fn new(asker: Asker, clock: Clock, metrics: Metrics, changes: Arc<watch::Sender<u64>>) -> Self {
        let permits = Arc::new(Semaphore::new(OF_ALL_AT_ONCE));
        let heard = Heard::new(clock.clone());
        let mut for_people = JoinSet::new();
        for_people.spawn(ask_for_people(heard.clone(), asker.clone(), metrics.clone()));
        Self {
            asker,
            clock,
            metrics,
            changes,
            permits,
            answers: Arc::default(),
            asking: BTreeMap::new(),
            turns: 0,
            shares: BTreeMap::new(),
            heard,
            _for_people: for_people,
        }
    }

    /// What gates answered last, for people: those too that no plan has a question about.
    #[must_use]
    pub fn heard(&self) -> Heard {
        self.heard.clone()
    }

    /// Asks these from now on, and no others. Answers of others are forgotten: they would be stale when needed again.
    pub fn set(&mut self, questions: BTreeMap<GateKey, Asked>) {
        self.share_out(questions.keys());
        self.asking.retain(|key, asking| questions.get(key).is_some_and(|asked| *asked == asking.asked));
        let stands =
            |key: &GateKey, place: &Place| self.asking.get(key).is_some_and(|asking| asking.turn == place.turn);
        lock(&self.answers).retain(|key, place| stands(key, place));
        for (key, asked) in questions {
            if self.asking.contains_key(&key) {
                continue;
            }
            self.turns += 1;
            let turn = self.turns;
            lock(&self.answers).insert(key.clone(), Place { turn, answer: None });
            let share = self.shares.entry(key.policy.clone()).or_default();
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
                    share: Arc::clone(share),
                    heard: self.heard.clone(),
                    turn,
                },
            ));
            self.asking.insert(key, Asking { asked, turn, task: task.abort_handle() });
        }
    }

    /// Each policy that asks anything has the same share, however much it asks.
    fn share_out<'a>(&mut self, questions: impl Iterator<Item = &'a GateKey>) {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for key in questions {
            *counts.entry(&key.policy).or_default() += 1;
        }
        self.shares.retain(|policy, _| counts.contains_key(policy.as_str()));
        for (policy, count) in &counts {
            let share = self.shares.entry((*policy).to_owned()).or_default();
            let pause = u64::try_from(pause(*count, counts.len()).as_millis()).unwrap_or(u64::MAX);
            share.pause.store(pause, Ordering::Relaxed);
        }
    }

    /// The last answers.
    #[must_use]
    pub fn answers(&self) -> Vec<GateAnswer> {
        lock(&self.answers).values().filter_map(|place| place.answer.clone()).collect()
    }
}

struct Board {
    clock: Clock,
    metrics: Metrics,
    changes: Arc<watch::Sender<u64>>,
    permits: Arc<Semaphore>,
    answers: Answers,
    share: Arc<Share>,
    heard: Heard,
    turn: u64,
}

/// Between two answers to one of so many questions of a policy, of so many policies.
fn pause(questions: usize, policies: usize) -> Duration {
    let turns = questions.saturating_mul(policies);
    EACH.saturating_mul(u32::try_from(turns).unwrap_or(u32::MAX)).clamp(EVERY, SELDOM)
}

fn lock(answers: &Answers) -> std::sync::MutexGuard<'_, BTreeMap<GateKey, Place>> {
    answers.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn ask_again_and_again(key: GateKey, asked: Asked, asker: Asker, board: Board) {
    loop {
        let answered = {
            // First the policy's own, so that it stands in the common line with no more than these.
            let Ok(_own) = board.share.permits.acquire().await else { return };
            let Ok(_permit) = board.permits.acquire().await else { return };
            asker.ask(&asked.health, &asked.gate, key.node.as_deref()).await
        };
        board.metrics.asked(answered.answer.result());
        board.take(&key, &answered);
        board.heard.hear(&key, &asked, &answered);
        tokio::time::sleep(Duration::from_millis(board.share.pause.load(Ordering::Relaxed))).await;
    }
}

impl Board {
    fn take(&self, key: &GateKey, answered: &Answered) {
        let answer = &answered.answer;
        let now = self.clock.now();
        let (at, now) = (answered.at(now), Time::new(now));
        let mut answers = lock(&self.answers);
        let Some(place) = answers.get_mut(key).filter(|place| place.turn == self.turn) else { return };
        let before = place.answer.as_ref();
        let message = kept(answer);
        let known = !matches!(answer, Answer::Unknown(_));
        let same = before.filter(|before| before.passes == answer.passed() && before.known == known);
        let news = same.is_none_or(|before| before.message != message);
        let since = same.map_or(now, |before| before.since);
        let passes = answer.passed();
        let missed = if passes { before.and_then(|before| before.missed) } else { Some(Missed { at, known }) };
        let (policy, gate, node) = (key.policy.clone(), key.gate.clone(), key.node.clone());
        place.answer = Some(GateAnswer { policy, gate, node, passes, known, message, at, since, missed });
        drop(answers);
        if news {
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Present;

    use axum::{Router, routing::get};
    use kube::{Client, Config};
    use tokio::net::TcpListener;

    #[test]
    fn many_questions_are_asked_in_turn_and_none_too_seldom() {
        assert_eq!([1, 50].map(|questions| pause(questions, 1)), [EVERY; 2]);
        assert_eq!(pause(500, 1), Duration::from_secs(30), "17 a second");
        assert_eq!(pause(250, 2), pause(500, 1), "as many for all policies together");
        assert_eq!(pause(100_000, 1), SELDOM);
    }

    /// What one question has, at a time that stands still.
    fn take_only() -> Board {
        let clock = Clock::from_fn(|| chrono::DateTime::from_timestamp(1_000_000_000, 0).unwrap_or_default());
        Board {
            clock: clock.clone(),
            metrics: Metrics::new(),
            changes: Arc::new(watch::Sender::new(0)),
            permits: Arc::new(Semaphore::new(1)),
            answers: Answers::default(),
            share: Arc::default(),
            heard: Heard::new(clock),
            turn: 1,
        }
    }

    fn question() -> GateKey {
        GateQuestion { policy: "workers".to_owned(), gate: "ci".to_owned(), node: None }
    }

    /// Makes place for the answer to that question, asked for this time.
    fn turn(board: &Board, turn: u64) {
        lock(&board.answers).insert(question(), Place { turn, answer: None });
    }

    fn answer(board: &Board) -> Option<GateAnswer> {
        lock(&board.answers).get(&question()).and_then(|place| place.answer.clone())
    }

    #[test]
    fn an_answer_is_as_old_as_what_it_rests_on() {
        let board = take_only();
        let now = board.clock.now();
        turn(&board, 1);
        let as_of = crate::clock::Moment::now().before(Duration::from_secs(20));
        board.take(&question(), &Answered { answer: Answer::Passed, as_of });
        let answer = answer(&board).unwrap();
        // This machine may have other things to do.
        let age = (now - answer.at.get()).num_seconds();
        assert!((20..60).contains(&age) && answer.since.get() == now, "{answer:?}");
    }

    /// A trial that it held is not to be blamed for that when it passes again.
    #[test]
    fn what_a_gate_said_last_against_it_is_remembered_while_it_is_asked() {
        let board = take_only();
        turn(&board, 1);
        let said = |said: Answer| {
            board.take(&question(), &Answered { answer: said, as_of: crate::clock::Moment::now() });
            let answer = answer(&board).unwrap();
            (answer.at, answer.missed)
        };
        assert_eq!(said(Answer::Passed).1, None);
        for known in [true, false] {
            let no = if known { Answer::Failed("2 of 3".to_owned()) } else { Answer::Unknown("no route".to_owned()) };
            let (at, missed) = said(no);
            assert_eq!(missed, Some(Missed { at, known }));
            for _ in 0..2 {
                assert_eq!(said(Answer::Passed).1, missed);
            }
        }
        // It is not asked any more, and later it is again.
        turn(&board, 1);
        assert_eq!(said(Answer::Passed).1, None);
    }

    #[test]
    fn what_a_gate_says_that_is_another_one_by_now_is_not_its_answer() {
        let before = take_only();
        let passes = Answered { answer: Answer::Passed, as_of: crate::clock::Moment::now() };
        turn(&before, 2);
        before.take(&question(), &passes);
        assert_eq!(answer(&before), None, "its expression was edited while the answer was on its way");
        lock(&before.answers).clear();
        before.take(&question(), &passes);
        assert!(lock(&before.answers).is_empty(), "nobody asks any more");
        let after = Board { turn: 2, ..before };
        turn(&after, 2);
        after.take(&question(), &passes);
        assert!(answer(&after).is_some());
    }

    /// A client spawns a task where it is made.
    #[tokio::test]
    async fn a_policy_that_asks_much_does_not_make_another_wait() {
        let key = |policy: &str, node: usize| GateQuestion {
            policy: policy.to_owned(),
            gate: "ci".to_owned(),
            node: Some(format!("n{node}")),
        };
        let keys: Vec<_> = (0..5_000).map(|node| key("many", node)).chain([key("one", 0)]).collect();
        let mut board = board();
        board.share_out(keys.iter());
        let pauses = board.shares.values().map(|share| share.pause.load(Ordering::Relaxed));
        assert_eq!(pauses.collect::<Vec<_>>(), [SELDOM, EVERY].map(|pause| u64::try_from(pause.as_millis()).unwrap()));
        board.share_out(keys[..1].iter());
        assert_eq!(board.shares.keys().collect::<Vec<_>>(), ["many"]);
    }

    fn board() -> GateBoard {
        bascule_tests::install_tls_provider();
        // Nobody asks for objects here.
        let nobody = || Client::try_from(Config::new("http://127.0.0.1:9".parse().unwrap())).unwrap();
        let asker = Asker::new(nobody(), nobody(), "bascule-system", &[]).unwrap();
        GateBoard::new(asker, Clock::system(), Metrics::new(), Arc::new(watch::Sender::new(0)))
    }

    /// On a quiet fleet a Prometheus may be dead for weeks.
    #[tokio::test]
    async fn a_gate_that_no_node_waits_for_is_asked_when_somebody_reads_whether_it_can_be() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let present = |policy: usize, gate: &str, listener: &TcpListener| {
            let url = format!("http://{}/", listener.local_addr().unwrap());
            let asked = serde_json::from_value(serde_json::json!({"http": {"url": url, "status": 200}})).unwrap();
            let key = GateQuestion { policy: format!("p{policy}"), gate: gate.to_owned(), node: None };
            Present { policy, key, asked: Asked { health: Health::default(), gate: asked } }
        };
        let gates = [present(0, "up", &listener), present(1, "down", &closed)];
        drop(closed);
        let router = Router::new().route("/", get(async || "fine"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let board = board();
        let heard = board.heard();
        let first = heard.read(gates.to_vec());
        assert!(first.iter().all(|gate| gate.asking && gate.at.is_none()), "{first:?}");
        let answered = async {
            loop {
                let told = heard.read(gates.to_vec());
                if told.iter().all(|gate| !gate.asking) {
                    break told;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let told = tokio::time::timeout(Duration::from_secs(60), answered).await.expect("both are asked");
        assert_eq!(told.iter().map(|gate| gate.holds).collect::<Vec<_>>(), [Some(true), None], "{told:?}");
        assert!(told[1].message.contains("can't be asked") && told[1].at.is_some(), "{told:?}");
        assert!(board.answers().is_empty(), "the planner hears nothing of it");
    }

    #[tokio::test]
    async fn gates_that_nobody_answers_starve_no_other_policy() {
        let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let asked = |listener: &TcpListener| {
            let url = format!("http://{}/", listener.local_addr().unwrap());
            let gate = serde_json::from_value(serde_json::json!({"http": {"url": url, "status": 200}})).unwrap();
            Asked { health: Health::default(), gate }
        };
        // By turns of sixteen it would be minutes until the other one is asked.
        let question = |policy: &str, node: usize| GateQuestion {
            policy: policy.to_owned(),
            gate: "ci".to_owned(),
            node: Some(format!("n{node}")),
        };
        let mut questions: BTreeMap<_, _> = (0..600).map(|node| (question("deaf", node), asked(&deaf))).collect();
        let other = question("heard", 0);
        questions.insert(other.clone(), asked(&listener));
        let router = Router::new().route("/", get(async || "fine"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let mut board = board();
        let mut changes = board.changes.subscribe();
        board.set(questions);
        let passes =
            |board: &GateBoard| board.answers().iter().any(|answer| answer.policy == other.policy && answer.passes);
        let heard = async {
            while !passes(&board) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(60), heard).await.expect("the other policy is asked");
    }
}
