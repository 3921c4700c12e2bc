//! The command line. Each group of subcommands defines its own arguments in its own folder.

use clap::{Parser, Subcommand};

/// Keeps immutable Kubernetes hosts patched while the cluster stays available.
///
/// Exit codes: 0 done; 1 failed; 2 wrong command line; 3 refused (a signature, an expiry, a floor); 4 try again later (network,
/// server, or another process in the way); 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "bascule", version, max_term_width = 120, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// Tell more on stderr; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Status(crate::cluster::Status),
    Explain(crate::cluster::Explain),
    Forecast(crate::cluster::Forecast),
    Freeze(crate::cluster::Freeze),
    Unfreeze(crate::cluster::Unfreeze),
    Rollback(crate::cluster::Rollback),
    /// Build, sign, publish and check releases.
    #[command(subcommand)]
    Release(crate::release::Command),
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        super::Arguments::command().debug_assert();
    }
}
