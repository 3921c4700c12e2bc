//! Follows what was read of the objects of a question: one watch, however many questions there are, for as long as there
//! are any. A watch is asked for again every few seconds, which is when the API server looks at the right to it, and in
//! each the server is asked once for its version, which proves the watch ([`super::held`]). Whatever goes wrong ends it:
//! the next question reads the objects anew, and what comes of that is the answer.

use super::{
    held::{Change, Held, Pace, Unread, lock},
    needs::Needs,
    seen::name_of,
    source::Source,
};
use crate::{clock::Moment, rights};
use futures::StreamExt as _;
use kube::{
    Client,
    api::{DynamicObject, WatchEvent},
};
use std::{
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};
use tokio::{sync::OwnedSemaphorePermit, task::AbortHandle, time::timeout};

/// How much all watches keep of objects, in bytes of memory: a quarter of what the manifest gives the operator.
const MOST_KEPT: usize = 64 << 20;
/// How much is read, in bytes, whatever else is read just then: no gate waits for those that look at much.
const A_LITTLE: usize = 1 << 20;

/// The memory that there is for what gates look at. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Rooms {
    taken: Arc<AtomicUsize>,
    most: usize,
}

impl Default for Rooms {
    fn default() -> Self {
        Self::of(MOST_KEPT)
    }
}

impl Rooms {
    /// So many bytes for what is kept, and as many again for what is being read.
    pub(super) fn of(most: usize) -> Self {
        Self { taken: Arc::default(), most }
    }

    /// Nothing of it yet.
    pub(super) fn room(&self) -> Room {
        Room { all: self.clone(), own: AtomicUsize::new(0) }
    }
}

/// What one reading, or one watch, takes of the memory that there is for all of them.
#[derive(Debug)]
pub(super) struct Room {
    all: Rooms,
    own: AtomicUsize,
}

impl Room {
    /// Takes so much instead of what it took; whether there is room to keep it.
    pub(super) fn holds(&self, bytes: usize) -> bool {
        self.take(bytes) <= self.all.most
    }

    /// The same for what is being read.
    ///
    /// # Errors
    /// Why it can't be read on.
    pub(super) fn reads(&self, bytes: usize) -> Result<(), Unread> {
        let all = self.take(bytes);
        if bytes > self.all.most {
            return Err(Unread::TooMuch);
        }
        if all > self.all.most.saturating_mul(2) && bytes > A_LITTLE {
            return Err("there is no room for its objects beside those that other gates look at".to_owned().into());
        }
        Ok(())
    }

    fn take(&self, bytes: usize) -> usize {
        let more = bytes.wrapping_sub(self.own.swap(bytes, Ordering::Relaxed));
        self.all.taken.fetch_add(more, Ordering::Relaxed).wrapping_add(more)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.all.taken.fetch_sub(*self.own.get_mut(), Ordering::Relaxed);
    }
}

/// A task that follows; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Follower(AbortHandle);

impl Follower {
    /// Lets go of a reading that nobody follows.
    pub(super) fn of_nobody(held: &Arc<Mutex<Held>>, generation: u64, pace: &Pace) -> Self {
        Self(tokio::spawn(let_go(Arc::clone(held), generation, *pace)).abort_handle())
    }
}

/// Lets go of a reading when it has served its time: it may be long until somebody asks again.
async fn let_go(held: Arc<Mutex<Held>>, generation: u64, pace: Pace) {
    tokio::time::sleep(pace.shared).await;
    lock(&held).let_go(generation);
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why nobody follows any more.
enum End {
    /// Nobody asks.
    Idle,
    /// There is no right to watch.
    MayNot,
    /// It can't be heard, or not be kept.
    Lost(String),
}

/// What follows one reading.
pub(super) struct Follow {
    /// As the account of gates.
    pub(super) client: Client,
    pub(super) source: Source,
    pub(super) held: Arc<Mutex<Held>>,
    /// Of the reading.
    pub(super) generation: u64,
    /// What was kept of each object.
    pub(super) needs: Needs,
    pub(super) pace: Pace,
    pub(super) room: Room,
    /// One of the watches that may be open.
    pub(super) permit: OwnedSemaphorePermit,
}

impl Follow {
    /// Begins.
    pub(super) fn start(self) -> Follower {
        Follower(tokio::spawn(self.run()).abort_handle())
    }

    async fn run(self) {
        let end = self.follow().await;
        let Self { source, held, generation, pace, room, permit, .. } = self;
        match end {
            End::Idle => lock(&held).forget(generation),
            // Which is known from now on.
            End::MayNot => {}
            End::Lost(why) => {
                tracing::debug!(kind = source.resource.kind, why, "a gate's objects are read anew");
                lock(&held).lose(generation);
            }
        }
        drop(permit);
        let_go(held, generation, pace).await;
        drop(room);
    }

    async fn follow(&self) -> End {
        if let Err(end) = self.allowed().await {
            return end;
        }
        let mut pause = self.pace.between;
        loop {
            let opened = Instant::now();
            if lock(&self.held).idle(Moment::now(), &self.pace) {
                return End::Idle;
            }
            if let Err(why) = self.listen(opened).await {
                return End::Lost(why);
            }
            // One that is cut at once, as by a proxy, is not opened again and again.
            let is_cut = opened.elapsed() < self.pace.between;
            pause = if is_cut { (pause * 2).min(self.pace.period) } else { self.pace.between };
            tokio::time::sleep_until((opened + pause).into()).await;
        }
    }

    /// Asks for the right first: nothing is tried that may be refused.
    async fn allowed(&self) -> Result<(), End> {
        let known = lock(&self.held).may_watch(Moment::now(), &self.pace);
        let may = match known {
            Some(may) => may,
            None => {
                let may = rights::may(&self.client, self.source.watching()).await;
                let may = may.map_err(|error| End::Lost(crate::one_line(&error)))?;
                lock(&self.held).told_whether_it_may_watch(Moment::now(), may);
                may
            }
        };
        if may { Ok(()) } else { Err(End::MayNot) }
    }

    /// One watch, to its end.
    ///
    /// # Errors
    /// Why what it would have told may be missing.
    async fn listen(&self, opened: Instant) -> Result<(), String> {
        const SILENT: &str = "the API server neither tells nor ends it";
        let said = |error: kube::Error| crate::one_line(&error);
        let version = lock(&self.held).version(self.generation).ok_or("there is no version to watch from")?;
        let opening = timeout(self.pace.grace, self.source.watch(&version, self.pace.period)).await;
        let mut events = opening.map_err(|_| SILENT)?.map_err(said)?;
        lock(&self.held).opened(self.generation);
        let mut probe = pin!(async {
            tokio::time::sleep_until((opened + self.pace.probe).into()).await;
            let before = lock(&self.held).version(self.generation).and_then(|version| version.parse::<u64>().ok());
            self.source.probe().await.map(|(at, found)| (before, at, found))
        });
        let mut probed = false;
        let mut end = pin!(tokio::time::sleep_until((opened + self.pace.period + self.pace.grace).into()));
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => self.hear(event.map_err(said)?)?,
                    None => return Ok(()),
                },
                found = &mut probe, if !probed => {
                    probed = true;
                    let (before, at, version) = found.map_err(said)?;
                    // etcd was restored: what was heard is no state of these objects any more, and nothing new would be heard.
                    if version.zip(before).is_some_and(|(found, before)| found < before) {
                        return Err("the API server's versions went back".to_owned());
                    }
                    if let Some(version) = version {
                        lock(&self.held).probed(self.generation, at, version);
                    }
                }
                () = &mut end => return Err(SILENT.to_owned()),
            }
        }
    }

    fn hear(&self, event: WatchEvent<DynamicObject>) -> Result<(), String> {
        let of = |object: &DynamicObject| object.metadata.resource_version.clone().unwrap_or_default();
        let (change, version) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let version = of(&object);
                (Change::Put(self.source.seen(object, &self.needs)?), version)
            }
            WatchEvent::Deleted(object) => (Change::Gone(name_of(&object)), of(&object)),
            WatchEvent::Bookmark(bookmark) => (Change::Nothing, bookmark.metadata.resource_version),
            // 410 Gone too: the version is too old for the API server.
            WatchEvent::Error(status) => return Err(crate::one_line(&kube::Error::Api(status))),
        };
        let mut held = lock(&self.held);
        held.hear(self.generation, change, version)?;
        if self.room.holds(held.weight()) { Ok(()) } else { Err("there is no room for it".to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_watches_share_what_memory_there_is() {
        let all = Rooms::default();
        let (first, second) = (all.room(), all.room());
        assert!(first.holds(MOST_KEPT / 2) && second.holds(MOST_KEPT / 2));
        assert!(!second.holds(MOST_KEPT / 2 + 1));
        assert!(first.holds(1) && second.holds(MOST_KEPT / 2));
        drop(second);
        assert!(first.holds(MOST_KEPT) && !first.holds(MOST_KEPT + 1));
        drop(first);
        assert_eq!(all.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_read_has_as_much_room_again_and_who_looks_at_little_always_has_some() {
        let all = Rooms::default();
        let (kept, first, second) = (all.room(), all.room(), all.room());
        assert!(kept.holds(MOST_KEPT));
        assert_eq!(first.reads(MOST_KEPT), Ok(()));
        assert_eq!(second.reads(A_LITTLE), Ok(()));
        assert!(matches!(second.reads(A_LITTLE + 1), Err(Unread::Refused(why)) if why.contains("no room")));
        assert_eq!(first.reads(MOST_KEPT + 1), Err(Unread::TooMuch));
        drop(first);
        assert_eq!(second.reads(A_LITTLE + 1), Ok(()));
    }
}
