//! `bascule release status`: on one screen, until when nodes can update from a repository, and what has to be signed by whom.

use std::fmt::Write as _;

use bascule_names::ChannelName;
use bascule_repository::publish::{PublishError, RoleStanding, View, WaitingChange};
use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use serde::Serialize;

use super::signing::lifetime;
use super::source::SourceArguments;
use crate::clock;
use crate::exit::Exit;
use crate::output::{self, Format, time};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: SourceArguments,

    /// End with exit code 3 also when something expires within this time, as days (`3d`) or hours: for monitoring.
    #[arg(long, value_name = "TIME", value_parser = lifetime)]
    within: Option<TimeDelta>,

    /// The same for the root, which people sign: they need longer. Default: as --within.
    #[arg(long, value_name = "TIME", value_parser = lifetime)]
    root_within: Option<TimeDelta>,

    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// Whether nodes accept the repository now.
    safe: bool,
    /// When the first role expires without which nodes accept nothing.
    safe_until: Option<DateTime<Utc>>,
    /// The role that does.
    first_to_expire: Option<String>,
    roles: Vec<RoleStanding>,
    /// What has expired, or will within the time that was asked for.
    due: Vec<RoleStanding>,
    /// Channels whose own role can't be used, and why.
    problems: Vec<String>,
    /// Whether nodes refuse one of them.
    #[serde(skip)]
    refused: bool,
    channels: Vec<ChannelLine>,
    waiting: Vec<WaitingChange>,
    #[serde(skip)]
    now: DateTime<Utc>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ChannelLine {
    channel: String,
    product: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    offers: Option<String>,
    releases: usize,
    withdrawn: usize,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let view = arguments.source.view().await?;
    let mut report = report(&view, clock::now())?;
    let within = arguments.within.unwrap_or_default();
    let limit = |role: &RoleStanding| match role.role.as_str() {
        "root" => report.now + arguments.root_within.unwrap_or(within),
        _ => report.now + within,
    };
    report.due = report.roles.iter().filter(|role| role.is_expired(limit(role))).cloned().collect();
    output::show(arguments.output, &report, table)?;
    Ok(if report.due.is_empty() && !report.refused { Exit::Success } else { Exit::Refused })
}

fn report(view: &View, now: DateTime<Utc>) -> anyhow::Result<Report> {
    let roles = view.roles();
    let first = roles.iter().filter(|role| role.channel().is_none()).min_by_key(|role| role.expires);
    let mut channels = Vec::new();
    for name in view.channel_names() {
        channels.push(line(view, &name)?);
    }
    Ok(Report {
        safe: first.is_some_and(|role| !role.is_expired(now)),
        safe_until: first.map(|role| role.expires),
        first_to_expire: first.map(|role| role.role.clone()),
        channels,
        problems: view.problems().iter().map(ToString::to_string).collect(),
        refused: view.problems().iter().any(|problem| problem.nodes_refuse),
        waiting: view.waiting(now)?,
        now,
        due: Vec::new(),
        roles,
    })
}

fn line(view: &View, name: &ChannelName) -> anyhow::Result<ChannelLine> {
    let channel = match view.channel(name) {
        Ok(channel) => channel,
        // It has keys of its own and no release yet, or its role can't be used.
        Err(error) if matches!(error, PublishError::NoChannel { .. }) || view.has_own_role(name) => {
            let (channel, product) = (name.to_string(), "-".to_owned());
            return Ok(ChannelLine { channel, product, offers: None, releases: 0, withdrawn: 0 });
        }
        Err(error) => return Err(error.into()),
    };
    let offered = channel.releases.iter().rev().find(|release| release.withdrawn.is_none());
    Ok(ChannelLine {
        channel: name.to_string(),
        product: channel.product.to_string(),
        offers: offered.map(|release| release.version.to_string()),
        releases: channel.releases.len(),
        withdrawn: channel.releases.iter().filter(|release| release.withdrawn.is_some()).count(),
    })
}

/// How a role is renewed.
fn renewal(role: &str) -> &'static str {
    if role == "root" { "bascule release rotate" } else { "bascule release refresh" }
}

fn table(report: &Report) -> String {
    let now = report.now;
    let mut text = String::new();
    // Writing to a String can't fail.
    let _ = match (&report.first_to_expire, report.safe_until) {
        (Some(role), Some(until)) if report.safe => writeln!(
            text,
            "nodes can update until {} (in {}): then the {role} expires",
            time(until),
            output::left(until, now)
        ),
        (Some(role), Some(until)) => writeln!(
            text,
            "NODES REFUSE THIS REPOSITORY: the {role} expired at {} ({})",
            time(until),
            output::left(until, now)
        ),
        _ => Ok(()),
    };
    let mut rows = vec![["ROLE", "EXPIRES", "IN", "NEEDS", "RENEW WITH"].map(str::to_owned).to_vec()];
    for role in &report.roles {
        let left = output::left(role.expires, now);
        rows.push(vec![
            role.role.clone(),
            time(role.expires),
            if role.is_expired(now) { format!("EXPIRED {left}") } else { left },
            role.signers(),
            renewal(&role.role).to_owned(),
        ]);
    }
    text.push_str(&output::columns(&rows));
    for role in &report.due {
        let (name, signers, command) = (&role.role, role.signers(), renewal(&role.role));
        let when = output::left(role.expires, now);
        let _ = match (role.is_expired(now), role.channel()) {
            (false, _) => writeln!(text, "the {name} expires in {when}: {signers} must sign it (`{command}`)"),
            (true, None) => writeln!(text, "the {name} has expired: {signers} must sign it (`{command}`)"),
            (true, Some(channel)) => writeln!(
                text,
                "{name} has expired, nodes refuse channel {channel} and no other: {signers} must sign it (`{command}`)"
            ),
        };
    }
    for problem in &report.problems {
        let _ = writeln!(text, "{problem}");
    }
    let mut rows = vec![["CHANNEL", "PRODUCT", "OFFERS", "RELEASES", "WITHDRAWN"].map(str::to_owned).to_vec()];
    for channel in &report.channels {
        rows.push(vec![
            channel.channel.clone(),
            channel.product.clone(),
            channel.offers.clone().unwrap_or_else(|| "nothing".to_owned()),
            channel.releases.to_string(),
            channel.withdrawn.to_string(),
        ]);
    }
    text.push('\n');
    if report.channels.is_empty() {
        text.push_str("no channels yet\n");
    } else {
        text.push_str(&output::columns(&rows));
    }
    text.push('\n');
    if report.waiting.is_empty() {
        text.push_str("nothing waits for signatures\n");
    }
    for change in &report.waiting {
        let missing: Vec<String> = change.missing.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "change {} waits since {}: {}", change.id, time(change.made_at), change.summary);
        let _ = writeln!(text, "  it needs {}", missing.join("; "));
    }
    text
}
