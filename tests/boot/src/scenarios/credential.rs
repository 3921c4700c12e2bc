//! Settings that come with a virtual machine: a credential in an SMBIOS string, which systemd brings to the agent. Catches a unit that
//! does not import it, a kernel without the module that shows such strings, and an agent that does not read it or goes by its file.

use anyhow::{Context as _, ensure};

use super::{BOOT, Stage};
use crate::cluster::SETTINGS;
use crate::lab::Setup;
use crate::release::Release;

/// The name of the node, of its policy and of its channel.
const NODE: &str = "credential";
/// As whom the node's own file would have it speak.
const OTHER: &str = "nobody";
/// The credential's name, and where systemd puts it for the agent (systemd.exec(5), "Credentials").
const CREDENTIAL: (&str, &str) = ("bascule.agent.toml", "/run/credentials/bascule-agent.service/bascule.agent.toml");
/// Nobody listens there, and nothing is fetched here.
const PROXY: &str = "http://192.0.2.1:3128";

/// Starts a node whose settings name another one, with a credential that names it: its first report says that this was heard.
///
/// # Errors
/// When it does not report, or a setting comes from elsewhere.
pub async fn run(stage: Stage<'_>, release: &Release) -> anyhow::Result<()> {
    let mut state = stage.cluster.state_of(NODE)?;
    let path = format!("{SETTINGS}/agent.toml");
    let file = state.iter_mut().find(|file| file.path == path).context("a node without settings")?;
    let named = format!("name = \"{NODE}\"");
    ensure!(file.content.contains(&named), "the node's file does not name it: {}", file.content);
    file.content = file.content.replace(&named, &format!("name = \"{OTHER}\""));
    let (name, place) = CREDENTIAL;
    let settings = format!("[node]\n{named}\n[repository]\nproxy = \"{PROXY}\"\n");
    let setup = Setup { credentials: vec![(name.to_owned(), settings)], ..Setup::default() };
    let mut machine = stage.lab.host_of(NODE, release, &state, stage.cluster.ports(), &setup)?;
    stage.cluster.keep_patched(NODE, &stage.vendor.url_for(NODE)?, NODE).await?;
    machine.power_on()?;
    stage.until(&machine, "the agent's first report", BOOT, |status| status.boot_id.is_some()).await?;
    let origins = machine.run("bascule-agent status --origins", BOOT).await?;
    for (key, value, line) in [("node.name", NODE, 2), ("repository.proxy", PROXY, 4)] {
        let origin = format!("{place}:{line}");
        let words: Vec<&str> = origins
            .lines()
            .map(str::trim)
            .find(|line| line.starts_with(key))
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        ensure!(words == [key, value, origin.as_str()], "{key} is not the credential's:\n{origins}");
    }
    machine.shut_down(BOOT).await?;
    machine.discard();
    Ok(())
}
