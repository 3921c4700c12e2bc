//! The five acts. Each waits for what must happen, looks at what must not have happened, and says what it saw.

mod bad_release;
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
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// Plays the acts in order, up to the last one that is wanted.
pub(super) async fn play(story: &mut Story) -> anyhow::Result<()> {
    for number in 1..=story.until() {
        let stage = Stage::enter(story, number);
        let seen = match number {
            1 => first_release::play(story).await,
            2 => rollout::play(story).await,
            3 => bad_release::play(story).await,
            4 => freeze_and_rollback::play(story).await,
            _ => refused::play(story).await,
        };
        let seen = seen.with_context(|| format!("act {number} ({})", title(number)))?;
        stage.leave(story, seen);
    }
    Ok(())
}

fn title(number: u8) -> &'static str {
    match number {
        1 => "machines are installed with 1.0 and join the cluster",
        2 => "1.1 is published: staged everywhere, rolled out node by node",
        3 => "1.2 is published: its kubelet never comes up",
        4 => "1.3 is published: frozen half way, finished, and rolled back to 1.1",
        _ => "a tampered and an expired repository are offered",
    }
}

struct Stage {
    number: u8,
    started: Instant,
    sent: u64,
}

impl Stage {
    fn enter(story: &Story, number: u8) -> Self {
        story.view.act(number, title(number));
        Self { number, started: Instant::now(), sent: story.repository.bytes_sent() }
    }

    fn leave(self, story: &mut Story, seen: Vec<String>) {
        for line in &seen {
            story.view.say(&format!("  {line}"));
        }
        let moved = story.repository.bytes_sent() - self.sent;
        let whole = match self.number {
            2 => story.repository.whole("1.1"),
            3 => story.repository.whole("1.2"),
            4 => story.repository.whole("1.3"),
            _ => 0,
        };
        story.acts.push(Act {
            number: self.number,
            title: title(self.number).to_owned(),
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
