//! `bascule doctor`: looks for what keeps updates from happening before anybody notices: rights, versions, agents, clocks,
//! metadata, windows that nothing fits into, budgets that never allow a drain, and what people ordered.

mod checks;
mod rights;

use super::{
    Connection, list,
    live::{self},
    picture::{Look, Tone},
    problem::{self, Role},
};
use crate::{clock, exit::Exit, output};
use bascule_api as api;
use clap::Args;
use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};
use kube::{Api, Client, api::ListParams};
use serde::Serialize;

/// Pods of the operator (manifests/operator/deployment.yaml).
const OPERATORS: &str = "app.kubernetes.io/name=bascule-operator";

/// Look for everything that keeps nodes from being updated.
///
/// Ends with 1 when something is wrong. Warnings alone end with 0.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: output::Format,
}

/// How a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Weight {
    Good,
    Warning,
    Wrong,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Finding {
    pub(super) weight: Weight,
    /// What was looked at.
    pub(super) about: &'static str,
    pub(super) what: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) advice: String,
    /// What to type for it, as it stands.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) commands: Vec<String>,
}

impl Finding {
    fn new(weight: Weight, about: &'static str, what: String, advice: String) -> Self {
        Self { weight, about, what, advice, commands: Vec::new() }
    }

    pub(super) fn good(about: &'static str, what: impl Into<String>) -> Self {
        Self::new(Weight::Good, about, what.into(), String::new())
    }

    pub(super) fn warning(about: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Weight::Warning, about, what.into(), advice.into())
    }

    pub(super) fn wrong(about: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Weight::Wrong, about, what.into(), advice.into())
    }

    /// With a command that can be typed as it stands.
    pub(super) fn run(mut self, command: impl Into<String>) -> Self {
        self.commands.push(command.into());
        self
    }

    /// With several.
    pub(super) fn run_all(mut self, commands: Vec<String>) -> Self {
        self.commands.extend(commands);
        self
    }
}

impl Doctor {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let client = connection.client().await?;
        let mut findings = live::patiently(findings(&client, connection)).await?;
        let cluster = connection.same_cluster();
        for command in findings.iter_mut().flat_map(|finding| &mut finding.commands) {
            *command = cluster.line(command);
        }
        output::show(self.output, &findings, |findings| text(findings, Look::of_stdout()))?;
        let wrong = findings.iter().any(|finding| finding.weight == Weight::Wrong);
        Ok(if wrong { Exit::Failed } else { Exit::Success })
    }
}

async fn findings(client: &Client, connection: &Connection) -> anyhow::Result<Vec<Finding>> {
    // All at once: an answer takes as long as the way to the API server, and there are many. Of a cluster without Bascule most
    // are refused, which costs nothing.
    let (server, installed, granted, seen, policies, nodes, budgets) = tokio::join!(
        client.apiserver_version(),
        rights::kinds(client),
        rights::granted(client, &connection.namespace),
        live::seen(client, connection),
        list::<api::UpdatePolicy>(client, "UpdatePolicies"),
        list::<api::NodeUpdate>(client, "NodeUpdates"),
        list::<PodDisruptionBudget>(client, "PodDisruptionBudgets"),
    );
    let server = server.map_err(|error| problem::told(error, "get", "the API server's version", Role::OnCall))?;
    let mut findings = vec![Finding::good("API server", server.git_version)];
    let installed = installed?;
    let complete = !installed.iter().any(|finding| finding.weight == Weight::Wrong);
    findings.extend(installed);
    if !complete {
        return Ok(findings);
    }
    findings.extend(granted?);
    // Who may not read a thing still learns what was found without it, the missing right among it.
    let seen = match seen {
        Ok(seen) => seen,
        Err(error) => {
            findings.push(unread("status", &error));
            return Ok(findings);
        }
    };
    findings.extend(checks::leader(&seen, clock::now(), &connection.namespace));
    if matches!(seen.source, live::Source::Objects { .. }) {
        // Its own log may hold nothing: an image for another machine never began.
        let pods = Api::<Pod>::namespaced(client.clone(), &connection.namespace);
        match pods.list(&ListParams::default().labels(OPERATORS)).await {
            Ok(pods) => findings.extend(checks::operators(&pods.items, &connection.namespace)),
            Err(error) => {
                findings.push(Finding::warning("operators", "their pods were not looked at", error.to_string()))
            }
        }
    }
    match policies {
        Ok(policies) => findings.extend(checks::policies(&policies, clock::now())),
        Err(error) => findings.push(unread("policies", &error)),
    }
    match nodes {
        Ok(nodes) => findings.extend(checks::agents(&seen, &nodes)),
        Err(error) => findings.push(unread("agents", &error)),
    }
    findings.extend(checks::gates(&seen));
    findings.extend(checks::orders(&seen, clock::now()));
    match budgets {
        Ok(budgets) => findings.extend(checks::budgets(&budgets)),
        Err(error) => findings.push(Finding::warning("budgets", "were not looked at", error.to_string())),
    }
    Ok(findings)
}

/// Something that could not be looked at.
fn unread(about: &'static str, error: &anyhow::Error) -> Finding {
    Finding::wrong(about, "were not looked at".to_owned(), error.to_string())
}

fn text(findings: &[Finding], look: Look) -> String {
    let mut text = String::new();
    for finding in findings {
        let (sign, tone) = match finding.weight {
            Weight::Good => (look.sign("✓", "ok  "), Tone::Good),
            Weight::Warning => (look.sign("!", "warn"), Tone::Warn),
            Weight::Wrong => (look.sign("✗", "BAD "), Tone::Bad),
        };
        text.push_str(&format!("{} {}: {}\n", look.paint(tone, sign), finding.about, finding.what));
        if !finding.advice.is_empty() {
            text.push_str(&look.wrapped(&finding.advice, "       "));
        }
        // Never wrapped: they are typed, or copied, as they stand.
        text.extend(finding.commands.iter().map(|command| format!("       run  {command}\n")));
    }
    let count = |weight| findings.iter().filter(|finding| finding.weight == weight).count();
    text.push_str(&match (count(Weight::Wrong), count(Weight::Warning)) {
        (0, 0) => "Found nothing that keeps nodes from being updated.\n".to_owned(),
        (wrong, warnings) => format!("{wrong} wrong, {warnings} to look at.\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_comes_with_what_to_do() {
        let findings = [
            Finding::good("API server", "v1.36.4"),
            Finding::warning("leader", "its clock is 40s ahead", "Set the clocks right."),
            Finding::wrong("policy", "workers: no window is long enough", "An admin makes a window longer.")
                .run("kubectl edit updatepolicy workers"),
        ];
        insta::assert_snapshot!("doctor", text(&findings, Look::PLAIN));
        insta::assert_snapshot!("doctor-json", crate::cluster::fixture::json(&findings));
        assert!(text(&findings[..1], Look::PLAIN).ends_with("Found nothing that keeps nodes from being updated.\n"));
    }
}
