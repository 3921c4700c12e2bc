//! Reads and writes the Lease as [`super::election`] says.

use super::election::{Candidate, Move};
use crate::{clock::Clock, pulse::Pulse};
use bascule_api::{Time, UNREAD_ANNOTATION};
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep, timeout_at},
};

/// How long giving the Lease back may take; afterwards it expires.
const GIVING_BACK: Duration = Duration::from_secs(5);

/// This replica's word on the Lease.
#[derive(Debug)]
pub(super) struct Campaign {
    pub leases: Api<Lease>,
    pub name: String,
    pub candidate: Candidate,
    pub clock: Clock,
    /// Until when this replica may act; `None` while it may not.
    pub acts_until: watch::Sender<Option<Instant>>,
    /// Whether something can't be read that trials hang on.
    pub unread: watch::Receiver<bool>,
    pub pulse: Pulse,
}

impl Campaign {
    /// Reads the Lease and takes it if it is free. For the start, where an error is a mistake in the installation.
    pub async fn first_look(&mut self) -> Result<(), kube::Error> {
        let lease = self.leases.get_opt(&self.name).await?;
        match self.write(lease.as_ref()).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            outcome => outcome.map(|_| ()),
        }
    }

    /// Until it is dropped, or told to stop: then the Lease is given back.
    pub async fn run(mut self, stop: oneshot::Receiver<()>) {
        let mut stop = std::pin::pin!(stop);
        let mut known = None;
        loop {
            let terms = self.candidate.terms().clone();
            let acts_until = *self.acts_until.borrow();
            // One request may not take the time of the next: a holder needs room for a second try.
            let deadline = Instant::now() + terms.renews_every();
            let outcome = tokio::select! {
                told = &mut stop => {
                    if told.is_ok() {
                        self.give_back().await;
                    }
                    return;
                }
                outcome = timeout_at(deadline, self.turn(known.take())) => outcome,
            };
            match outcome {
                Ok(Ok(lease)) => known = lease,
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                    tracing::debug!("the Lease was written by another")
                }
                Ok(Err(error)) => tracing::warn!(error = crate::one_line(&error), "the Lease can't be used"),
                Err(_) => tracing::warn!("the API server does not answer in time about the Lease"),
            }
            if acts_until.is_some_and(|until| until <= Instant::now()) && *self.acts_until.borrow() == acts_until {
                tracing::warn!(identity = terms.identity, "the Lease was not renewed in time: stepping down");
                self.acts_until.send_replace(None);
            }
            let pause = if known.is_some() { terms.renews_every() } else { terms.looks_every() };
            let end = (*self.acts_until.borrow()).filter(|_| known.is_none());
            tokio::select! {
                told = &mut stop => {
                    if told.is_ok() {
                        self.give_back().await;
                    }
                    return;
                }
                () = sleep(end.map_or(pause, |end| pause.min(end.saturating_duration_since(Instant::now())))) => {}
            }
        }
    }

    /// One look and what follows from it; the Lease as it was written, where it is ours now. A holder knows it already.
    async fn turn(&mut self, known: Option<Lease>) -> Result<Option<Lease>, kube::Error> {
        let lease = match known {
            Some(lease) => Some(lease),
            None => self.leases.get_opt(&self.name).await?,
        };
        self.write(lease.as_ref()).await
    }

    async fn write(&mut self, lease: Option<&Lease>) -> Result<Option<Lease>, kube::Error> {
        let sent = Instant::now();
        let written = match self.candidate.look(lease, sent, &self.time()) {
            Move::Wait => {
                self.pulse.lease_seen();
                self.acts_until.send_if_modified(|until| until.take().is_some());
                return Ok(None);
            }
            Move::Create(spec) => {
                let new = json!({"metadata": {"name": self.name}, "spec": spec});
                let new: Lease = serde_json::from_value(new).map_err(kube::Error::SerdeError)?;
                self.leases.create(&PostParams::default(), &new).await?
            }
            Move::Write(mut patch) => {
                if *self.unread.borrow() {
                    note_unread(&mut patch, Time::new(self.clock.now()));
                }
                self.patch(&patch).await?
            }
        };
        self.pulse.lease_written(self.candidate.terms().duration);
        let until = sent + self.candidate.terms().acts_for();
        if Instant::now() < until {
            self.acts_until.send_replace(Some(until));
        }
        Ok(Some(written))
    }

    async fn give_back(&self) {
        let giving = async {
            let Some(lease) = self.leases.get_opt(&self.name).await? else { return Ok::<_, kube::Error>(()) };
            match self.candidate.give_back(&lease, &self.time()) {
                Some(patch) => self.patch(&patch).await.map(|_| ()),
                None => Ok(()),
            }
        };
        match tokio::time::timeout(GIVING_BACK, giving).await {
            Ok(Ok(())) => tracing::info!("the Lease is given back"),
            Ok(Err(error)) => tracing::warn!(error = crate::one_line(&error), "the Lease could not be given back"),
            Err(_) => tracing::warn!("the Lease could not be given back in time and will expire"),
        }
    }

    async fn patch(&self, patch: &Value) -> Result<Lease, kube::Error> {
        self.leases.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await
    }

    fn time(&self) -> MicroTime {
        let now = Timestamp::from_microsecond(self.clock.now().timestamp_micros());
        MicroTime(now.unwrap_or(Timestamp::UNIX_EPOCH))
    }
}

/// Lets a merge patch of the Lease say too that something could not be read at this time. Where nothing is said, what stands there stays.
fn note_unread(patch: &mut Value, at: Time) {
    if let Some(metadata) = patch.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("annotations".to_owned(), json!({UNREAD_ANNOTATION: at}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_read_is_told_with_the_renewal_that_fails_where_somebody_else_wrote_meanwhile() {
        let spec = json!({"renewTime": "2026-11-29T02:00:00.000000Z"});
        let mut patch = json!({"metadata": {"resourceVersion": "7", "uid": "u"}, "spec": spec});
        let at: Time = serde_json::from_value(json!("2026-11-29T02:00:00Z")).unwrap();
        note_unread(&mut patch, at);
        let said = json!({"bascule.dev/could-not-read-at": "2026-11-29T02:00:00Z"});
        let metadata = json!({"resourceVersion": "7", "uid": "u", "annotations": said});
        assert_eq!(patch, json!({"metadata": metadata, "spec": spec}));
    }
}
