//! Arguments, exit codes, and the way from one to the other.

mod guard;
mod last_resort;
mod logging;
mod manual;
mod service;
mod status;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use bascule_agent::engine::in_one_line;
use bascule_agent::settings::{Settings, Sources};
use bascule_api::{ChannelName, Digest, ReleaseRef, Version};
use clap::{Parser, Subcommand};
use last_resort::LastResort;

/// How a command ended. The numbers are documented in docs/agent.md and stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// Something failed that is none of the others.
    Internal = 1,
    /// The settings can't be used.
    Settings = 3,
    /// The host can't be used: no boot partition, no disk, no state folder.
    Host = 4,
    /// Another agent holds the lock.
    Locked = 5,
    /// The command was refused or did not end; the reason was printed.
    Refused = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Writes signed OS releases into the inactive slot, and takes back those that do not come up.
#[derive(Debug, Parser)]
#[command(name = "bascule-agent", version, max_term_width = 100)]
pub(crate) struct Arguments {
    /// Read settings from this file (and its drop-ins) instead of /usr/lib/bascule and /etc/bascule.
    #[arg(long, global = true, env = "BASCULE_SETTINGS", value_name = "FILE")]
    settings: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent: as a systemd service, or in a DaemonSet's pod.
    Run,
    /// Wait for the commit of a running trial; revert and reboot when it does not come in time.
    Guard,
    /// Show what the slots hold, what runs, and what stands in the way.
    Status {
        /// As JSON: the agent's part of NodeUpdate's status.
        #[arg(long)]
        json: bool,
        /// Show every setting with its value and where that came from, instead.
        #[arg(long)]
        origins: bool,
    },
    /// Break glass: bring a release into the inactive slot, without a cluster.
    Stage {
        /// Address of the repository.
        #[arg(long)]
        repository: String,
        /// The channel that lists the release.
        #[arg(long)]
        channel: ChannelName,
        /// The release's version.
        #[arg(long = "release")]
        version: Version,
        /// The digest of its manifest (`bascule release inspect` shows it).
        #[arg(long)]
        digest: Digest,
    },
    /// Break glass: make the running trial permanent.
    Commit,
    /// Break glass: go back to what the other slot holds. Reboots.
    Revert {
        /// Also to a release that is made for an older state of the machine than this one was used with.
        #[arg(long)]
        accept_state: bool,
    },
}

/// Runs a command.
pub(crate) fn main(arguments: Arguments) -> ExitCode {
    let sources = Sources::usual(arguments.settings, std::env::vars_os().collect());
    // What takes a release back must run also where the settings, or the log, are what that release broke.
    let is_guard = matches!(arguments.command, Command::Guard);
    // It begins before there are credentials, and none sets what it goes by.
    let sources = if is_guard { Sources { credential: None, ..sources } } else { sources };
    let last_resort = if is_guard { LastResort::begin().map(Some) } else { Ok(None) };
    let last_resort = last_resort.unwrap_or_else(|error| {
        complain(&error);
        None
    });
    let loaded = match arguments.command {
        Command::Guard => Settings::load_what_can_be_used(&sources),
        // It has an API server to tell.
        Command::Run => Settings::load_to_report(&sources).map(|settings| (settings, None)),
        _ => Settings::load(&sources).map(|settings| (settings, None)),
    };
    let settings = match loaded {
        Ok((settings, passed_over)) => {
            passed_over.iter().for_each(|error| complain(error));
            settings
        }
        Err(error) => return fail(Exit::Settings, &error),
    };
    if let Some(last_resort) = &last_resort {
        last_resort.go_by(settings.trial_deadline);
    }
    let audience = match arguments.command {
        Command::Run | Command::Guard => logging::Audience::Journal,
        Command::Status { .. } => logging::Audience::Person,
        Command::Stage { .. } | Command::Commit | Command::Revert { .. } => logging::Audience::PersonAndJournal,
    };
    match logging::start(&settings, audience) {
        Ok(()) => {}
        Err(error) if is_guard || settings.impediment.is_some() => complain(&*error),
        Err(error) => return fail(Exit::Settings, &*error),
    }
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Name look-ups, file reads of the repository and one command at a time.
        .max_blocking_threads(4)
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(Exit::Internal, &error),
    };
    let handle = runtime.handle().clone();
    let exit = runtime.block_on(async {
        match arguments.command {
            Command::Run => service::run(settings, &sources, &handle).await,
            Command::Guard => guard::run(&settings, &handle).await,
            Command::Status { origins: true, .. } => status::settings(&settings),
            Command::Status { json, .. } => status::show(&settings, &handle, json).await,
            Command::Stage { repository, channel, version, digest } => {
                let release = ReleaseRef { version, digest, repository, channel };
                manual::run(&settings, &handle, manual::Wish::Stage(release)).await
            }
            Command::Commit => manual::run(&settings, &handle, manual::Wish::Commit).await,
            Command::Revert { accept_state } => {
                manual::run(&settings, &handle, manual::Wish::Revert { accept_state }).await
            }
        }
    });
    // A thread that hangs in a system call must not keep the process from ending.
    runtime.shutdown_background();
    exit.into()
}

/// Says on standard error why a command ends.
pub(crate) fn complain(error: &dyn std::error::Error) {
    // Without a standard error there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "bascule-agent: {}", in_one_line(error));
}

fn fail(exit: Exit, error: &dyn std::error::Error) -> ExitCode {
    complain(error);
    exit.into()
}

/// Prints to standard output; a reader that is gone is no error.
pub(crate) fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// The Node's name: the setting, else the host's own.
pub(crate) fn node_name(settings: &Settings) -> String {
    settings
        .node_name
        .clone()
        .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_arguments_fit_together() {
        super::Arguments::command().debug_assert();
        for line in [
            "status --origins --settings /x",
            "run",
            "guard --settings /x",
            "commit",
            "revert",
            "revert --accept-state",
        ] {
            let words = std::iter::once("bascule-agent").chain(line.split(' '));
            assert!(<super::Arguments as clap::Parser>::try_parse_from(words).is_ok(), "{line}");
        }
    }
}
