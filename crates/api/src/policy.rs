//! `UpdatePolicy`: what an admin wants for a group of nodes.

use crate::{ChannelName, Drain, Duration, IntOrPercent, Retry, Selector, UpdatePolicyStatus, Version};
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Keeps a group of nodes on the newest release of a channel: when, how many at once, and what healthy means.
///
/// Everything but `nodeSelector` and `source` has a default that a careful admin would choose.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "bascule.dev",
    version = "v1alpha1",
    kind = "UpdatePolicy",
    plural = "updatepolicies",
    shortname = "up",
    category = "bascule",
    status = "UpdatePolicyStatus",
    derive = "PartialEq",
    crates(kube_core = "kube_core"),
    doc = "Keeps a group of nodes on the newest release of a channel: when, how many at once, and what healthy means.",
    printcolumn(name = "Release", type_ = "string", json_path = ".status.target.version"),
    printcolumn(name = "Updated", type_ = "string", json_path = ".status.columns.updated"),
    printcolumn(name = "In Progress", type_ = "integer", json_path = ".status.counts.inProgress"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.counts.failed"),
    printcolumn(name = "Next window", type_ = "string", json_path = ".status.columns.nextWindow"),
    printcolumn(name = "Waits for", type_ = "string", json_path = ".status.columns.waitsFor"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.version) || !has(self.blockedVersions) || !(self.version in self.blockedVersions)").message("the pinned version is also in blockedVersions: remove it from one of the two"))]
#[x_kube(validation = Rule::new("!has(self.allowedVersions) || !has(self.blockedVersions) || self.allowedVersions.all(v, !(v in self.blockedVersions))").message("a release is in both allowedVersions and blockedVersions: remove it from one of the two"))]
#[x_kube(validation = Rule::new("!has(self.health) || !has(self.health.gates) || !self.health.gates.exists(g, has(g.promQL)) || has(self.health.prometheus)").message("a promQL gate needs spec.health.prometheus, the URL of the Prometheus server that is asked"))]
#[x_kube(crates(kube_core = "kube_core"))]
pub struct UpdatePolicySpec {
    /// The nodes this policy keeps up to date. A node that two policies select is touched by neither.
    pub node_selector: Selector,
    /// Where releases come from.
    pub source: Source,
    /// Stay on this release instead of the newest of the channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// Releases that must never be installed by this policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub blocked_versions: Vec<Version>,
    /// Releases whose block in `status.blocked` is lifted: an admin looked at why they failed and lets them go on. A
    /// release that fails on as many further nodes as `failureThreshold` is blocked again, and a node on which it failed
    /// does not try it again. The entry in `status.blocked` stays as a record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub allowed_versions: Vec<Version>,
    /// Nodes that try again what went wrong on them, once for each entry: the agent forgets which releases failed there, as
    /// does the policy, and a drain that was given up is not waited after any longer. A release that is blocked stays
    /// blocked. `bascule retry` writes this; what was done stands in `status.retried`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node"]))]
    pub retries: Vec<Retry>,
    /// Start nothing new. Updates in progress are finished.
    #[serde(default)]
    pub paused: bool,
    /// How many nodes may be unavailable at once, for whatever reason. Default: one.
    #[serde(default)]
    pub budget: Budget,
    /// How releases are downloaded ahead of time.
    #[serde(default)]
    pub staging: Staging,
    /// Nodes in the order in which they may be updated; nodes in no wave form a last one. Default: one wave of all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub waves: Vec<Wave>,
    /// When nodes may be disrupted: the union of these windows. Default: always.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub maintenance_windows: Vec<MaintenanceWindow>,
    /// How old a release must be before this policy takes it. Default: no minimum.
    #[serde(default)]
    pub min_release_age: Duration,
    /// How long a committed release must have run before the way back may be overwritten. Default: 1h.
    #[serde(default = "default_proven_after")]
    pub proven_after: Duration,
    /// What an urgent release may skip. Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emergency: Option<Emergency>,
    /// How nodes are emptied before their reboot.
    #[serde(default)]
    pub drain: Drain,
    /// What healthy means, before a node is disrupted and after it booted.
    #[serde(default)]
    pub health: Health,
    /// A release that failed on this many nodes is blocked and the policy halts. Default: 1.
    #[serde(default = "default_failure_threshold")]
    #[schemars(range(min = 1, max = 1000))]
    pub failure_threshold: u32,
    /// When a release is blocked by failures, bring the nodes that already run it back to what their other slot holds.
    /// Default: false, the nodes stay.
    #[serde(default)]
    pub automatic_rollback: bool,
    /// Jobs that run around the disruption of each node.
    #[serde(default)]
    pub hooks: Hooks,
    /// What happens to nodes that join on an old release.
    #[serde(default)]
    pub new_nodes: NewNodes,
    /// Nodes with a control plane or a member of etcd that were taken out of the cluster for good: their Nodes are deleted,
    /// and etcd's list of members (`etcdctl member list`) has none of theirs any more. Until it is named here, a member whose
    /// Node is gone counts as one that is away. Said of any policy it holds for all; it has to be taken out of the list before
    /// a node of that name joins again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub removed_cluster_members: Vec<String>,
}

fn default_proven_after() -> Duration {
    Duration::from_minutes(60)
}

fn default_failure_threshold() -> u32 {
    1
}

/// Where releases come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(crates(kube_core = "kube_core"))]
pub struct Source {
    /// The release repository: an https URL without query or fragment.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new(r"self.matches('^https://[^?#\\s]+$')").message("write an https:// URL without query or fragment, like https://images.example.com/acme-os"))]
    pub repository: String,
    /// The channel of the repository.
    pub channel: ChannelName,
    /// The TUF root the operator starts its own reading from. Nodes never use this one: theirs is in their OS image.
    /// Default: the ConfigMap `bascule-trust-root`, key `root.json`, in the operator's namespace.
    #[serde(default)]
    pub trust_root: TrustRoot,
    /// How often the operator looks for new metadata. Default: 5m.
    #[serde(default = "default_poll_interval")]
    pub poll_interval: Duration,
    /// What a node does when the cheapest pack is missing on the server. Default: Allow.
    #[serde(default)]
    pub pack_fallback: crate::PackFallback,
}

fn default_poll_interval() -> Duration {
    Duration::from_minutes(5)
}

/// Where the operator finds the TUF `root.json` of a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.inline) && has(self.configMap))").message("give the trust root inline or in a ConfigMap, not both"))]
#[x_kube(crates(kube_core = "kube_core"))]
pub struct TrustRoot {
    /// The `root.json` itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 65_536))]
    pub inline: Option<String>,
    /// A ConfigMap in the operator's namespace that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapKey>,
}

/// A key of a ConfigMap in the operator's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKey {
    /// The ConfigMap's name.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The key. Default: `root.json`.
    #[serde(default = "default_root_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn default_root_key() -> String {
    "root.json".to_owned()
}

/// How many nodes may be unavailable at once, for whatever reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// Nodes of this policy that may be unavailable (not Ready, cordoned, granted), as a count or a percentage that is
    /// rounded down, but never below one. Default: 1.
    #[serde(default = "default_max_unavailable")]
    pub max_unavailable: IntOrPercent,
    /// A limit over failure domains beside that. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_domain: Option<DomainBudget>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { max_unavailable: default_max_unavailable(), per_domain: None }
    }
}

fn default_max_unavailable() -> IntOrPercent {
    IntOrPercent::Int(1)
}

/// A limit over failure domains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainBudget {
    /// The node label whose values are the domains. Default: `topology.kubernetes.io/zone`.
    #[serde(default = "default_topology_key")]
    #[schemars(length(min = 1, max = 317))]
    pub topology_key: String,
    /// How many domains may have unavailable nodes at once. Default: 1.
    #[serde(default = "default_max_domains")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_domains: u32,
    /// How many nodes of one domain may be unavailable at once. Default: no limit beside `maxUnavailable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<IntOrPercent>,
}

fn default_topology_key() -> String {
    "topology.kubernetes.io/zone".to_owned()
}

fn default_max_domains() -> u32 {
    1
}

/// How releases are downloaded ahead of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Staging {
    /// How many nodes of this policy may download at once. Default: 25%.
    #[serde(default = "default_max_concurrent")]
    pub max_concurrent: IntOrPercent,
}

impl Default for Staging {
    fn default() -> Self {
        Self { max_concurrent: default_max_concurrent() }
    }
}

fn default_max_concurrent() -> IntOrPercent {
    IntOrPercent::Percent("25%".to_owned())
}

/// A group of nodes that is updated before the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.selector), has(self.count), has(self.percent)].filter(x, x).size() <= 1").message("a wave is given by selector, count or percent: keep one of them (none: all remaining nodes)"))]
#[x_kube(crates(kube_core = "kube_core"))]
pub struct Wave {
    /// The wave's name, shown in reasons.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The nodes of the wave by label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// So many of the remaining nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub count: Option<u32>,
    /// So many percent of all nodes of the policy, rounded up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub percent: Option<u32>,
    /// How long the wave's nodes must run the release, healthy, before the next wave starts. Default: 0s.
    #[serde(default)]
    pub soak: Duration,
}

/// A span of time that comes back, in which nodes may be disrupted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(crates(kube_core = "kube_core"))]
pub struct MaintenanceWindow {
    /// When the window opens: minute, hour, day of month, month, day of week as in crontab(5), e.g. `0 22 * * Mon-Thu`.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new(r"self.matches('^\\S+(\\s+\\S+){4}$')").message("write five fields, minute, hour, day of month, month, day of week, like '0 22 * * Mon-Thu'"))]
    pub schedule: String,
    /// How long it stays open.
    pub duration: Duration,
    /// The IANA time zone in which `schedule` is read, e.g. `Europe/Berlin`. Default: UTC.
    #[serde(default = "default_time_zone")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_+/-]+$')").message("write an IANA time zone, like Europe/Berlin"))]
    pub time_zone: String,
}

fn default_time_zone() -> String {
    "UTC".to_owned()
}

/// How urgent a release is, as its publisher signed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Severity {
    /// No known security relevance.
    None,
    /// Low.
    Low,
    /// Medium.
    Medium,
    /// High.
    High,
    /// Critical.
    Critical,
}

/// What an urgent release may skip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Emergency {
    /// From which severity on a release is urgent.
    pub min_severity: Severity,
    /// What it may skip.
    #[schemars(length(min = 1, max = 3))]
    pub ignore: Vec<EmergencyExemption>,
}

/// A gate that an urgent release may skip. Budgets, health and PodDisruptionBudgets are never skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EmergencyExemption {
    /// Maintenance windows.
    MaintenanceWindow,
    /// Waves and their soak times.
    Wave,
    /// `minReleaseAge`.
    MinimumAge,
}

/// What healthy means, before a node is disrupted and after it booted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.prometheusSecret) || has(self.prometheus)").message("prometheusSecret is for the server in spec.health.prometheus: name that too"))]
#[x_kube(crates(kube_core = "kube_core"))]
pub struct Health {
    /// How long a node may take from the reboot until it is Ready and its DaemonSets are up. Default: 10m.
    #[serde(default = "default_node_ready_timeout")]
    pub node_ready_timeout: Duration,
    /// How long a node must stay healthy on the new release before it commits. Default: 0s.
    #[serde(default)]
    pub node_soak: Duration,
    /// Whether the DaemonSet pods of a node must be ready before it commits. Default: true.
    #[serde(default = "default_true")]
    pub daemon_sets: bool,
    /// The Prometheus server that `promQL` gates ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new(r"self.matches('^https?://[^?#\\s]+$')").message("write the http:// or https:// URL of a Prometheus server, like http://prometheus.monitoring:9090"))]
    pub prometheus: Option<String>,
    /// A Secret in the operator's namespace with what that server wants to see: `token` (sent as a bearer token), or
    /// `username` and `password`; `header.<name>` for further headers, e.g. `header.X-Scope-OrgID`; `ca.crt`, the only
    /// authorities trusted for it; `tls.crt` and `tls.key`, the client's certificate. Its key `server` names the URLs, one a
    /// line, that may be asked with it; `prometheus` has to be one of them. The operator must be allowed to read it. Default:
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub prometheus_secret: Option<String>,
    /// What becomes of a trial when, at the end of `nodeReadyTimeout`, all that is missing is a gate that speaks of the
    /// cluster and not of the node, or that nobody can answer. Default: Hold.
    #[serde(default)]
    pub cluster_gates: ClusterGates,
    /// All of these must pass before a node is disrupted, and before it commits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub gates: Vec<Gate>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            node_ready_timeout: default_node_ready_timeout(),
            node_soak: Duration::ZERO,
            daemon_sets: true,
            prometheus: None,
            prometheus_secret: None,
            cluster_gates: ClusterGates::default(),
            gates: Vec::new(),
        }
    }
}

/// What becomes of a trial that waits for a gate that speaks of the cluster and not of its node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClusterGates {
    /// It is held, for as long as the guard on the node lets it be a trial. The release is blamed only if the same happens
    /// on a second node.
    #[default]
    Hold,
    /// It is taken back and counted as a failure of the release.
    Revert,
}

fn default_node_ready_timeout() -> Duration {
    Duration::from_minutes(10)
}

fn default_true() -> bool {
    true
}

/// Something that must hold. A gate whose answer can't be had does not pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.promQL), has(self.object), has(self.http)].filter(x, x).size() == 1").message("a gate is one of promQL, object or http"))]
#[x_kube(crates(kube_core = "kube_core"))]
pub struct Gate {
    /// The gate's name, shown in reasons. Default: its kind and position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// A PromQL query whose every sample must fulfil the comparison.
    #[serde(default, rename = "promQL", skip_serializing_if = "Option::is_none")]
    pub prom_ql: Option<PromQlGate>,
    /// Objects of the cluster that must fulfil an expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectGate>,
    /// An HTTP GET that must answer with a status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpGate>,
}

/// A PromQL query whose every sample must fulfil the comparison. An empty answer does not pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.equals), has(self.max), has(self.min)].exists(x, x)").message("say what the samples must be: equals, max or min"))]
#[x_kube(crates(kube_core = "kube_core"))]
pub struct PromQlGate {
    /// The query. `$node` stands for the node's name when the gate is asked for one node.
    #[schemars(length(min = 1, max = 2048))]
    pub query: String,
    /// The value every sample must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equals: Option<f64>,
    /// The highest value a sample may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// The lowest value a sample may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
}

/// Objects of the cluster that must fulfil a CEL expression. No object at all does not pass, unless `optional` says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.kind != 'Secret' || self.apiVersion != 'v1'").message("no object gate reads a Secret: what it holds must not show in a status"))]
#[x_kube(crates(kube_core = "kube_core"))]
pub struct ObjectGate {
    /// The API version, e.g. `apps/v1`.
    #[schemars(length(min = 2, max = 317), regex(pattern = "^([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?[a-z0-9]+$"))]
    pub api_version: String,
    /// The kind, e.g. `Deployment`.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[A-Za-z][A-Za-z0-9]*$"))]
    pub kind: String,
    /// The namespace. Default: all, or none for cluster-scoped objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Option<String>,
    /// The object's name. Default: every object that `selector` selects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[^/?#%]+$"))]
    pub name: Option<String>,
    /// The objects by label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Whether it passes when there is no such object at all, as with builds that may or may not run. Default: false.
    #[serde(default)]
    pub optional: bool,
    /// A CEL expression over `object` that must be true for each of them. With `node` in it, the node's name, the gate is
    /// asked for each node. An object that lacks a field that the expression asks for does not pass yet.
    #[schemars(length(min = 1, max = 2048))]
    pub cel: String,
}

impl ObjectGate {
    /// Whether objects of this kind are credentials by themselves: nobody's right to read them is a reason to show what
    /// they hold, not even bit by bit, to whoever reads a policy's status.
    #[must_use]
    pub fn is_confidential(&self) -> bool {
        let group = self.api_version.split_once('/').map_or("", |(group, _)| group);
        match group {
            "" => self.kind == "Secret",
            // The name of such an object is what a client shows (OpenShift, "OAuthAccessToken").
            "oauth.openshift.io" => self.kind.contains("Token"),
            _ => false,
        }
    }
}

/// An HTTP GET that must answer with a status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(crates(kube_core = "kube_core"))]
pub struct HttpGate {
    /// The URL.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new(r"self.matches('^https?://\\S+$')").message("write an http:// or https:// URL"))]
    pub url: String,
    /// The status that passes. Default: 200.
    #[serde(default = "default_http_status")]
    #[schemars(range(min = 100, max = 599))]
    pub status: u16,
    /// How long to wait for the answer. Default: 5s.
    #[serde(default = "default_http_timeout")]
    pub timeout: Duration,
}

fn default_http_status() -> u16 {
    200
}

fn default_http_timeout() -> Duration {
    Duration::from_secs(5)
}

/// Jobs that run around the disruption of each node, and around those of several.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hooks {
    /// Run after the grant, before the node is cordoned and drained.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub before_drain: Vec<Hook>,
    /// Run after the commit, before the node is uncordoned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub after_commit: Vec<Hook>,
    /// Run once before the first node of several is disrupted, in their order; nobody is before they succeeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub before_rollout: Vec<Hook>,
    /// Run once after the last of them, however it ended: the rollout is done, halted or paused, or its window is closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub after_rollout: Vec<Hook>,
}

/// A Job that must succeed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hook {
    /// The hook's name, shown in reasons and part of the Job's name.
    #[schemars(length(min = 1, max = 32), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The namespace of the Job.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: String,
    /// How long the Job may take. Default: 5m.
    #[serde(default = "default_hook_timeout")]
    pub timeout: Duration,
    /// The Job's spec (batch/v1). `BASCULE_NODE`, `BASCULE_RELEASE` and `BASCULE_POLICY` are added to the environment
    /// of its containers.
    #[schemars(schema_with = "job_spec_schema")]
    pub job: serde_json::Value,
}

fn default_hook_timeout() -> Duration {
    Duration::from_minutes(5)
}

fn job_spec_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "description": "The Job's spec (batch/v1), checked by the API server when the Job is created."
    })
}

/// What happens to nodes that join on an old release.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewNodes {
    /// Taint new nodes so that they get no work until they run the policy's release. Default: false.
    #[serde(default)]
    pub hold: bool,
}
