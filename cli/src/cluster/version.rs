//! `bascule version`: which versions talk to each other.

use super::{Connection, live, live::Source};
use crate::{exit::Exit, output};
use clap::Args;
use serde::Serialize;

/// Show the versions of this program, of the operator that leads, and of the API server.
#[derive(Debug, Args)]
pub(crate) struct Version {
    /// Only this program's, without asking anybody.
    #[arg(long)]
    client: bool,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: output::Format,
}

#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    client: String,
    time_zones: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    operator: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operator_time_zones: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_server: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    no_operator_because: Option<String>,
}

impl Version {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let own = Answer {
            client: env!("CARGO_PKG_VERSION").to_owned(),
            time_zones: bascule_planner::zones::TimeZones::default().version(),
            ..Answer::default()
        };
        let answer = if self.client { own } else { asked(own, connection).await? };
        output::show(self.output, &answer, text)?;
        Ok(Exit::Success)
    }
}

async fn asked(own: Answer, connection: &Connection) -> anyhow::Result<Answer> {
    let client = connection.client().await?;
    let (server, seen) = tokio::join!(client.apiserver_version(), live::seen(&client, connection));
    let server =
        server.map_err(|error| super::problem::told(error, "get", "the API server's version", super::Role::OnCall))?;
    let mut answer = Answer { api_server: Some(server.git_version), ..own };
    match seen {
        Ok(seen) => match seen.source {
            Source::Leader { .. } => {
                answer.operator = Some(seen.report.operator_version);
                answer.operator_time_zones = Some(seen.report.time_zones);
            }
            Source::Objects { why, .. } => answer.no_operator_because = Some(why),
        },
        Err(error) => answer.no_operator_because = Some(error.to_string()),
    }
    Ok(answer)
}

fn text(answer: &Answer) -> String {
    let mut text = format!("bascule     {} (time zones {})\n", answer.client, answer.time_zones);
    match (&answer.operator, &answer.no_operator_because) {
        (Some(version), _) => {
            let zones = answer.operator_time_zones.as_deref().unwrap_or("unknown");
            text.push_str(&format!("operator    {version} (time zones {zones})\n"));
        }
        (None, Some(why)) => text.push_str(&format!("operator    not known: {why}\n")),
        (None, None) => {}
    }
    if let Some(server) = &answer.api_server {
        text.push_str(&format!("kubernetes  {server}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_who_is_not_there() {
        let answer = Answer {
            client: "0.1.0".into(),
            time_zones: "2026e".into(),
            no_operator_because: Some("no operator leads at the moment".into()),
            api_server: Some("v1.36.4".into()),
            ..Answer::default()
        };
        insta::assert_snapshot!("version", text(&answer));
        insta::assert_snapshot!("version-json", crate::cluster::fixture::json(&answer));
    }
}
