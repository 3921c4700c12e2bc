//! The command line. Each group of subcommands defines its own arguments in its own folder.

use chrono::{DateTime, Utc};
use clap::{CommandFactory as _, Parser, Subcommand};

/// Keeps immutable Kubernetes hosts patched while the cluster stays available.
///
/// Exit codes: 0 done; 1 failed; 2 wrong command line; 3 refused (a signature, an expiry, a minimum source version, a disk that must not be
/// written); 4 try again later (network, server, or another process in the way); 5 not done yet, it waits for signatures of others; 130
/// interrupted.
#[derive(Debug, Parser)]
#[command(name = "bascule", version, max_term_width = 120, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// Tell more on stderr; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    /// Judge expiry, and sign, as of this time instead of the clock's: to rehearse (`2027-03-01T12:00:00Z`).
    #[arg(long, value_name = "TIME", global = true)]
    pub(crate) at: Option<DateTime<Utc>>,

    #[command(flatten)]
    pub(crate) connection: crate::cluster::Connection,

    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Command {
    /// Whether it acts on the cluster, now, whatever time it is told.
    pub(crate) const fn acts(&self) -> bool {
        matches!(
            self,
            Self::Freeze(_)
                | Self::Unfreeze(_)
                | Self::Pause(_)
                | Self::Resume(_)
                | Self::Hold(_)
                | Self::Abort(_)
                | Self::Rollback(_)
                | Self::Unblock(_)
                | Self::Retry(_)
                | Self::Wait(_)
        )
    }
}

impl Arguments {
    /// Refuses what no command line can mean.
    pub(crate) fn checked(self) -> Result<Self, clap::Error> {
        if self.at.is_some() && self.command.acts() {
            let why = "--at is to rehearse; this command acts on the cluster, at the time that it is\n";
            return Err(Self::command().error(clap::error::ErrorKind::ArgumentConflict, why));
        }
        Ok(self)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Status(crate::cluster::Status),
    Explain(crate::cluster::Explain),
    Forecast(crate::cluster::Forecast),
    History(crate::cluster::History),
    Plan(crate::cluster::Plan),
    Freeze(crate::cluster::Freeze),
    Unfreeze(crate::cluster::Unfreeze),
    Pause(crate::cluster::Pause),
    Resume(crate::cluster::Resume),
    Hold(crate::cluster::Hold),
    Abort(crate::cluster::Abort),
    Rollback(crate::cluster::Rollback),
    Unblock(crate::cluster::Unblock),
    Retry(crate::cluster::Retry),
    Wait(crate::cluster::Wait),
    Dashboard(crate::cluster::Dashboard),
    Doctor(crate::cluster::Doctor),
    Version(crate::cluster::Version),
    Completion(crate::completion::Completion),
    Disk(Box<crate::disk::Disk>),
    Install(Box<crate::disk::Install>),
    /// Build, sign, publish and check releases.
    #[command(subcommand)]
    Release(crate::release::Command),
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        super::Arguments::command().debug_assert();
    }

    #[test]
    fn nobody_acts_at_another_time_than_now() {
        use clap::Parser as _;
        let checked = |line: &str| super::Arguments::try_parse_from(line.split(' ')).unwrap().checked();
        for line in [
            "bascule --at 2027-03-01T12:00:00Z freeze --for 2h --reason incident",
            "bascule unfreeze --all --at 2027-03-01T12:00:00Z",
            "bascule --at 2027-03-01T12:00:00Z pause workers --reason incident",
            "bascule --at 2027-03-01T12:00:00Z resume workers",
            "bascule --at 2027-03-01T12:00:00Z hold n1 --for 2h --reason incident",
            "bascule --at 2027-03-01T12:00:00Z abort workers --reason incident",
            "bascule --at 2027-03-01T12:00:00Z rollback workers --reason incident",
            "bascule --at 2027-03-01T12:00:00Z unblock workers 1.1",
            "bascule --at 2027-03-01T12:00:00Z retry n1",
            "bascule --at 2027-03-01T12:00:00Z wait workers",
        ] {
            assert!(checked(line).unwrap_err().to_string().contains("--at is to rehearse"), "{line}");
            let now: Vec<&str> = line.split(" --at 2027-03-01T12:00:00Z").collect();
            assert!(checked(&now.join("")).is_ok(), "{line}");
        }
        assert!(checked("bascule --at 2027-03-01T12:00:00Z forecast").is_ok());
    }

    #[test]
    fn options_of_all_commands_stand_before_or_behind_the_command() {
        use clap::Parser as _;
        for line in [
            "bascule --kubeconfig F --context C -v --at 2027-03-01T12:00:00Z status",
            "bascule status --kubeconfig F --context C -v --at 2027-03-01T12:00:00Z",
            "bascule --kubeconfig F release --context C inspect -v R --at 2027-03-01T12:00:00Z",
        ] {
            let arguments = super::Arguments::try_parse_from(line.split(' ')).unwrap();
            assert_eq!((arguments.verbose, arguments.at.is_some()), (1, true), "{line}");
            let connection = format!("{:?}", arguments.connection);
            assert!(connection.contains("\"F\"") && connection.contains("\"C\""), "{line}: {connection}");
        }
    }
}
