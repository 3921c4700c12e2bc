//! Tells a webhook of rollouts: one CloudEvent (CloudEvents 1.0, "HTTP Protocol Binding", structured mode) for each that begins, halts
//! or ends, and for each release that is blocked.
//!
//! Who is told is an audience, and never a gate: events wait in a short line of their own, one that can't be delivered is
//! tried for a while and then dropped with a line in the log, and nothing that plans or writes waits for any of it.

mod delivery;

use crate::{clock::Clock, metrics::Metrics};
use bascule_api::{Outcome, Time, Version};
pub(crate) use delivery::bearer;
use delivery::{Answer, Delivery};
use serde::Serialize;
use serde_json::{Value, json};
use std::{path::PathBuf, time::Duration};
use tokio::sync::mpsc;
use url::Url;

/// Events that wait to be delivered; more are dropped.
const LINE: usize = 256;
/// How often one event is tried: over about half an hour.
const TRIES: u32 = 12;
/// After the first try that failed, doubling up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// The longest text that is sent.
const MESSAGE: usize = 1024;

/// Where events go.
#[derive(Debug, Clone)]
pub struct Target {
    /// The webhook.
    pub url: Url,
    /// A file with a bearer token, read for each event so that it may be renewed.
    pub token_file: Option<PathBuf>,
}

/// What happened to a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its first node was granted.
    Began,
    /// It starts no more nodes, after failures.
    Halted,
    /// Its release is never installed again by this policy.
    Blocked,
    /// Every node runs it.
    Done,
    /// It ended otherwise.
    Ended,
}

impl Kind {
    /// The event's type; consumers choose by it.
    #[must_use]
    pub const fn event_type(self) -> &'static str {
        match self {
            Self::Began => "dev.bascule.rollout.began",
            Self::Halted => "dev.bascule.rollout.halted",
            Self::Blocked => "dev.bascule.release.blocked",
            Self::Done => "dev.bascule.rollout.done",
            Self::Ended => "dev.bascule.rollout.ended",
        }
    }
}

impl From<Outcome> for Kind {
    fn from(outcome: Outcome) -> Self {
        if outcome == Outcome::Done { Self::Done } else { Self::Ended }
    }
}

/// Something that is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// What happened.
    pub kind: Kind,
    /// The policy.
    pub policy: String,
    /// The release, where it is about one.
    pub release: Option<Version>,
    /// In a sentence.
    pub message: String,
}

#[derive(Serialize)]
struct Data<'a> {
    policy: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<&'a Version>,
    message: String,
}

impl Notification {
    fn event(&self, source: &str, at: Time) -> Value {
        let message: String = self.message.chars().take(MESSAGE).collect();
        let data = Data { policy: &self.policy, release: self.release.as_ref(), message };
        json!({
            "specversion": "1.0",
            // The same for every try: who is told twice can tell.
            "id": uuid::Uuid::new_v4().to_string(),
            "source": source,
            "type": self.kind.event_type(),
            "subject": self.policy,
            "time": at,
            "datacontenttype": "application/json",
            "data": data,
        })
    }
}

/// Takes notifications. Cheap to clone; the default tells nobody.
#[derive(Debug, Clone, Default)]
pub struct Notifier(Option<mpsc::Sender<Notification>>);

impl Notifier {
    /// Delivers in the background, until the last clone is dropped. `source` says which installation speaks.
    #[must_use]
    pub fn start(target: Target, http: reqwest::Client, source: String, clock: Clock, metrics: Metrics) -> Self {
        let (sender, line) = mpsc::channel(LINE);
        let delivery = Delivery { target, http };
        tokio::spawn(deliver(line, delivery, source, clock, metrics));
        Self(Some(sender))
    }

    /// Tells, or drops it where too many wait. Never blocks.
    pub fn tell(&self, notification: Notification) {
        if let Some(line) = &self.0
            && let Err(error) = line.try_send(notification)
        {
            tracing::warn!(%error, "a notification is dropped: too many wait for the webhook");
        }
    }
}

async fn deliver(
    mut line: mpsc::Receiver<Notification>,
    delivery: Delivery,
    source: String,
    clock: Clock,
    metrics: Metrics,
) {
    while let Some(notification) = line.recv().await {
        let event = notification.event(&source, Time::new(clock.now()));
        let (policy, kind) = (&notification.policy, notification.kind.event_type());
        for tried in 1..=TRIES {
            match delivery.post(&event).await {
                Answer::Taken => {
                    metrics.notified("sent");
                    break;
                }
                Answer::Refused(why) => {
                    metrics.notified("refused");
                    tracing::warn!(policy, kind, why, "the webhook refuses a notification: it is dropped");
                    break;
                }
                Answer::Unknown(why) if tried == TRIES => {
                    metrics.notified("failed");
                    tracing::warn!(policy, kind, why, tried, "a notification can't be delivered: it is dropped");
                }
                Answer::Unknown(why) => {
                    tracing::info!(policy, kind, why, tried, "a notification was not delivered: it is tried again");
                    tokio::time::sleep(pause(tried)).await;
                }
            }
        }
    }
}

/// How long to wait after so many tries.
fn pause(tried: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << tried.saturating_sub(1).min(16)).min(LONGEST_PAUSE)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
