//! `bascule completion`: what a shell needs to complete commands and options, and names of policies, nodes and freezes.
//!
//! The script that a shell reads asks this program for every word, so that names come from the cluster. kubectl asks too, for
//! `kubectl bascule`: by a program `kubectl_complete-bascule` in the PATH, which is this one by another name.

use crate::{args::Arguments, cluster::Connection, exit::Exit, output};
use anyhow::Context as _;
use bascule_api as api;
use clap::{Args, CommandFactory as _};
use clap_complete::{
    CompletionCandidate, Shell,
    env::{CompleteEnv, Shells},
};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use std::{ffi::OsString, io::Write as _, path::Path, time::Duration};

/// By this name kubectl calls (kubectl, "Extend kubectl with plugins", plugin completion).
const FOR_KUBECTL: &str = "kubectl_complete-bascule";
/// What the script sets when it asks.
const VARIABLE: &str = "BASCULE_COMPLETE";
/// Nobody waits longer for names; commands and options come without the cluster.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many names of a kind are offered.
const NAMES: u32 = 500;

/// Print the completion script of a shell.
///
/// bash: `source <(bascule completion bash)`. For `kubectl bascule` put a link to this program into the PATH by the name
/// `kubectl_complete-bascule`.
#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

impl Completion {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        output::print(&script(self.shell)?)?;
        Ok(Exit::Success)
    }
}

fn script(shell: Shell) -> anyhow::Result<String> {
    let shells = Shells::builtins();
    let completer = shells.completer(&shell.to_string()).with_context(|| format!("{shell} is not known"))?;
    let mut script = Vec::new();
    completer.write_registration(VARIABLE, "bascule", "bascule", "bascule", &mut script)?;
    Ok(String::from_utf8_lossy(&script).into_owned())
}

/// Whether a shell or kubectl asked for words; they are printed then, and there is nothing else to do.
///
/// # Errors
/// The words can't be written, or the shell is none that is known.
pub(crate) fn answered() -> anyhow::Result<bool> {
    let mut arguments = std::env::args_os();
    let own = arguments.next().unwrap_or_default();
    if Path::new(&own).file_name().is_some_and(|name| name == FOR_KUBECTL) {
        let answer = for_kubectl(arguments.collect())?;
        std::io::stdout().write_all(answer.as_bytes()).context("writing to stdout")?;
        return Ok(true);
    }
    let asked = CompleteEnv::with_factory(Arguments::command).var(VARIABLE).completer("bascule");
    let folder = std::env::current_dir().ok();
    asked.try_complete(std::env::args_os(), folder.as_deref()).map_err(|error| anyhow::anyhow!("{error}"))
}

/// A line for each word, with its meaning behind a tab, and `:4`: those of files are among them (cobra, ShellCompDirectiveNoFileComp).
fn for_kubectl(words: Vec<OsString>) -> anyhow::Result<String> {
    let line: Vec<OsString> = std::iter::once("bascule".into()).chain(words).collect();
    let last = line.len().saturating_sub(1).max(1);
    let folder = std::env::current_dir().ok();
    let found = clap_complete::engine::complete(&mut Arguments::command(), line, last, folder.as_deref())?;
    let mut text = String::new();
    for candidate in found.iter().filter(|candidate| !candidate.is_hide_set()) {
        text.push_str(&candidate.get_value().to_string_lossy());
        if let Some(help) = candidate.get_help() {
            text.push('\t');
            text.push_str(help.to_string().lines().next().unwrap_or_default());
        }
        text.push('\n');
    }
    Ok(text + ":4\n")
}

/// Names of policies.
pub(crate) fn policies() -> Vec<CompletionCandidate> {
    of_cluster(async |client| names::<api::UpdatePolicy>(&client).await)
}

/// Names of nodes that have an agent.
pub(crate) fn nodes() -> Vec<CompletionCandidate> {
    of_cluster(async |client| names::<api::NodeUpdate>(&client).await)
}

/// Names of both.
pub(crate) fn nodes_and_policies() -> Vec<CompletionCandidate> {
    of_cluster(async |client| {
        let (mut policies, nodes) =
            tokio::join!(names::<api::UpdatePolicy>(&client), names::<api::NodeUpdate>(&client));
        policies.extend(nodes);
        policies
    })
}

/// Names of freezes that hold.
pub(crate) fn freezes() -> Vec<CompletionCandidate> {
    of_cluster(async |client| {
        let listed = Api::<api::Freeze>::all(client).list(&ListParams::default().limit(NAMES)).await;
        let now = api::Time::new(crate::clock::now());
        let holding = listed.into_iter().flat_map(|all| all.items).filter(|freeze| freeze.is_active(now));
        holding.map(|freeze| freeze.name_any()).collect()
    })
}

async fn names<K>(client: &Client) -> Vec<String>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let listed = Api::<K>::all(client.clone()).list_metadata(&ListParams::default().limit(NAMES)).await;
    listed.map(|all| all.items.iter().map(|one| one.name_any()).collect()).unwrap_or_default()
}

/// What the cluster says that the words so far name. Whoever completes wants words, not errors: without an answer there are none.
fn of_cluster(ask: impl AsyncFnOnce(Client) -> Vec<String>) -> Vec<CompletionCandidate> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let connection = Connection::of_words(std::env::args_os().map(|word| word.to_string_lossy().into_owned()));
    let found = runtime.block_on(async {
        let asked = async { Some(ask(connection.client().await.ok()?).await) };
        tokio::time::timeout(PATIENCE, asked).await.ok().flatten().unwrap_or_default()
    });
    runtime.shutdown_background();
    found.into_iter().map(CompletionCandidate::new).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;

    #[test]
    fn every_shell_gets_a_script_that_asks_this_program() {
        for shell in Shell::value_variants() {
            let script = script(*shell).unwrap();
            assert!(script.contains(VARIABLE) && script.contains("bascule"), "{shell}:\n{script}");
        }
    }

    #[test]
    fn kubectl_is_told_commands_and_options_with_their_meaning() {
        let asked = |words: &[&str]| for_kubectl(words.iter().map(OsString::from).collect()).unwrap();
        let commands = asked(&[""]);
        for command in ["status\tShow what happens now", "explain\t", "rollback\t", "doctor\t"] {
            assert!(commands.contains(command), "{command} in {commands}");
        }
        assert!(commands.ends_with("\n:4\n"));
        assert_eq!(asked(&["expl"]).lines().next().unwrap().split('\t').next(), Some("explain"));
        let options = asked(&["freeze", "--re"]);
        assert!(options.contains("--reason\tWhy. Everybody"), "{options}");
        // Files of the folder that it is asked in; a test's is its package's.
        assert!(asked(&["plan", "-f", "Car"]).contains("Cargo.toml"), "{}", asked(&["plan", "-f", "Car"]));
        assert!(asked(&["status", "-o", ""]).contains("json\n") || asked(&["status", "-o", ""]).contains("json\t"));
    }
}
