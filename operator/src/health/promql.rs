//! The Prometheus gate: an instant query whose every sample must fulfil a comparison
//! (Prometheus, "HTTP API", `/api/v1/query`).

use super::{GateAnswer, bounded};
use bascule_api::PromQlGate;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use std::collections::BTreeMap;

/// How many samples a message shows.
const SHOWN: usize = 3;

pub(super) async fn ask(
    client: &reqwest::Client,
    server: &str,
    gate: &PromQlGate,
    node: Option<&str>,
    headers: HeaderMap,
) -> GateAnswer {
    let query = query_for(gate, node);
    let url = format!("{}/api/v1/query", server.trim_end_matches('/'));
    let response = match client.get(&url).headers(headers).query(&[("query", &query)]).send().await {
        Ok(response) => response,
        Err(error) => return GateAnswer::Unknown(format!("Prometheus can't be asked: {}", crate::one_line(&error))),
    };
    let status = response.status();
    match bounded(response).await {
        Ok(body) => judge(gate, status.as_u16(), &body),
        Err(reason) => GateAnswer::Unknown(format!("Prometheus' answer can't be read: {reason}")),
    }
}

/// Node names are DNS names, so nothing in them could end a PromQL string.
fn query_for(gate: &PromQlGate, node: Option<&str>) -> String {
    node.map_or_else(|| gate.query.clone(), |node| gate.query.replace("$node", node))
}

#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Vector(Vec<Series>),
    Scalar((f64, String)),
    Matrix(serde::de::IgnoredAny),
    String(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct Series {
    #[serde(default)]
    metric: BTreeMap<String, String>,
    value: (f64, String),
}

fn judge(gate: &PromQlGate, status: u16, body: &[u8]) -> GateAnswer {
    if matches!(status, 401 | 403) {
        let why = format!("Prometheus answers with status {status}: spec.health.prometheusSecret names what it wants");
        return GateAnswer::Unknown(why);
    }
    let answer: Answer = match serde_json::from_slice(body) {
        Ok(answer) => answer,
        Err(_) => {
            return GateAnswer::Unknown(format!("Prometheus answers with status {status} and no JSON of its API"));
        }
    };
    if answer.status != "success" {
        let error: String = answer.error.chars().take(300).collect();
        return GateAnswer::Unknown(format!("Prometheus refuses the query: {error}"));
    }
    let samples: Vec<(String, String)> = match answer.data {
        Some(Data::Vector(series)) => series.into_iter().map(|one| (describe(&one.metric), one.value.1)).collect(),
        Some(Data::Scalar((_, value))) => vec![("the scalar".to_owned(), value)],
        Some(Data::Matrix(_) | Data::String(_)) => {
            return GateAnswer::Unknown(
                "the query gives a range or a text: it must give numbers of one instant".to_owned(),
            );
        }
        None => return GateAnswer::Unknown("Prometheus' answer has no data".to_owned()),
    };
    if samples.is_empty() {
        return GateAnswer::Unknown("the query gives no sample; add `or vector(0)` if none is fine".to_owned());
    }
    let bad: Vec<String> = samples
        .iter()
        .filter(|(_, value)| !value.parse().is_ok_and(|value| fulfils(gate, value)))
        .map(|(metric, value)| format!("{metric} is {value}"))
        .collect();
    if bad.is_empty() {
        return GateAnswer::Passed;
    }
    let more = if bad.len() > SHOWN { format!(" and {} more", bad.len() - SHOWN) } else { String::new() };
    let shown: Vec<&str> = bad.iter().take(SHOWN).map(String::as_str).collect();
    GateAnswer::Failed(format!("{}{more}, wanted {}", shown.join(", "), wanted(gate)))
}

fn fulfils(gate: &PromQlGate, value: f64) -> bool {
    // NaN fulfils nothing.
    gate.equals.is_none_or(|wanted| value == wanted)
        && gate.max.is_none_or(|max| value <= max)
        && gate.min.is_none_or(|min| value >= min)
        && !value.is_nan()
}

fn wanted(gate: &PromQlGate) -> String {
    let bounds = [("", gate.equals), ("at most ", gate.max), ("at least ", gate.min)];
    let texts: Vec<String> =
        bounds.iter().filter_map(|(word, bound)| bound.map(|bound| format!("{word}{bound}"))).collect();
    texts.join(" and ")
}

fn describe(metric: &BTreeMap<String, String>) -> String {
    let name = metric.get("__name__").map(String::as_str).unwrap_or_default();
    let labels: Vec<String> = metric
        .iter()
        .filter(|(key, _)| key.as_str() != "__name__")
        .take(4)
        .map(|(key, value)| format!("{key}=\"{}\"", value.chars().take(64).collect::<String>()))
        .collect();
    if name.is_empty() && labels.is_empty() {
        "the result".to_owned()
    } else {
        format!("{name}{{{}}}", labels.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> PromQlGate {
        PromQlGate { query: "up{node=\"$node\"}".into(), equals: Some(0.0), max: None, min: None }
    }

    fn vector(values: &[&str]) -> Vec<u8> {
        let result: Vec<_> = values
            .iter()
            .map(|value| serde_json::json!({"metric": {"__name__": "ALERTS", "alertname": "Down"}, "value": [1.5, value]}))
            .collect();
        serde_json::to_vec(
            &serde_json::json!({"status": "success", "data": {"resultType": "vector", "result": result}}),
        )
        .unwrap()
    }

    #[test]
    fn every_sample_must_fulfil_the_comparison() {
        assert_eq!(judge(&gate(), 200, &vector(&["0", "0"])), GateAnswer::Passed);
        let failed = judge(&gate(), 200, &vector(&["0", "1"]));
        assert_eq!(failed, GateAnswer::Failed("ALERTS{alertname=\"Down\"} is 1, wanted 0".into()));
        let many = judge(&gate(), 200, &vector(&["1"; 5]));
        assert!(many.message().contains("and 2 more"), "{many:?}");
        let range = PromQlGate { equals: None, min: Some(1.0), max: Some(2.0), ..gate() };
        assert_eq!(judge(&range, 200, &vector(&["1", "2"])), GateAnswer::Passed);
        assert_eq!(
            judge(&range, 200, &vector(&["3"])).message(),
            "ALERTS{alertname=\"Down\"} is 3, wanted at most 2 and at least 1"
        );
    }

    #[test]
    fn what_is_no_answer_does_not_pass() {
        let error = br#"{"status":"error","errorType":"bad_data","error":"parse error: unexpected end of input"}"#;
        let range = br#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;
        for (body, part) in [
            (vector(&[]), "no sample"),
            (error.to_vec(), "unexpected end of input"),
            (range.to_vec(), "one instant"),
            (b"<html>502</html>".to_vec(), "no JSON"),
            (b"{\"status\":\"success\"}".to_vec(), "no data"),
        ] {
            let answer = judge(&gate(), 200, &body);
            assert!(matches!(&answer, GateAnswer::Unknown(message) if message.contains(part)), "{answer:?}");
        }
        assert!(!judge(&gate(), 200, &vector(&["NaN"])).passed());
        let open = PromQlGate { equals: None, max: None, min: None, ..gate() };
        assert!(!judge(&open, 200, &vector(&["NaN"])).passed());
    }

    #[test]
    fn a_scalar_counts_and_the_node_is_put_in() {
        let scalar = br#"{"status":"success","data":{"resultType":"scalar","result":[1.0,"0"]}}"#;
        assert_eq!(judge(&gate(), 200, scalar), GateAnswer::Passed);
        assert_eq!(query_for(&gate(), Some("n1")), "up{node=\"n1\"}");
        assert_eq!(query_for(&gate(), None), "up{node=\"$node\"}");
    }
}
