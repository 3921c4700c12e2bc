//! What is known of the objects that a question looks at, and as of when: what may be answered from it, and what not any
//! more. Reads nothing itself, and is told the time.
//!
//! A watch says what changed, and says nothing both when nothing changed and when nobody hears it any more. So it proves
//! nothing by being there. What does is a second voice: the API server is asked now and then for the version that
//! everything has just then, which costs it one object, and once the watch itself has come as far as that version, by an
//! object or by a bookmark, all that was so at that time is known. What is answered from is never older than
//! [`Pace::fresh`] by that reckoning, whatever the watch does.

use super::{needs::Needs, seen::Seen, source::PAGE_BYTES};
use crate::clock::Moment;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How many objects one gate may look at.
pub(super) const MOST_OBJECTS: usize = 5_000;
/// How many versions are remembered that the watch has not come to.
const MOST_PROBES: usize = 8;

/// How often who asks for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// How long a reading serves that nobody follows: shorter than the time between two answers to one question.
    pub(super) shared: Duration,
    /// How old may be what is answered from. An API server that sends no bookmarks is read whole this often, and one that has too many
    /// objects is asked this often whether it has.
    pub(super) fresh: Duration,
    /// For how long the API server is asked to keep a watch open, in full seconds. It sends a bookmark two seconds before
    /// the end, and looks at the right to watch at each beginning.
    pub(super) period: Duration,
    /// When in that time it is asked how far it is.
    pub(super) probe: Duration,
    /// How long it may take to begin or to end a watch.
    pub(super) grace: Duration,
    /// The shortest time between the beginnings of two watches, against servers and proxies that end them at once.
    pub(super) between: Duration,
    /// After what time without a question a watch ends: longer than between any two answers to one question.
    pub(super) idle: Duration,
    /// How long it is remembered whether there is a right to watch.
    pub(super) right: Duration,
    /// How long it is remembered how the API server calls a kind: a definition may be deleted, and made again with another plural or
    /// scope.
    pub(super) kind: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            shared: Duration::from_millis(2_500),
            fresh: Duration::from_secs(30),
            period: Duration::from_secs(10),
            probe: Duration::from_secs(5),
            grace: Duration::from_secs(5),
            between: Duration::from_secs(1),
            idle: Duration::from_secs(180),
            right: Duration::from_secs(60),
            kind: Duration::from_secs(60),
        }
    }
}

/// Objects as they were all at once.
#[derive(Debug, Default)]
pub(super) struct Listed {
    objects: BTreeMap<Arc<str>, Seen>,
    weight: usize,
    /// Their version, from which on a watch tells what changes.
    pub(super) version: Option<String>,
}

impl Listed {
    pub(super) fn put(&mut self, seen: Seen) {
        self.weight += seen.weight();
        if let Some(before) = self.objects.insert(Arc::clone(seen.name()), seen) {
            self.weight -= before.weight();
        }
    }

    fn remove(&mut self, name: &str) {
        if let Some(before) = self.objects.remove(name) {
            self.weight -= before.weight();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    /// About how many bytes of memory the objects take.
    pub(super) fn weight(&self) -> usize {
        self.weight
    }
}

/// Why objects are not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unread {
    /// There are more than a gate may look at, which took [`MOST_OBJECTS`] of them to find out.
    TooMany,
    /// What is looked at of them takes more memory than there is for all gates.
    TooMuch,
    /// A few of them are more than is read at once.
    TooLarge,
    /// A sentence for whoever reads the policy's status.
    Refused(String),
}

impl From<String> for Unread {
    fn from(reason: String) -> Self {
        Self::Refused(reason)
    }
}

impl std::fmt::Display for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooMany => {
                write!(f, "more than {MOST_OBJECTS} objects: narrow the gate by namespace or selector")
            }
            Self::TooMuch => {
                write!(
                    f,
                    "too much to look at: narrow the gate by namespace or selector, or have its expression name fields"
                )
            }
            Self::TooLarge => {
                write!(f, "an object of more than {} MiB: narrow the gate by namespace or selector", PAGE_BYTES >> 21)
            }
            Self::Refused(reason) => f.write_str(reason),
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// The plan, every few seconds for as long as a node waits for the answer.
    Plan,
    /// Somebody who reads the report, now and then.
    People,
}

/// What an answer may be made from.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    pub(super) objects: Arc<Vec<Seen>>,
    /// All that was so at this time is in it, and perhaps more.
    pub(super) as_of: Moment,
}

/// What a watch says.
#[derive(Debug)]
pub(super) enum Change {
    /// An object is there, and so.
    Put(Seen),
    /// An object of this name is not there, or not selected any more.
    Gone(String),
    /// Nothing more than what it has told before.
    Nothing,
}

/// What is known.
#[derive(Debug)]
struct Known {
    /// When it was read whole.
    read: Moment,
    /// As of when it is so for certain.
    as_of: Moment,
    /// What is kept of each object.
    needs: Needs,
    /// Or why it could not be read.
    listed: Result<Listed, Unread>,
    /// A watch tells what changes.
    followed: bool,
    /// Versions that the API server had at these times, and that the watch has not come to.
    probes: VecDeque<(Moment, u64)>,
    /// The objects as they are given out, until one changes.
    shown: Option<Arc<Vec<Seen>>>,
}

/// What is known of the objects of one question.
#[derive(Debug, Default)]
pub(super) struct Held {
    known: Option<Known>,
    /// What all who asked look at.
    needs: Needs,
    /// One more with each reading: whoever follows an earlier one is not heard any more.
    generation: u64,
    /// When the plan asked last, or when anybody was the first to ask.
    asked: Option<Moment>,
    /// Whether there is a right to watch, and as of when.
    may_watch: Option<(Moment, bool)>,
}

/// Whoever panics with it changes nothing.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Held {
    /// What may be answered from, or why nothing may be. `None`: it has to be read first.
    pub(super) fn ask(
        &mut self,
        asks: Asks,
        needs: &Needs,
        now: Moment,
        pace: &Pace,
    ) -> Option<Result<Reading, String>> {
        // Who asks now and then keeps no watch open.
        if asks == Asks::Plan || self.asked.is_none() {
            self.asked = Some(now);
        }
        let known = self.known.as_mut()?;
        let costly = matches!(known.listed, Err(Unread::TooMany | Unread::TooMuch | Unread::TooLarge));
        let serves = if costly { pace.fresh } else { pace.shared };
        let just_read = known.read.until(now) < serves;
        let heard = known.followed && known.as_of.until(now) <= pace.fresh;
        if !just_read && !heard {
            return None;
        }
        match &known.listed {
            Ok(_) if !known.needs.cover(needs) => None,
            Ok(listed) => {
                let shown = known.shown.get_or_insert_with(|| Arc::new(listed.objects.values().cloned().collect()));
                Some(Ok(Reading { objects: Arc::clone(shown), as_of: known.as_of }))
            }
            Err(reason) => Some(Err(reason.to_string())),
        }
    }

    /// That it is read anew, and what to keep of each object. What was known takes no memory beside what is read.
    pub(super) fn begin(&mut self, needs: &Needs) -> Needs {
        self.needs.join(needs);
        self.generation += 1;
        self.known = None;
        self.needs.clone()
    }

    /// What was read, from `begun` on until now. The generation of who follows it, and what may be answered from.
    pub(super) fn take(
        &mut self,
        needs: Needs,
        begun: Moment,
        now: Moment,
        listed: Result<Listed, Unread>,
    ) -> (u64, Result<Reading, String>) {
        let objects = listed.as_ref().map(|listed| Arc::new(listed.objects.values().cloned().collect::<Vec<_>>()));
        let objects = objects.map_err(ToString::to_string);
        self.known = Some(Known {
            read: now,
            as_of: begun,
            needs,
            listed,
            followed: false,
            probes: VecDeque::new(),
            shown: objects.as_ref().ok().map(Arc::clone),
        });
        (self.generation, objects.map(|objects| Reading { objects, as_of: begun }))
    }

    /// Whether nobody has asked for so long that nothing needs to be known.
    pub(super) fn idle(&self, now: Moment, pace: &Pace) -> bool {
        self.asked.is_some_and(|asked| asked.until(now) > pace.idle)
    }

    /// About how many bytes of memory the objects take.
    pub(super) fn weight(&self) -> usize {
        let listed = self.known.as_ref().and_then(|known| known.listed.as_ref().ok());
        listed.map_or(0, |listed| listed.weight)
    }

    /// Whether there is a right to watch, if that was asked a short while ago.
    pub(super) fn may_watch(&self, now: Moment, pace: &Pace) -> Option<bool> {
        let known = self.may_watch.filter(|(asked, _)| asked.until(now) < pace.right);
        known.map(|(_, may)| may)
    }

    /// Whether there is a right to watch, as the API server says.
    pub(super) fn told_whether_it_may_watch(&mut self, now: Moment, may: bool) {
        self.may_watch = Some((now, may));
    }

    fn of(&mut self, generation: u64) -> Option<&mut Known> {
        let is_its = self.generation == generation;
        self.known.as_mut().filter(|_| is_its)
    }

    /// The version from which on a watch is to tell; `None` where somebody else follows, or nothing can be followed.
    pub(super) fn version(&mut self, generation: u64) -> Option<String> {
        self.of(generation)?.listed.as_ref().ok()?.version.clone()
    }

    /// A watch has begun at that version.
    pub(super) fn opened(&mut self, generation: u64) {
        if let Some(known) = self.of(generation) {
            known.followed = true;
        }
    }

    /// What a watch says, and the version that it has come to with that.
    ///
    /// # Errors
    /// Why it can't be followed any more.
    pub(super) fn hear(&mut self, generation: u64, change: Change, version: String) -> Result<(), String> {
        let known = self.of(generation).ok_or("it is read anew")?;
        let listed = known.listed.as_mut().map_err(|reason| reason.to_string())?;
        if version.is_empty() {
            return Err("the watch tells no version".to_owned());
        }
        let same = matches!(change, Change::Nothing);
        match change {
            Change::Put(seen) => listed.put(seen),
            Change::Gone(name) => listed.remove(&name),
            Change::Nothing => {}
        }
        listed.version = Some(version);
        let fits = listed.len() <= MOST_OBJECTS;
        known.shown = known.shown.take().filter(|_| same);
        known.prove();
        if fits { Ok(()) } else { Err(Unread::TooMany.to_string()) }
    }

    /// The version that the API server said it had, no earlier than `at`.
    pub(super) fn probed(&mut self, generation: u64, at: Moment, version: u64) {
        let Some(known) = self.of(generation) else { return };
        if known.probes.len() >= MOST_PROBES {
            known.probes.pop_front();
        }
        known.probes.push_back((at, version));
        known.prove();
    }

    /// What changes is not heard any more.
    pub(super) fn lose(&mut self, generation: u64) {
        if let Some(known) = self.of(generation) {
            known.followed = false;
            self.may_watch = None;
        }
    }

    /// It has served its time, unless somebody follows it.
    pub(super) fn let_go(&mut self, generation: u64) {
        if self.of(generation).is_some_and(|known| !known.followed) {
            self.known = None;
        }
    }

    /// Nobody needs to know it.
    pub(super) fn forget(&mut self, generation: u64) {
        if self.generation == generation {
            self.known = None;
            self.needs = Needs::default();
        }
    }
}

impl Known {
    /// Takes what the watch has come to for what it is: all that was so when the API server had that version.
    fn prove(&mut self) {
        let version = self.listed.as_ref().ok().and_then(|listed| listed.version.as_deref()?.parse::<u64>().ok());
        let Some(version) = version else { return };
        while let Some((at, _)) = self.probes.front().copied().filter(|(_, probed)| *probed <= version) {
            self.probes.pop_front();
            self.as_of = self.as_of.or_later(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::follow::Follower, *};
    use serde_json::json;

    const PACE: fn() -> Pace = Pace::default;

    fn pod(name: &str, phase: &str) -> Seen {
        let object = json!({"metadata": {"name": name}, "status": {"phase": phase}});
        Seen::of(&serde_json::from_value(object).unwrap(), &Needs::whole()).unwrap()
    }

    fn listed(names: &[&str], version: &str) -> Listed {
        let mut listed = Listed { version: Some(version.to_owned()), ..Listed::default() };
        names.iter().for_each(|name| listed.put(pod(name, "Running")));
        listed
    }

    /// Read from `begun` on, for a second.
    fn read(held: &mut Held, begun: Moment, listed: Result<Listed, Unread>) -> u64 {
        let needs = held.begin(&Needs::whole());
        held.take(needs, begun, after(begun, 1.0), listed).0
    }

    fn after(at: Moment, seconds: f64) -> Moment {
        at.after(Duration::from_secs_f64(seconds))
    }

    /// The names, and how many seconds after `zero` they were so for certain.
    fn answer(held: &mut Held, zero: Moment, seconds: f64) -> Option<(Vec<String>, f64)> {
        let reading = held.ask(Asks::Plan, &Needs::whole(), after(zero, seconds), &PACE())?.unwrap();
        let names = reading.objects.iter().map(|seen| seen.name().to_string());
        Some((names.collect(), zero.until(reading.as_of).as_secs_f64()))
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_reading_that_nobody_follows_serves_for_a_moment() {
        let (mut held, zero) = (Held::default(), Moment::now());
        assert_eq!(answer(&mut held, zero, 0.0), None);
        read(&mut held, zero, Ok(listed(&["a", "b"], "10")));
        // It counts from its end, so that who waited for it is served by it.
        assert_eq!(answer(&mut held, zero, 3.4), Some((names(&["a", "b"]), 0.0)));
        assert_eq!(answer(&mut held, zero, 3.6), None);
        read(&mut held, zero, Err("Pod can't be read".to_owned().into()));
        let refused = |held: &mut Held, seconds| held.ask(Asks::Plan, &Needs::default(), after(zero, seconds), &PACE());
        assert_eq!(refused(&mut held, 3.4).map(|said| said.unwrap_err()).as_deref(), Some("Pod can't be read"));
        assert!(refused(&mut held, 3.6).is_none());
        // To find out again would take as much as a reading that is followed.
        read(&mut held, zero, Err(Unread::TooMany));
        assert!(refused(&mut held, 30.9).is_some_and(|said| said.unwrap_err().contains("narrow the gate")));
        assert!(refused(&mut held, 31.1).is_none());
    }

    #[test]
    fn a_watch_tells_what_changes_and_in_its_order() {
        let (mut held, zero) = (Held::default(), Moment::now());
        let generation = read(&mut held, zero, Ok(listed(&["b", "c"], "10")));
        assert_eq!(held.version(generation).as_deref(), Some("10"));
        held.opened(generation);
        let weight = held.weight();
        held.hear(generation, Change::Put(pod("a", "Running")), "11".to_owned()).unwrap();
        held.hear(generation, Change::Gone("c".to_owned()), "12".to_owned()).unwrap();
        assert_eq!(answer(&mut held, zero, 20.0), Some((names(&["a", "b"]), 0.0)));
        assert_eq!((held.weight(), held.version(generation).as_deref()), (weight, Some("12")));
        held.hear(generation, Change::Put(pod("a", "Failed")), "13".to_owned()).unwrap();
        let objects = held.ask(Asks::Plan, &Needs::whole(), zero, &PACE()).unwrap().unwrap().objects;
        assert!(format!("{objects:?}").contains("Failed"), "{objects:?}");
        held.hear(generation, Change::Nothing, "20".to_owned()).unwrap();
        assert_eq!(held.version(generation).as_deref(), Some("20"));
        assert!(held.hear(generation, Change::Nothing, String::new()).is_err());
    }

    #[test]
    fn nothing_is_answered_from_what_no_second_voice_confirms() {
        let (mut held, zero) = (Held::default(), Moment::now());
        let generation = read(&mut held, zero, Ok(listed(&["a"], "10")));
        held.opened(generation);
        // Objects and bookmarks come, and nobody knows whether they are late.
        held.hear(generation, Change::Put(pod("b", "Running")), "11".to_owned()).unwrap();
        held.hear(generation, Change::Nothing, "12".to_owned()).unwrap();
        assert_eq!(answer(&mut held, zero, 29.9), Some((names(&["a", "b"]), 0.0)));
        assert_eq!(answer(&mut held, zero, 30.1), None);
        // The API server is further than the watch: that is no proof.
        held.probed(generation, after(zero, 15.0), 20);
        held.probed(generation, after(zero, 25.0), 30);
        held.hear(generation, Change::Nothing, "19".to_owned()).unwrap();
        assert_eq!(answer(&mut held, zero, 30.1), None);
        held.hear(generation, Change::Nothing, "29".to_owned()).unwrap();
        assert_eq!(answer(&mut held, zero, 30.1), Some((names(&["a", "b"]), 15.0)));
        assert_eq!(answer(&mut held, zero, 45.1), None);
        held.hear(generation, Change::Nothing, "30".to_owned()).unwrap();
        assert_eq!(answer(&mut held, zero, 45.1), Some((names(&["a", "b"]), 25.0)));
        // The bookmark may be there before the answer about the version.
        held.probed(generation, after(zero, 40.0), 30);
        assert_eq!(answer(&mut held, zero, 70.0), Some((names(&["a", "b"]), 40.0)));
        assert_eq!(answer(&mut held, zero, 70.1), None);
        // A version that is no number can't be compared, and proves nothing.
        held.hear(generation, Change::Nothing, "zz".to_owned()).unwrap();
        held.probed(generation, after(zero, 69.0), 1);
        assert_eq!(answer(&mut held, zero, 70.1), None);
    }

    #[test]
    fn a_machine_that_was_suspended_answers_from_nothing_that_was_known_before() {
        let (mut held, zero) = (Held::default(), Moment::now());
        let generation = read(&mut held, zero, Ok(listed(&["a"], "10")));
        held.opened(generation);
        let slept = |seconds| after(zero, 1.0).after_suspension(Duration::from_secs(seconds));
        assert!(held.ask(Asks::Plan, &Needs::whole(), slept(28), &PACE()).is_some());
        assert!(held.ask(Asks::Plan, &Needs::whole(), slept(3_600), &PACE()).is_none());
    }

    #[test]
    fn what_is_not_heard_any_more_is_not_answered_from() {
        let (mut held, zero) = (Held::default(), Moment::now());
        let first = read(&mut held, zero, Ok(listed(&["a"], "10")));
        held.opened(first);
        held.told_whether_it_may_watch(zero, true);
        assert_eq!(held.may_watch(after(zero, 59.0), &PACE()), Some(true));
        assert_eq!(held.may_watch(after(zero, 60.0), &PACE()), None);
        held.lose(first);
        assert_eq!(answer(&mut held, zero, 5.0), None);
        assert_eq!(held.may_watch(zero, &PACE()), None, "it may be the right that is gone");
        // Whoever follows an earlier reading is not heard.
        let second = read(&mut held, zero, Ok(listed(&["b"], "30")));
        held.opened(first);
        assert_eq!(answer(&mut held, zero, 5.0), None);
        held.opened(second);
        assert!(held.hear(first, Change::Gone("b".to_owned()), "31".to_owned()).is_err());
        held.probed(first, after(zero, 5.0), 1);
        held.lose(first);
        held.forget(first);
        assert_eq!(answer(&mut held, zero, 5.0), Some((names(&["b"]), 0.0)));
        // While it is read anew, what it was is not what it is.
        held.begin(&Needs::default());
        assert_eq!(answer(&mut held, zero, 5.0), None);
        assert_eq!((held.version(second), held.weight()), (None, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_follows_is_let_go_when_it_has_served_its_time() {
        let (held, zero) = (Arc::new(Mutex::new(Held::default())), Moment::now());
        let generation = read(&mut lock(&held), zero, Ok(listed(&["a"], "10")));
        let _nobody = Follower::of_nobody(&held, generation, &PACE());
        tokio::time::sleep(Duration::from_millis(2_400)).await;
        assert!(lock(&held).weight() > 0);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(lock(&held).weight(), 0);
        // And what somebody follows is not.
        let generation = read(&mut lock(&held), zero, Ok(listed(&["a"], "10")));
        lock(&held).opened(generation);
        lock(&held).let_go(generation);
        assert!(lock(&held).weight() > 0);
        lock(&held).lose(generation);
        lock(&held).let_go(generation);
        assert_eq!(lock(&held).weight(), 0);
    }

    #[test]
    fn what_was_not_kept_is_read_first() {
        let (mut held, zero) = (Held::default(), Moment::now());
        let needs = held.begin(&Needs::default());
        let (generation, _) = held.take(needs, zero, zero, Ok(listed(&["a"], "10")));
        held.opened(generation);
        assert!(held.ask(Asks::Plan, &Needs::default(), zero, &PACE()).is_some());
        assert!(held.ask(Asks::Plan, &Needs::whole(), zero, &PACE()).is_none());
        assert_eq!(held.begin(&Needs::whole()), Needs::whole());
        assert_eq!(held.begin(&Needs::default()), Needs::whole(), "for all who ask");
    }

    #[test]
    fn there_is_an_end_to_how_much_and_how_long() {
        let (mut held, zero) = (Held::default(), Moment::now());
        let all: Vec<String> = (0..MOST_OBJECTS).map(|number| format!("p{number}")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let generation = read(&mut held, zero, Ok(listed(&all, "10")));
        held.opened(generation);
        held.hear(generation, Change::Put(pod("p0", "Failed")), "11".to_owned()).unwrap();
        let more = held.hear(generation, Change::Put(pod("another", "Running")), "12".to_owned());
        assert_eq!(more, Err(Unread::TooMany.to_string()));

        assert!(!Held::default().idle(zero, &PACE()), "nobody has come to ask yet");
        held.ask(Asks::People, &Needs::default(), zero, &PACE());
        held.ask(Asks::People, &Needs::default(), after(zero, 100.0), &PACE());
        assert!(!held.idle(after(zero, 180.0), &PACE()) && held.idle(after(zero, 181.0), &PACE()));
        held.ask(Asks::Plan, &Needs::default(), after(zero, 100.0), &PACE());
        assert!(!held.idle(after(zero, 280.0), &PACE()) && held.idle(after(zero, 281.0), &PACE()));
        held.forget(generation);
        assert_eq!((held.weight(), held.version(generation)), (0, None));
        assert!(held.ask(Asks::Plan, &Needs::default(), zero, &PACE()).is_none());
    }
}
