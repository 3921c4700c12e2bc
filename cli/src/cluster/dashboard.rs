//! `bascule dashboard`: the operator's page on this machine, made through the rights of whoever calls it.

use super::{
    Connection,
    facts::{Objects, snapshot},
    forecast::seed,
    live::{self, Source as From},
};
use crate::{clock, exit::Exit, output};
use anyhow::Context as _;
use bascule_api::Time;
use bascule_dashboard::{Calendar, Look, Source, calendar};
use clap::Args;
use kube::Client;
use std::{net::Ipv4Addr, time::Duration};
use tokio::net::TcpListener;

/// Each look is a request to the API server.
const PAUSE: Duration = Duration::from_secs(2);

/// Serve the dashboard on this machine, through your own rights, until Ctrl-C.
///
/// Only this machine reaches it, and only who knows its address: that holds a secret which is another each time.
#[derive(Debug, Args)]
pub(crate) struct Dashboard {
    /// The port on 127.0.0.1. 0: one that is free.
    #[arg(long, default_value_t = 0)]
    port: u16,
}

impl Dashboard {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let client = connection.client().await?;
        // Whoever has no rights or no cluster is told here, and not by a page that stays empty.
        live::seen(&client, connection).await?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).await;
        let listener = listener.with_context(|| format!("can't listen on 127.0.0.1:{}", self.port))?;
        let address = listener.local_addr().context("can't read the address that is listened on")?;
        // Neither other users of this machine nor pages from elsewhere know it.
        let secret = format!("/{}", uuid::Uuid::new_v4().simple());
        let dashboard = bascule_dashboard::Dashboard::new(Through { client, connection: connection.clone() });
        output::print(&format!("http://{address}{secret}/\n"))?;
        output::say("Open this address in a browser on this machine. Ctrl-C ends it.");
        bascule_dashboard::serve(listener, dashboard.router(&secret)).await;
        Ok(Exit::Success)
    }
}

/// The cluster, as far as the caller may read it.
struct Through {
    client: Client,
    connection: Connection,
}

impl Source for Through {
    async fn look(&self, _: Option<u64>) -> Look {
        let seen = match live::seen(&self.client, &self.connection).await {
            Ok(seen) => seen,
            Err(error) => return Look::Away(format!("{error:#}")),
        };
        let note = match &seen.source {
            From::Leader { .. } => None,
            From::Objects { why, .. } => Some(format!("Not live: {why}. This is what the objects say.")),
        };
        // Times of plans have whole seconds, so that two may look the same: the board finds out what differs.
        Look::New { report: Box::new(seen.report), stamp: 0, note }
    }

    async fn calendar(&self) -> Option<Calendar> {
        let (objects, seed) = tokio::join!(Objects::read(&self.client), seed(&self.client, &self.connection.namespace));
        let objects = match objects {
            Ok(objects) => objects,
            Err(error) => {
                tracing::info!(%error, "no calendar: the objects can't be read");
                return None;
            }
        };
        let facts = snapshot(&objects, seed, Time::new(clock::now()));
        tokio::task::spawn_blocking(move || calendar(&facts, usize::MAX)).await.ok()
    }

    fn pause(&self) -> Duration {
        PAUSE
    }
}
