//! The acts of both stories. Each waits for what must happen, looks at what must not have happened, and says what it saw.

mod bad_release;
mod broken_member;
mod control_planes;
mod first_release;
mod freeze_and_rollback;
mod refused;
mod rollout;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::report::Act;
use super::snapshot::Snapshot;
use super::story::Story;

/// The longest that any one wait of the story may take, on a busy machine. Everything usual is far below.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

/// A story that the sandbox can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tale {
    /// A fleet of workers beside a control plane.
    Fleet,
    /// Machines that carry the control plane.
    ControlPlanes,
}

impl Tale {
    /// How many acts it has.
    pub(crate) fn acts(self) -> u8 {
        match self {
            Self::Fleet => 5,
            Self::ControlPlanes => 3,
        }
    }

    fn title(self, number: u8) -> &'static str {
        match (self, number) {
            (Self::Fleet, 1) => "machines are installed with 1.0 and join the cluster",
            (Self::Fleet, 2) => "1.1 is published: staged everywhere, rolled out node by node",
            (Self::Fleet, 3) => "1.2 is published: its kubelet never comes up",
            (Self::Fleet, 4) => "1.3 is published: frozen half way, finished, and rolled back to 1.1",
            (Self::Fleet, _) => "a tampered and an expired repository are offered",
            (Self::ControlPlanes, 1) => "machines with 1.0 carry the cluster that they are nodes of",
            (Self::ControlPlanes, 2) => "1.1 is published while a member of etcd is broken: no update begins",
            (Self::ControlPlanes, _) => "the member is repaired: every machine reboots into 1.1, the API stays",
        }
    }

    /// The releases that it needs up to an act: the one that machines are installed with, and those that are published.
    pub(crate) fn releases(self, until: u8) -> Vec<&'static str> {
        std::iter::once("1.0").chain((1..=until).filter_map(|act| self.release(act))).collect()
    }

    /// The release that an act publishes.
    fn release(self, number: u8) -> Option<&'static str> {
        match (self, number) {
            (_, 2) => Some("1.1"),
            (Self::Fleet, 3) => Some("1.2"),
            (Self::Fleet, 4) => Some("1.3"),
            _ => None,
        }
    }
}

/// Plays the acts in order, up to the last one that is wanted.
pub(super) async fn play(story: &mut Story) -> anyhow::Result<()> {
    let tale = story.tale();
    for number in 1..=story.until() {
        let stage = Stage::enter(story, tale, number);
        let seen = match (tale, number) {
            (Tale::Fleet, 1) => first_release::play(story).await,
            (Tale::Fleet, 2) => rollout::play(story).await,
            (Tale::Fleet, 3) => bad_release::play(story).await,
            (Tale::Fleet, 4) => freeze_and_rollback::play(story).await,
            (Tale::Fleet, _) => refused::play(story).await,
            (Tale::ControlPlanes, 1) => control_planes::carry(story).await,
            (Tale::ControlPlanes, 2) => broken_member::play(story).await,
            (Tale::ControlPlanes, _) => control_planes::update(story).await,
        };
        let seen = seen.with_context(|| format!("act {number} ({})", tale.title(number)))?;
        stage.leave(story, seen);
    }
    Ok(())
}

struct Stage {
    tale: Tale,
    number: u8,
    started: Instant,
    sent: u64,
}

impl Stage {
    fn enter(story: &Story, tale: Tale, number: u8) -> Self {
        story.view.act(number, tale.acts(), tale.title(number));
        Self { tale, number, started: Instant::now(), sent: story.repository.bytes_sent() }
    }

    fn leave(self, story: &mut Story, seen: Vec<String>) {
        for line in &seen {
            story.view.say(&format!("  {line}"));
        }
        let moved = story.repository.bytes_sent() - self.sent;
        let whole = self.tale.release(self.number).map_or(0, |version| story.repository.whole(version));
        story.acts.push(Act {
            number: self.number,
            title: self.tale.title(self.number).to_owned(),
            seconds: self.started.elapsed().as_secs_f64(),
            bytes_moved: moved,
            bytes_whole: whole * story.hosts.len() as u64,
            seen,
        });
    }
}

/// How often each machine started between two moments.
fn starts_between(before: &Snapshot, after: &Snapshot) -> BTreeMap<String, u64> {
    let earlier = before.starts();
    let since = |(node, starts): (String, u64)| {
        let was = earlier.get(&node).copied().unwrap_or(0);
        (node, starts.saturating_sub(was))
    };
    after.starts().into_iter().map(since).collect()
}

/// Refuses when a machine started more often than `most`, unless processes are being killed on purpose.
fn each_started_at_most(starts: &BTreeMap<String, u64>, most: u64) -> anyhow::Result<()> {
    for (node, count) in starts {
        ensure!(*count <= most, "{node} started {count} times, {most} would have done");
    }
    Ok(())
}
