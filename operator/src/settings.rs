//! What the operator is told when it starts: flags, each with an environment variable, parsed once into values that
//! can't be wrong. Everything about *updates* is in UpdatePolicies; this is only about the process.

use crate::{notify, silences};
use bascule_api::IntOrPercent;
use clap::{Parser, ValueEnum};
use std::{net::SocketAddr, path::PathBuf, time::Duration};
use url::Url;

/// Coordinates OS updates of Kubernetes nodes: decides who may be disrupted and when, drains, watches health, commits
/// or rolls back.
#[derive(Debug, Clone, Parser)]
#[command(name = "bascule-operator", version, args_override_self = true)]
pub struct Settings {
    /// The kubeconfig to use. Without it: the service account of the pod, or else the user's own kubeconfig.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The namespace of the operator: its Lease and the ConfigMaps with trust roots. Without it: the namespace of the
    /// pod, or of the kubeconfig's context.
    #[arg(long, env = "BASCULE_NAMESPACE", value_parser = label)]
    pub namespace: Option<String>,

    /// The name of this replica in the Lease. Without it: the host name and a random suffix.
    #[arg(long, env = "BASCULE_IDENTITY", value_parser = identity)]
    pub identity: Option<String>,

    /// The node on which this replica runs; it is updated last (by the downward API: spec.nodeName).
    #[arg(long, env = "BASCULE_NODE_NAME", value_name = "NODE")]
    pub node_name: Option<String>,

    /// Where /metrics, /healthz and /readyz are served. `[::]` is every address of the host, those of IPv4 too.
    #[arg(long, env = "BASCULE_LISTEN", default_value = "[::]:8080", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// Where the dashboard is served: a page that only reads, to whoever reaches this address. Without it there is none.
    #[arg(long, env = "BASCULE_DASHBOARD", value_name = "ADDRESS")]
    pub dashboard: Option<SocketAddr>,

    /// How many nodes of the whole cluster may be unavailable at once because of updates, over all policies: a number
    /// or a percentage. Without it only the policies' own budgets count.
    #[arg(long, env = "BASCULE_MAX_UNAVAILABLE", value_name = "N|N%", value_parser = quantity)]
    pub max_unavailable: Option<IntOrPercent>,

    /// PEM files with certificate authorities for repositories, Prometheus and HTTP gates, beside the system's.
    #[arg(long, env = "BASCULE_EXTRA_CA", value_name = "FILE", value_delimiter = ',')]
    pub extra_ca: Vec<PathBuf>,

    /// A folder that remembers the newest metadata of each repository, so that older metadata is refused after a
    /// restart. Without it that memory lasts as long as the process, in a folder below $TMPDIR or /tmp.
    #[arg(long, env = "BASCULE_STATE_DIR", value_name = "FOLDER")]
    pub state_dir: Option<PathBuf>,

    /// A folder of compiled time zones (TZif, as /usr/share/zoneinfo) that replace the operator's own, for zones whose
    /// rules changed since it was built; read when it starts.
    #[arg(long, env = "BASCULE_TIME_ZONES", value_name = "FOLDER")]
    pub time_zones: Option<PathBuf>,

    /// After how many seconds without a renewal another replica takes over.
    #[arg(long, env = "BASCULE_LEASE_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(2..=LONGEST_LEASE))]
    pub lease_seconds: u64,

    /// How many evictions may be under way at once, over all nodes.
    #[arg(long, env = "BASCULE_MAX_EVICTIONS", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub max_evictions: u16,

    /// Also say on the Nodes themselves what happens to them, as the conditions of KEP-5683 (DrainInProgress, Drained,
    /// MaintenanceInProgress). Needs the component node-conditions of the manifests.
    #[arg(long, env = "BASCULE_NODE_CONDITIONS")]
    pub node_conditions: bool,

    /// A webhook that is told of rollouts that begin, halt, end or are blocked, as CloudEvents.
    #[arg(long, env = "BASCULE_NOTIFY_URL", value_name = "URL", value_parser = web)]
    pub notify_url: Option<Url>,

    /// A file with the bearer token for the webhook, read for each event.
    #[arg(long, env = "BASCULE_NOTIFY_TOKEN_FILE", value_name = "FILE", requires = "notify_url")]
    pub notify_token_file: Option<PathBuf>,

    /// An Alertmanager, at which alerts of nodes under way are silenced.
    #[arg(long, env = "BASCULE_ALERTMANAGER_URL", value_name = "URL", value_parser = web)]
    pub alertmanager_url: Option<Url>,

    /// A file with the bearer token for Alertmanager, read for each request.
    #[arg(long, env = "BASCULE_ALERTMANAGER_TOKEN_FILE", value_name = "FILE", requires = "alertmanager_url")]
    pub alertmanager_token_file: Option<PathBuf>,

    /// The label of alerts that holds a node's name.
    #[arg(long, env = "BASCULE_SILENCE_LABEL", value_name = "LABEL", default_value = "node", value_parser = alert_label)]
    pub silence_label: String,

    /// How log lines are written.
    #[arg(long, env = "BASCULE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
}

/// The most that `--lease-seconds` takes.
pub(crate) const LONGEST_LEASE: u64 = 600;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl Settings {
    /// How long the Lease holds without a renewal.
    #[must_use]
    pub const fn lease_duration(&self) -> Duration {
        Duration::from_secs(self.lease_seconds)
    }

    /// Where notifications go.
    #[must_use]
    pub fn notify(&self) -> Option<notify::Target> {
        Some(notify::Target { url: self.notify_url.clone()?, token_file: self.notify_token_file.clone() })
    }

    /// Where silences go.
    #[must_use]
    pub fn silences(&self) -> Option<silences::Target> {
        let (url, token_file) = (self.alertmanager_url.clone()?, self.alertmanager_token_file.clone());
        Some(silences::Target { url, token_file, label: self.silence_label.clone() })
    }

    /// The flag whose token would be read by everybody on the way.
    #[must_use]
    pub fn token_in_the_open(&self) -> Option<&'static str> {
        let open = |url: &Option<Url>, token: &Option<PathBuf>| {
            let url = url.as_ref().filter(|url| token.is_some() && url.scheme() == "http");
            url.is_some_and(|url| match url.host() {
                Some(url::Host::Ipv4(address)) => !address.is_loopback(),
                Some(url::Host::Ipv6(address)) => !address.is_loopback(),
                Some(url::Host::Domain(name)) => name != "localhost",
                None => true,
            })
        };
        if open(&self.notify_url, &self.notify_token_file) {
            Some("--notify-token-file")
        } else if open(&self.alertmanager_url, &self.alertmanager_token_file) {
            Some("--alertmanager-token-file")
        } else {
            None
        }
    }
}

fn web(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        _ => Err("write a URL that begins with https:// or http://".to_owned()),
    }
}

/// As Prometheus has it ("Data model", metric names and labels).
fn alert_label(text: &str) -> Result<String, String> {
    let fine = (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !text.starts_with(|first: char| first.is_ascii_digit());
    if fine { Ok(text.to_owned()) } else { Err("write the name of a label: letters, digits and _".to_owned()) }
}

fn label(text: &str) -> Result<String, String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let fine = text.len() <= 63 && text.bytes().all(inner) && edge(text.bytes().next()) && edge(text.bytes().last());
    if fine { Ok(text.to_owned()) } else { Err("write 1 to 63 lower-case letters, digits and inner dashes".to_owned()) }
}

fn identity(text: &str) -> Result<String, String> {
    let fine = (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if fine { Ok(text.to_owned()) } else { Err("write 1 to 128 visible characters without spaces".to_owned()) }
}

fn quantity(text: &str) -> Result<IntOrPercent, String> {
    let quantity = match text.parse::<u32>() {
        Ok(count) => IntOrPercent::Int(count),
        Err(_) => IntOrPercent::Percent(text.to_owned()),
    };
    match quantity.of(100) {
        Ok(0) => Err("0 would let no node ever be updated; to stop updates write a Freeze".to_owned()),
        Ok(_) => Ok(quantity),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Settings, clap::Error> {
        Settings::try_parse_from(std::iter::once("bascule-operator").chain(arguments.iter().copied()))
    }

    #[test]
    fn defaults_are_complete() {
        let settings = parse(&[]).unwrap();
        assert_eq!(settings.lease_duration(), Duration::from_secs(15));
        assert_eq!(settings.listen.to_string(), "[::]:8080");
        assert_eq!(settings.max_evictions, 32);
    }

    #[test]
    fn values_that_make_no_sense_are_refused_with_a_hint() {
        for (arguments, hint) in [
            (["--max-unavailable", "0"], "Freeze"),
            (["--max-unavailable", "101%"], "percentage"),
            (["--max-unavailable", "many"], "percentage"),
            (["--namespace", "Not_A_Name"], "lower-case"),
            (["--lease-seconds", "1"], "2..=600"),
            (["--listen", "everywhere"], "socket address"),
            (["--identity", "two words"], "without spaces"),
            (["--notify-url", "ftp://a.example"], "https://"),
            (["--alertmanager-url", "alertmanager"], "relative URL"),
            (["--silence-label", "a-b"], "letters"),
            (["--notify-token-file", "/token"], "--notify-url"),
        ] {
            let refused = parse(&arguments).unwrap_err().to_string();
            assert!(refused.contains(hint), "{arguments:?}: {refused}");
        }
        assert_eq!(
            parse(&["--max-unavailable", "5%"]).unwrap().max_unavailable,
            Some(IntOrPercent::Percent("5%".into()))
        );
    }

    #[test]
    fn a_token_is_not_sent_in_the_open() {
        let open = |url: &str| {
            let settings = parse(&["--notify-url", url, "--notify-token-file", "/token"]).unwrap();
            settings.token_in_the_open()
        };
        assert_eq!(open("http://hooks.example.com/a"), Some("--notify-token-file"));
        for fine in ["https://hooks.example.com/a", "http://127.0.0.1:1/a", "http://[::1]:1/a", "http://localhost/a"] {
            assert_eq!(open(fine), None, "{fine}");
        }
        assert_eq!(parse(&["--notify-url", "http://hooks.example.com/a"]).unwrap().token_in_the_open(), None);
    }
}
