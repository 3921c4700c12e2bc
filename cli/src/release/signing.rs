//! What every command that signs is told: keys and how long the signature holds.

use std::path::PathBuf;
use std::time::Duration;

use bascule_repository::publish::{Lifetimes, Missing, Outcome, PublicKey, PublishError, Signing, SigningKey};
use chrono::TimeDelta;
use clap::Args;

use crate::clock;
use crate::exit::Exit;
use crate::output;

/// Options of every command that signs.
#[derive(Debug, Args)]
pub(crate) struct SigningArguments {
    /// Private key of a role (PKCS#8 PEM). May be repeated; a key that is not needed is not used.
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,

    /// A program that signs for a key whose private half it keeps, e.g. `keys/kms.pub.json=sign-with-kms --key 7`. It is given
    /// the bytes on its standard input and writes the signature to its standard output. May be repeated.
    #[arg(long, value_name = "PUBLIC=PROGRAM", value_parser = program)]
    signer: Vec<(PathBuf, String)>,

    #[command(flatten)]
    lifetimes: LifetimeArguments,
}

/// How long new signatures hold, as days (`7d`) or hours (`36h`).
#[derive(Debug, Args)]
pub(crate) struct LifetimeArguments {
    /// Lifetime of a new root.
    #[arg(long, value_name = "TIME", default_value = "365d", value_parser = lifetime)]
    root_lifetime: TimeDelta,

    /// Lifetime of new targets and delegated roles.
    #[arg(long, value_name = "TIME", default_value = "180d", value_parser = lifetime)]
    targets_lifetime: TimeDelta,

    /// Lifetime of a new snapshot.
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = lifetime)]
    snapshot_lifetime: TimeDelta,

    /// Lifetime of a new timestamp: refresh it well before this has passed.
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = lifetime)]
    timestamp_lifetime: TimeDelta,
}

impl LifetimeArguments {
    pub(crate) fn get(&self) -> Lifetimes {
        Lifetimes {
            root: self.root_lifetime,
            targets: self.targets_lifetime,
            snapshot: self.snapshot_lifetime,
            timestamp: self.timestamp_lifetime,
        }
    }
}

impl SigningArguments {
    /// Reads the keys.
    pub(crate) fn keys(&self) -> Result<Vec<SigningKey>, PublishError> {
        let mut keys = self.key.iter().map(|path| SigningKey::read(path)).collect::<Result<Vec<_>, _>>()?;
        for (public, command) in &self.signer {
            keys.push(SigningKey::program(PublicKey::read(public)?, command)?);
        }
        Ok(keys)
    }

    /// What the library wants.
    pub(crate) fn signing<'a>(&self, keys: &'a [SigningKey]) -> Signing<'a> {
        Signing { keys, lifetimes: self.lifetimes.get(), now: clock::now() }
    }
}

/// Says how a signing command ended, and which of the given keys were of no use to it.
pub(crate) fn report(what: &str, outcome: &Outcome, keys: &[SigningKey]) -> anyhow::Result<Exit> {
    for key in keys.iter().filter(|key| !key.was_used()) {
        let id = key.public().id();
        let id = id.get(..8).unwrap_or(&id);
        output::say(&format!("not used: {} ({id}) signs nothing of this", key.origin()));
    }
    match outcome {
        Outcome::Published { timestamp, snapshot, targets, root } => {
            output::print(&format!(
                "{what}\nsigned: timestamp {timestamp}, snapshot {snapshot}, targets {targets}, root {root}\n"
            ))?;
            Ok(Exit::Success)
        }
        Outcome::Waiting(waiting) => {
            let id = &waiting.id;
            let mut text = format!("not published yet: change {id} waits in pending/ for more signatures\n");
            text.push_str(&missing_table(&waiting.missing));
            text.push_str(&format!(
                "look at it and sign it with `bascule release sign REPOSITORY --change {id} --key FILE`\n"
            ));
            output::print(&text)?;
            Ok(Exit::Waiting)
        }
    }
}

/// Which signatures are missing, as a table.
pub(crate) fn missing_table(missing: &[Missing]) -> String {
    let mut rows = vec![["ROLE", "HAS", "NEEDS", "KEYS THAT CAN SIGN"].map(str::to_owned).to_vec()];
    for role in missing {
        rows.push(vec![role.role.clone(), role.have.to_string(), role.need.to_string(), role.keys.join(", ")]);
    }
    output::columns(&rows)
}

/// `PUBLIC=PROGRAM`
fn program(text: &str) -> Result<(PathBuf, String), String> {
    let parts = text.split_once('=').filter(|(public, command)| !public.is_empty() && !command.trim().is_empty());
    let (public, command) = parts.ok_or_else(|| format!("{text} is not of the form PUBLIC=PROGRAM"))?;
    Ok((PathBuf::from(public), command.to_owned()))
}

pub(crate) fn lifetime(text: &str) -> Result<TimeDelta, String> {
    let refuse = || format!("{text} is no lifetime; write days like 7d or hours like 36h, up to ten years");
    let (number, seconds) = match (text.strip_suffix('d'), text.strip_suffix('h')) {
        (Some(days), _) => (days, 86_400),
        (_, Some(hours)) => (hours, 3_600),
        _ => return Err(refuse()),
    };
    let count: u64 = number.parse().map_err(|_| refuse())?;
    let length = Duration::from_secs(count.saturating_mul(seconds));
    if count == 0 || length > Duration::from_secs(10 * 366 * 86_400) {
        return Err(refuse());
    }
    TimeDelta::from_std(length).map_err(|_| refuse())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_read_and_bounded() {
        assert_eq!(lifetime("7d"), Ok(TimeDelta::days(7)));
        assert_eq!(lifetime("36h"), Ok(TimeDelta::hours(36)));
        for text in ["", "7", "d", "0d", "-1d", "99999999999999999999d", "4000d", "7w"] {
            assert!(lifetime(text).is_err(), "{text}");
        }
    }
}
