//! Writes that failed: what the API server said, since when, and how long each backs off before it is tried again. Whoever carries plans
//! out keeps to these rules, the operator and the simulator alike.

use crate::{Action, Plan};
use bascule_api::{Duration, Time};
use std::collections::BTreeMap;

/// How long a write backs off that failed once, in seconds; twice as long after each further time.
const FIRST_BACKOFF: u64 = 1;
/// The longest backoff, in seconds.
const LONGEST_BACKOFF: u64 = 60;
/// How long a write fails before people are told: what passes by itself is no news.
const TOLD_AFTER: Duration = Duration::from_secs(10);
/// For how many seconds a write is remembered that no plan asks for any more. A plan is made at least once a minute.
const FORGOTTEN_AFTER: i64 = 150;
/// The same of a commit, and of what is written before it: whether they were refused is asked when the node has rebooted into its old
/// release.
const COMMIT_FORGOTTEN_AFTER: i64 = 3_600;
/// How much is kept of what the API server said, in characters.
const WORDS: usize = 400;

/// The names of actions that are looked up by them.
pub(crate) const COMMIT: &str = "Commit";
pub(crate) const REMEMBER: &str = "Remember";
pub(crate) const GRANT: &str = "Grant";
pub(crate) const ACCEPT_ROLLBACK: &str = "AcceptRollback";

/// Which write: what an action does to an object. Hooks of one node or policy are told apart, and so are the taints of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Write {
    object: String,
    action: &'static str,
    which: String,
}

impl Write {
    /// The write of an action.
    #[must_use]
    pub fn of(action: &Action) -> Self {
        let hook = action.hook();
        let object: &str = match action {
            Action::Remember { policy, .. } => policy,
            Action::AcceptRollback { rollback, .. } => rollback,
            Action::ForgetFreeze { freeze } => freeze,
            _ => action.node().or(hook.map(|order| order.policy.as_str())).unwrap_or_default(),
        };
        let which = match action {
            Action::Taint { taint, .. } | Action::Untaint { taint, .. } => taint.key().to_owned(),
            _ => hook.map_or_else(String::new, |order| order.stage.key(&order.hook)),
        };
        Self { object: object.to_owned(), action: action.name(), which }
    }

    /// Whether the commits of a policy's nodes wait for it.
    fn is_before_commits(&self) -> bool {
        [REMEMBER, ACCEPT_ROLLBACK].contains(&self.action)
    }
}

/// A write that has failed each time since a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Since when.
    pub since: Time,
    /// What the API server said last, or why it could not be asked: one line of at most 400 characters, never empty.
    pub words: String,
    /// How often it failed.
    failed: u32,
    /// When it was tried last.
    tried: Time,
    /// When a plan asked for it last.
    asked: Time,
}

impl Refusal {
    fn backs_off_until(&self) -> Time {
        let doubled = FIRST_BACKOFF << self.failed.saturating_sub(1).min(6);
        self.tried.after(Duration::from_secs(doubled.min(LONGEST_BACKOFF)))
    }

    /// Also where the clock was set back no write waits for longer than its backoff.
    fn backs_off(&self, now: Time) -> bool {
        self.tried <= now && now < self.backs_off_until()
    }

    /// When it was tried last.
    pub(crate) const fn tried(&self) -> Time {
        self.tried
    }

    fn told_at(&self) -> Time {
        self.since.after(TOLD_AFTER)
    }
}

/// The writes that failed when they were tried last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refusals {
    failing: BTreeMap<Write, Refusal>,
    /// Those before commits that were taken after all, as they failed before that: a guard may have ended a trial meanwhile.
    taken: BTreeMap<Write, Refusal>,
}

impl Refusals {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.failing.is_empty()
    }

    /// Takes note of an attempt: it succeeded, or `failed` for this reason. One that met another world than its plan expected is
    /// neither.
    pub fn note(&mut self, write: Write, failed: Option<&str>, now: Time) {
        let Some(words) = failed else {
            let known = self.failing.remove(&write);
            if let Some(known) = known.filter(|known| write.is_before_commits() && now >= known.told_at()) {
                self.taken.insert(write, known);
            }
            return;
        };
        let first = || Refusal { since: now, words: String::new(), failed: 0, tried: now, asked: now };
        let known = self.failing.entry(write).or_insert_with(first);
        // One that nobody asked for a while may be remembered all the same, and this is another try.
        if now.seconds_since(known.asked) >= FORGOTTEN_AFTER {
            *known = first();
        }
        known.failed = known.failed.saturating_add(1);
        // A clock that was set back keeps nobody from being told.
        known.since = known.since.min(now);
        (known.tried, known.asked, known.words) = (now, now, in_one_line(words));
    }

    /// Takes note of what a plan asks for. What none has asked for a while is forgotten: should it be wanted again, it is another try.
    pub fn asked(&mut self, plan: &Plan, now: Time) {
        self.taken.retain(|_, known| now.seconds_since(known.tried) < COMMIT_FORGOTTEN_AFTER);
        if self.failing.is_empty() {
            return;
        }
        for step in &plan.steps {
            if let Some(known) = self.failing.get_mut(&Write::of(&step.action)) {
                known.asked = now;
            }
        }
        self.failing.retain(|write, known| {
            let commits = write.action == COMMIT || write.is_before_commits();
            let kept = if commits { COMMIT_FORGOTTEN_AFTER } else { FORGOTTEN_AFTER };
            now.seconds_since(known.asked) < kept
        });
    }

    /// How the write of this action failed last, if it did.
    #[must_use]
    pub fn of(&self, action: &Action) -> Option<&Refusal> {
        if self.failing.is_empty() { None } else { self.failing.get(&Write::of(action)) }
    }

    /// The same, where it has failed for so long that people are told.
    #[must_use]
    pub fn told(&self, action: &Action, now: Time) -> Option<&Refusal> {
        self.of(action).filter(|refusal| now >= refusal.told_at())
    }

    /// The same, by the object that is written and the name of the action.
    #[must_use]
    pub fn told_of(&self, object: &str, action: &str, now: Time) -> Option<&Refusal> {
        let mut told = self
            .failing
            .iter()
            .filter(|(write, refusal)| write.object == object && write.action == action && now >= refusal.told_at());
        told.next().map(|(_, refusal)| refusal)
    }

    /// The same of a commit or of what is written before commits, also where it was taken since, if it `was` so.
    pub(crate) fn kept_from_committing(
        &self,
        object: &str,
        action: &str,
        now: Time,
        was: impl Fn(&Refusal) -> bool,
    ) -> Option<&Refusal> {
        let told = self.failing.iter().filter(|(_, refusal)| now >= refusal.told_at());
        let mut all = told.chain(&self.taken).filter(|(write, _)| write.object == object && write.action == action);
        all.find(|(_, refusal)| was(refusal)).map(|(_, refusal)| refusal)
    }

    /// When people are told of a write that they are not told of now.
    #[must_use]
    pub fn next_told(&self, now: Time) -> Option<Time> {
        self.failing.values().map(Refusal::told_at).filter(|at| *at > now).min()
    }

    /// Whether a write is to be left alone for now, since it has just failed.
    #[must_use]
    pub fn backs_off(&self, action: &Action, now: Time) -> bool {
        self.of(action).is_some_and(|refusal| refusal.backs_off(now))
    }

    /// When the next of the writes that back off may be tried again.
    #[must_use]
    pub fn next_try(&self, now: Time) -> Option<Time> {
        self.failing.values().filter(|refusal| refusal.backs_off(now)).map(Refusal::backs_off_until).min()
    }
}

fn in_one_line(words: &str) -> String {
    let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() { "no reason was given".to_owned() } else { line.chars().take(WORDS).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Expect, Step,
        plan::{HookOrder, Taint},
        snapshot::HookStage,
    };

    fn at(second: i64) -> Time {
        chrono::DateTime::from_timestamp(1_780_315_200 + second, 0).unwrap_or_default().into()
    }

    fn cordon(node: &str) -> Action {
        Action::Cordon { node: node.to_owned(), mark: String::new() }
    }

    fn hook(hook: &str, node: &str) -> HookOrder {
        HookOrder {
            node: node.to_owned(),
            policy: "workers".to_owned(),
            grant: 1,
            stage: HookStage::BeforeDrain,
            hook: hook.to_owned(),
            version: None,
        }
    }

    #[test]
    fn names_that_are_looked_up_are_those_of_the_actions() {
        let commit = Action::Commit { node: "a".to_owned(), release: None };
        let remember = Action::Remember { policy: "workers".to_owned(), changes: Vec::new(), judged: Vec::new() };
        let accept = Action::AcceptRollback { rollback: "back".to_owned(), status: Default::default() };
        assert_eq!([commit.name(), remember.name(), accept.name()], [COMMIT, REMEMBER, ACCEPT_ROLLBACK]);
        let mut refusals = Refusals::default();
        refusals.note(Write::of(&commit), Some("no"), at(0));
        assert_eq!(refusals.told_of("a", COMMIT, at(9)), None);
        assert!(refusals.told_of("a", COMMIT, at(10)).is_some() && refusals.told_of("b", COMMIT, at(10)).is_none());
        refusals.note(Write::of(&remember), Some("no"), at(0));
        refusals.asked(&Plan::default(), at(3_000));
        assert!(
            refusals.told_of("a", COMMIT, at(3_000)).is_some()
                && refusals.told_of("workers", REMEMBER, at(3_000)).is_some(),
            "asked for when its node is back on the old release"
        );
        refusals.asked(&Plan::default(), at(3_600));
        assert!(refusals.is_empty());
    }

    #[test]
    fn a_write_that_fails_backs_off_ever_longer_but_not_for_more_than_a_minute() {
        let mut refusals = Refusals::default();
        let mut tries = Vec::new();
        for second in 0..400 {
            if !refusals.backs_off(&cordon("a"), at(second)) {
                tries.push(second);
                refusals.note(Write::of(&cordon("a")), Some("denied"), at(second));
                assert!(refusals.next_try(at(second)).is_some_and(|next| next > at(second)));
            }
        }
        assert_eq!(tries, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363]);
        assert!(!refusals.backs_off(&cordon("b"), at(400)), "another node's");
        assert!(!refusals.backs_off(&cordon("a"), at(-3_600)), "the clock was set back");
        refusals.note(Write::of(&cordon("a")), None, at(401));
        assert!(refusals.is_empty() && refusals.next_try(at(401)).is_none());
    }

    #[test]
    fn people_are_told_of_what_lasts_since_when_it_began_and_in_the_last_words() {
        let mut refusals = Refusals::default();
        refusals.note(Write::of(&cordon("a")), Some("first"), at(0));
        assert_eq!((refusals.told(&cordon("a"), at(9)), refusals.next_told(at(9))), (None, Some(at(10))));
        refusals.note(Write::of(&cordon("a")), Some(&format!("denied:\n  {}", "x".repeat(1_000))), at(9));
        let told = refusals.told(&cordon("a"), at(10)).unwrap();
        assert_eq!((told.since, told.words.chars().count()), (at(0), WORDS));
        assert!(told.words.starts_with("denied: x"), "{}", told.words);
        assert_eq!(refusals.next_told(at(10)), None);
        refusals.note(Write::of(&cordon("b")), Some(" "), at(10));
        assert_eq!(refusals.of(&cordon("b")).unwrap().words, "no reason was given");
    }

    #[test]
    fn what_no_plan_asks_for_any_more_is_forgotten() {
        let mut refusals = Refusals::default();
        for node in ["a", "b"] {
            refusals.note(Write::of(&cordon(node)), Some("denied"), at(0));
        }
        let step = Step { action: cordon("a"), expect: Expect::default(), cause: None, says: String::new() };
        let plan = Plan { steps: vec![step], ..Plan::default() };
        refusals.asked(&plan, at(100));
        refusals.asked(&plan, at(200));
        assert!(refusals.of(&cordon("a")).is_some() && refusals.of(&cordon("b")).is_none());
    }

    #[test]
    fn what_kept_nodes_from_being_committed_is_known_also_when_it_was_taken() {
        let remember = Action::Remember { policy: "workers".to_owned(), changes: Vec::new(), judged: Vec::new() };
        let write = || Write::of(&remember);
        let mut refusals = Refusals::default();
        let known = |refusals: &Refusals, second: i64| {
            let known =
                refusals.kept_from_committing("workers", REMEMBER, at(second), |refusal| refusal.since == at(0));
            known.map(|refusal| refusal.tried)
        };
        // What passes by itself kept nobody.
        refusals.note(write(), Some("denied"), at(0));
        refusals.note(write(), None, at(9));
        assert_eq!(known(&refusals, 20), None);
        for second in [0, 10, 100] {
            refusals.note(write(), Some("denied"), at(second));
        }
        assert_eq!(known(&refusals, 101), Some(at(100)));
        refusals.note(write(), None, at(110));
        assert!(refusals.is_empty() && refusals.of(&remember).is_none());
        for (second, tried) in [(111, Some(at(100))), (3_699, Some(at(100))), (3_700, None)] {
            refusals.asked(&Plan::default(), at(second));
            assert_eq!(known(&refusals, second), tried);
        }
        // Any other write is forgotten with its success.
        refusals.note(Write::of(&cordon("a")), Some("denied"), at(0));
        refusals.note(Write::of(&cordon("a")), None, at(100));
        assert_eq!(refusals, Refusals::default());
    }

    #[test]
    fn what_is_remembered_longer_begins_anew_with_another_try() {
        let remember = Action::Remember { policy: "workers".to_owned(), changes: Vec::new(), judged: Vec::new() };
        let mut refusals = Refusals::default();
        for second in [0, 10, 20] {
            refusals.note(Write::of(&remember), Some("denied"), at(second));
        }
        refusals.asked(&Plan::default(), at(1_000));
        assert_eq!(refusals.of(&remember).map(|refusal| (refusal.since, refusal.failed)), Some((at(0), 3)));
        refusals.note(Write::of(&remember), Some("denied"), at(1_000));
        assert_eq!(refusals.of(&remember).map(|refusal| (refusal.since, refusal.failed)), Some((at(1_000), 1)));
        assert_eq!(refusals.told(&remember, at(1_009)), None);
    }

    #[test]
    fn hooks_and_taints_and_nodes_and_policies_are_told_apart() {
        let taint = |taint| Action::Taint { node: "a".to_owned(), taint };
        let writes = [
            taint(Taint::Hold),
            taint(Taint::Outdated),
            Action::RunHook(hook("one", "a")),
            Action::RunHook(hook("two", "a")),
            Action::RunHook(hook("one", "b")),
            Action::RunRolloutHook(hook("one", "")),
            Action::KeepRolloutHook(hook("one", "")),
            Action::Remember { policy: "workers".to_owned(), changes: Vec::new(), judged: Vec::new() },
            Action::Remember { policy: "a".to_owned(), changes: Vec::new(), judged: Vec::new() },
            cordon("a"),
        ];
        let mut all: Vec<_> = writes.iter().map(Write::of).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), writes.len(), "{all:?}");
    }
}
