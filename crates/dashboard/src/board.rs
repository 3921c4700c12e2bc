//! What readers are told: the whole fleet when they come, then what differs from look to look.
//!
//! One task looks for all of them, and only while there is one. Every reader of the same look is sent the same bytes, so
//! that what they cost does not grow with their number.

use crate::calendar::Calendar;
use bascule_api::{DrainProgress, LiveNode, LiveReport, LiveWait, RolloutState, Time, Version};
use bytes::Bytes;
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hasher as _},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{broadcast, watch},
    task::JoinSet,
    time::Instant,
};

/// How many changes a reader may be behind before it is told the whole again.
const BEHIND: usize = 16;
/// Between two calendars.
const CALENDAR: Duration = Duration::from_secs(120);

/// What is known at the moment.
#[derive(Debug)]
pub enum Look {
    /// The same as at the look with this stamp.
    Same,
    /// Something else.
    New {
        /// The report.
        report: Box<LiveReport>,
        /// Names it for the next look.
        stamp: u64,
        /// What a reader must know of it before anything else.
        note: Option<String>,
    },
    /// There is nothing to be told, and why.
    Away(String),
}

/// Where the page's knowledge is from.
pub trait Source: Send + Sync + 'static {
    /// Looks, at most every [`Source::pause`].
    fn look(&self, since: Option<u64>) -> impl Future<Output = Look> + Send;
    /// What lies ahead, where that is known.
    fn calendar(&self) -> impl Future<Output = Option<Calendar>> + Send;
    /// Between two looks.
    fn pause(&self) -> Duration;
}

/// Everything but the nodes.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    planned_by: &'a str,
    operator_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
    policies: &'a [bascule_api::LivePolicy],
    freezes: &'a [bascule_api::LiveOrder<bascule_api::FreezeSpec, bascule_api::FreezeStatus>],
    rollbacks: &'a [bascule_api::LiveOrder<bascule_api::RollbackSpec, bascule_api::RollbackStatus>],
}

/// A node, with references that hold from change to change.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PageNode<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<&'a str>,
    state: RolloutState,
    wait: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drain: Option<&'a DrainProgress>,
    #[serde(skip_serializing_if = "Option::is_none")]
    booted: Option<&'a Version>,
    #[serde(skip_serializing_if = "Option::is_none")]
    staged: Option<&'a Version>,
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<u32>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    planned_at: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<Head<'a>>,
    waits: BTreeMap<u32, &'a LiveWait>,
    nodes: Vec<PageNode<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gone: Vec<&'a str>,
}

/// One look, ready to be told and to be compared.
#[derive(Debug)]
struct Known {
    report: LiveReport,
    note: Option<String>,
    /// The number of each of the report's waits, and what was said of it.
    waits: Vec<(u32, u64)>,
    /// What was said of each node, by its place.
    nodes: Vec<u64>,
    head: u64,
}

/// Numbers for waits that stay the same while a wait only says it in other words ("3 of 40 are done"): of the nodes that share it
/// nothing has to be told then.
#[derive(Debug, Default)]
struct Numbers {
    of: HashMap<u64, u32>,
    next: u32,
}

impl Numbers {
    /// The number of each wait, forgetting those that are no more.
    fn number(&mut self, waits: &[LiveWait]) -> Vec<u32> {
        let mut kept = HashMap::with_capacity(waits.len());
        // Several that differ in words alone are told apart by their order.
        let mut alike: HashMap<u64, u32> = HashMap::new();
        let numbers = waits.iter().map(|wait| {
            let cause = hash(&(wait.reason, &wait.object));
            let place = alike.entry(cause).or_default();
            let key = hash(&(cause, *place));
            *place += 1;
            let number = self.of.get(&key).copied().unwrap_or_else(|| {
                self.next = self.next.wrapping_add(1);
                self.next
            });
            kept.insert(key, number);
            number
        });
        let numbers = numbers.collect();
        self.of = kept;
        numbers
    }
}

fn hash(value: &impl std::hash::Hash) -> u64 {
    // Keys of the standard library's choice: nobody outside can aim at a collision that matters, for one would only hide a
    // change until the next.
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Of what JSON says of it, without making that JSON a string.
fn hash_json(value: &impl Serialize) -> u64 {
    struct Into<'a>(&'a mut DefaultHasher);
    impl std::io::Write for Into<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.write(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut hasher = DefaultHasher::new();
    // It can't fail: neither does the writer, nor do our own types.
    let _ = serde_json::to_writer(Into(&mut hasher), value);
    hasher.finish()
}

impl Known {
    fn new(report: LiveReport, note: Option<String>, numbers: &mut Numbers) -> Self {
        let said = report.waits.iter().map(hash);
        let waits = numbers.number(&report.waits).into_iter().zip(said).collect();
        let mut known = Self { report, note, waits, nodes: Vec::new(), head: 0 };
        known.head = hash_json(&known.head());
        known.nodes = known.report.nodes.iter().map(|node| hash_json(&known.node(node))).collect();
        known
    }

    fn head(&self) -> Head<'_> {
        Head {
            planned_by: &self.report.planned_by,
            operator_version: &self.report.operator_version,
            note: self.note.as_deref(),
            policies: &self.report.policies,
            freezes: &self.report.freezes,
            rollbacks: &self.report.rollbacks,
        }
    }

    fn node<'a>(&'a self, node: &'a LiveNode) -> PageNode<'a> {
        let policy = node.policy.and_then(|index| self.report.policies.get(index));
        PageNode {
            name: &node.name,
            policy: policy.map(|policy| policy.name.as_str()),
            zone: node.zone.as_deref(),
            state: node.state,
            wait: self.waits.get(node.wait).map_or(0, |(number, _)| *number),
            since: node.since,
            drain: node.drain.as_ref(),
            booted: node.booted.as_ref(),
            staged: node.staged.as_ref(),
            percent: node.percent,
        }
    }

    fn whole(&self) -> Bytes {
        let told = Told {
            planned_at: self.report.planned_at,
            head: Some(self.head()),
            waits: self.waits.iter().map(|(number, _)| *number).zip(&self.report.waits).collect(),
            nodes: self.report.nodes.iter().map(|node| self.node(node)).collect(),
            gone: Vec::new(),
        };
        event("whole", &told)
    }

    /// What differs from an earlier look; nothing where that is nothing but the time.
    fn change(&self, before: &Self) -> Option<Bytes> {
        let old: HashMap<&str, u64> =
            before.report.nodes.iter().map(|node| node.name.as_str()).zip(before.nodes.iter().copied()).collect();
        let known: HashMap<u32, u64> = before.waits.iter().copied().collect();
        let waits = self.waits.iter().zip(&self.report.waits);
        let waits = waits.filter(|((number, said), _)| known.get(number) != Some(said));
        let waits: BTreeMap<u32, &LiveWait> = waits.map(|((number, _), wait)| (*number, wait)).collect();
        let mut changed = Vec::new();
        let mut kept = 0;
        for (node, said) in self.report.nodes.iter().zip(&self.nodes) {
            let known = old.get(node.name.as_str());
            kept += usize::from(known.is_some());
            if known != Some(said) {
                changed.push(self.node(node));
            }
        }
        let mut gone = Vec::new();
        if kept < old.len() {
            let there: std::collections::HashSet<&str> =
                self.report.nodes.iter().map(|node| node.name.as_str()).collect();
            gone.extend(old.keys().filter(|name| !there.contains(*name)));
        }
        let head = (self.head != before.head).then(|| self.head());
        let nothing = head.is_none() && waits.is_empty() && changed.is_empty() && gone.is_empty();
        // A plan at least every minute is what shows that somebody still leads.
        let same_minute = self.report.planned_at.seconds_since(before.report.planned_at) < 30;
        (!(nothing && same_minute))
            .then(|| event("change", &Told { planned_at: self.report.planned_at, head, waits, nodes: changed, gone }))
    }
}

/// An event of the stream, as the HTML standard writes it; JSON has no line breaks of its own.
fn event(name: &str, data: &impl Serialize) -> Bytes {
    let mut text = format!("event: {name}\ndata: ").into_bytes();
    // Nothing of ours fails to be JSON; an empty object is no event that anybody would misunderstand.
    if serde_json::to_writer(&mut text, data).is_err() {
        return Bytes::from_static(b": \n\n");
    }
    text.extend_from_slice(b"\n\n");
    Bytes::from(text)
}

#[derive(Debug, Default)]
enum Now {
    /// Nobody looked yet.
    #[default]
    Nothing,
    /// There is nothing to be told.
    Away(Bytes),
    /// This.
    Fleet { known: Box<Known>, whole: Option<Bytes>, calendar: Option<Bytes> },
}

/// Shared by the readers and the one that looks.
#[derive(Debug)]
pub(crate) struct Board {
    now: Mutex<Now>,
    /// Counts looks that may be told of.
    told: watch::Sender<u64>,
    changes: broadcast::Sender<Bytes>,
    readers: watch::Sender<usize>,
}

/// What a reader begins with.
pub(crate) enum Begin {
    /// This is all there is; come again.
    Away(Bytes),
    /// This, and then the changes.
    Fleet(Vec<Bytes>, broadcast::Receiver<Bytes>),
}

/// Somebody who reads; gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Reader(Arc<Board>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.readers.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl Board {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            now: Mutex::default(),
            told: watch::Sender::new(0),
            changes: broadcast::Sender::new(BEHIND),
            readers: watch::Sender::new(0),
        })
    }

    /// A reader more, unless there are `most`.
    pub(crate) fn reader(self: &Arc<Self>, most: usize) -> Option<Reader> {
        let taken = self.readers.send_if_modified(|count| {
            let room = *count < most;
            *count += usize::from(room);
            room
        });
        taken.then(|| Reader(Arc::clone(self)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The whole, as soon as somebody looked.
    pub(crate) async fn begin(&self) -> Begin {
        let mut told = self.told.subscribe();
        loop {
            told.mark_unchanged();
            match &mut *self.lock() {
                Now::Nothing => {}
                Now::Away(why) => return Begin::Away(why.clone()),
                Now::Fleet { known, whole, calendar } => {
                    let whole = whole.get_or_insert_with(|| known.whole()).clone();
                    let begin = std::iter::once(whole).chain(calendar.clone()).collect();
                    return Begin::Fleet(begin, self.changes.subscribe());
                }
            }
            if told.changed().await.is_err() {
                return Begin::Away(Bytes::new());
            }
        }
    }

    /// Looks while there are readers, for ever.
    pub(crate) async fn run(&self, source: Arc<impl Source>) {
        let mut readers = self.readers.subscribe();
        loop {
            if readers.wait_for(|count| *count > 0).await.is_err() {
                return;
            }
            tokio::select! {
                () = self.look_on(&source) => {}
                _ = readers.wait_for(|count| *count == 0) => {}
            }
            *self.lock() = Now::Nothing;
        }
    }

    async fn look_on(&self, source: &Arc<impl Source>) {
        let mut numbers = Numbers::default();
        let mut stamp = None;
        let mut calendars = JoinSet::new();
        let mut calendar_due = Instant::now();
        loop {
            match source.look(stamp).await {
                Look::Same => {}
                Look::New { report, stamp: new, note } => {
                    stamp = Some(new);
                    self.saw(Known::new(*report, note, &mut numbers));
                }
                Look::Away(message) => {
                    stamp = None;
                    calendar_due = Instant::now();
                    let away = event("away", &serde_json::json!({"message": message}));
                    *self.lock() = Now::Away(away.clone());
                    // Readers end with it and come again.
                    let _ = self.changes.send(away);
                }
            }
            self.told.send_modify(|count| *count = count.wrapping_add(1));
            if calendars.is_empty() && Instant::now() >= calendar_due && stamp.is_some() {
                let source = Arc::clone(source);
                calendars.spawn(async move { source.calendar().await });
            }
            tokio::select! {
                () = tokio::time::sleep(source.pause()) => {}
                Some(made) = calendars.join_next() => {
                    calendar_due = Instant::now() + CALENDAR;
                    if let Ok(Some(made)) = made {
                        self.made(&made);
                    }
                    tokio::time::sleep(source.pause()).await;
                }
            }
        }
    }

    fn saw(&self, new: Known) {
        let mut now = self.lock();
        if let Now::Fleet { known, whole, .. } = &mut *now {
            if let Some(change) = new.change(known) {
                **known = new;
                *whole = None;
                let _ = self.changes.send(change);
            }
        } else {
            *now = Now::Fleet { known: Box::new(new), whole: None, calendar: None };
        }
    }

    fn made(&self, made: &Calendar) {
        let bytes = event("calendar", made);
        if let Now::Fleet { calendar, .. } = &mut *self.lock() {
            *calendar = Some(bytes.clone());
            let _ = self.changes.send(bytes);
        }
    }
}

/// Whether an event is the last of its stream.
pub(crate) fn is_away(event: &[u8]) -> bool {
    event.starts_with(b"event: away\n")
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
