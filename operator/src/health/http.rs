//! The HTTP gate: a GET that must answer with a status.

use super::GateAnswer;
use bascule_api::HttpGate;

pub(super) async fn ask(client: &reqwest::Client, gate: &HttpGate) -> GateAnswer {
    match client.get(&gate.url).timeout(gate.timeout.to_std()).send().await {
        Ok(response) if response.status().as_u16() == gate.status => GateAnswer::Passed,
        Ok(response) => GateAnswer::Failed(format!(
            "{} answers with status {}, {} is wanted",
            gate.url,
            response.status().as_u16(),
            gate.status
        )),
        Err(error) if error.is_timeout() => {
            GateAnswer::Unknown(format!("{} did not answer within {}", gate.url, gate.timeout))
        }
        Err(error) => GateAnswer::Unknown(format!("{} can't be asked: {}", gate.url, crate::one_line(&error))),
    }
}
