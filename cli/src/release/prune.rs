//! `bascule release prune`: what old releases leave behind, listed, and with `--yes` taken away.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bascule_names::ChannelName;
use bascule_repository::publish::{Outcome, Unwanted};
use chrono::TimeDelta;
use clap::Args;

use super::signing::{SigningArguments, lifetime, report};
use crate::clock;
use crate::exit::Exit;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Folder of the repository.
    repository: PathBuf,

    /// A channel that is to offer its newest releases only, see --keep. Needs the keys that publish to it. May be repeated.
    #[arg(long, requires = "keep")]
    channel: Vec<ChannelName>,

    /// How many of its releases a channel keeps. Floors that nodes step through stay beside them.
    #[arg(long, value_name = "COUNT", requires = "channel", value_parser = clap::value_parser!(u16).range(1..))]
    keep: Option<u16>,

    /// How long after its replacement metadata may still be in a reader's hands, as days (`10d`) or hours: the lifetime of
    /// a timestamp and the longest download. What was named by it stays as long.
    #[arg(long, value_name = "TIME", default_value = "10d", value_parser = lifetime)]
    grace: TimeDelta,

    /// Do it. Without this, prune only says what it would do.
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    signing: SigningArguments,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    let keys = arguments.signing.keys()?;
    let mut publisher = super::open(&arguments.repository)?;
    let mut waiting = false;
    for channel in &arguments.channel {
        let old = publisher.superfluous(channel, arguments.keep.map_or(usize::MAX, usize::from))?;
        let list = old.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if old.is_empty() {
            output::print(&format!("{channel}: nothing to leave out\n"))?;
        } else if arguments.yes {
            let outcome = publisher.leave_out(channel, &old, arguments.signing.signing(&keys))?;
            report(&format!("removed from {channel}: {list}"), &outcome, &keys)?;
            waiting |= matches!(outcome, Outcome::Waiting(_));
        } else {
            output::print(&format!("would be removed from {channel}: {list}\n"))?;
        }
    }
    if waiting {
        // What a waiting change leaves out is still offered.
        output::print("no file was removed: that is done when what waits is published\n")?;
        return Ok(Exit::Waiting);
    }
    let unwanted = publisher.unwanted(clock::now(), arguments.grace)?;
    if arguments.yes {
        publisher.remove(&unwanted.now)?;
    }
    output::print(&describe(&unwanted, arguments.yes))?;
    Ok(Exit::Success)
}

fn describe(unwanted: &Unwanted, removed: bool) -> String {
    let mut text = String::new();
    let size = |files: &mut dyn Iterator<Item = u64>| output::bytes(files.sum());
    if !unwanted.now.is_empty() {
        let verb = if removed { "removed" } else { "would be removed" };
        let mut rows = vec![vec!["SIZE".to_owned(), "FILE".to_owned()]];
        rows.extend(unwanted.now.iter().map(|file| vec![output::bytes(file.bytes), file.path.display().to_string()]));
        text.push_str(&output::columns(&rows));
        let total = size(&mut unwanted.now.iter().map(|file| file.bytes));
        text.push_str(&format!("{verb}: {} files, {total}\n", unwanted.now.len()));
    }
    if let Some(last) = unwanted.later.iter().map(|(_, until)| *until).max() {
        let total = size(&mut unwanted.later.iter().map(|(file, _)| file.bytes));
        let count = unwanted.later.len();
        text.push_str(&format!(
            "named by nothing new, but readers may still be on their way: {count} files, {total}, until {}\n",
            last.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
        ));
    }
    let roles: BTreeSet<&str> = unwanted.unknown.iter().map(|(_, role)| role.as_str()).collect();
    for role in roles {
        let own = || unwanted.unknown.iter().filter(|(_, own)| own == role).map(|(file, _)| file.bytes);
        let (count, total) = (own().count(), size(&mut own()));
        text.push_str(&format!(
            "kept, because nobody can say whether the role {role} names them: {count} files, {total}\n"
        ));
    }
    if text.is_empty() {
        text.push_str("no file to remove\n");
    }
    if !removed {
        text.push_str("nothing was changed; do it with --yes\n");
    }
    text
}
