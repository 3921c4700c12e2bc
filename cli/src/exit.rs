//! Exit codes, which scripts rely on, and the one place that prints an error.

use std::io::Write as _;
use std::process::ExitCode;

/// How a command ended. The help of `bascule` lists the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: done, or what was asked for is so.
    Success,
    /// 1: it failed; the message says why.
    Failed,
    /// 3: what was looked at is refused (a signature, an expiry, a floor): the answer to the question is no.
    Refused,
    /// 4: the network, a server or another process is in the way; trying again later may help.
    TryAgain,
    /// 130: interrupted by Ctrl-C.
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        // 2 is taken by clap for a wrong command line.
        Self::from(match exit {
            Exit::Success => 0,
            Exit::Failed => 1,
            Exit::Refused => 3,
            Exit::TryAgain => 4,
            Exit::Interrupted => 130,
        })
    }
}

/// Prints an error with its causes on one line each, and gives the exit code for it.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let mut stderr = std::io::stderr().lock();
    // Nobody can be told when stderr is gone.
    let _ = writeln!(stderr, "bascule: {error}");
    let mut shown = error.to_string();
    for cause in error.chain().skip(1) {
        let text = cause.to_string();
        if !shown.contains(&text) {
            let _ = writeln!(stderr, "  because {text}");
        }
        shown = text;
    }
    classify(error).into()
}

fn classify(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<bascule_repository::Error>() {
            return match error.fault() {
                error if error.is_transient() => Exit::TryAgain,
                bascule_repository::Error::Fetch(_) | bascule_repository::Error::Datastore { .. } => Exit::Failed,
                _ => Exit::Refused,
            };
        }
        if cause.is::<bascule_image::release::channel::Refusal>() {
            return Exit::Refused;
        }
    }
    Exit::Failed
}
