//! `bascule completion`: what a shell needs to complete commands and options.

use crate::{exit::Exit, output};
use clap::{Args, CommandFactory as _};

/// Print the completion script of a shell.
///
/// bash: `source <(bascule completion bash)`. Also for `kubectl bascule`, in zsh and fish as those document it.
#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// The shell.
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

impl Completion {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        output::print(&script(self.shell))?;
        Ok(Exit::Success)
    }
}

fn script(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut crate::args::Arguments::command(), "bascule", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;

    #[test]
    fn every_shell_learns_every_command() {
        for shell in clap_complete::Shell::value_variants() {
            let script = script(*shell);
            for command in ["status", "explain", "rollback", "doctor"] {
                assert!(script.contains(command), "{shell} does not know {command}");
            }
        }
    }
}
