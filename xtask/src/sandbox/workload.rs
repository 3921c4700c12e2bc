//! What runs on the nodes of the story, and the policy that keeps them patched. One place, so that what a reader sees
//! in docs/sandbox.md is what runs.

use bascule_api::OPERATOR_NAMESPACE;
use chrono::{DateTime, Datelike, Timelike, Utc};

use super::cluster::{NAMESPACE, ON_CALL};
use super::observe::SANDBOX_LABEL;

/// Replicas of the shop.
pub(crate) const REPLICAS: u32 = 12;
/// How many of them must always be there.
pub(crate) const BUDGET: u32 = 9;
/// The story's policy.
pub(crate) const POLICY: &str = "workers";

/// A Deployment with a budget, a DaemonSet, and who is on call.
pub(crate) fn shop() -> String {
    format!(
        r#"
apiVersion: v1
kind: Namespace
metadata: {{name: {NAMESPACE}, labels: {{{SANDBOX_LABEL}: "true"}}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: shop, namespace: {NAMESPACE}}}
spec:
  replicas: {REPLICAS}
  selector: {{matchLabels: {{app: shop}}}}
  template:
    metadata: {{labels: {{app: shop}}}}
    spec:
      nodeSelector: {{{SANDBOX_LABEL}: "true"}}
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: ScheduleAnyway
        labelSelector: {{matchLabels: {{app: shop}}}}
      containers: [{{name: shop, image: example.invalid/shop}}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{name: shop, namespace: {NAMESPACE}}}
spec: {{minAvailable: {BUDGET}, selector: {{matchLabels: {{app: shop}}}}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: log-shipper, namespace: {NAMESPACE}}}
spec:
  selector: {{matchLabels: {{app: log-shipper}}}}
  template:
    metadata: {{labels: {{app: log-shipper}}}}
    spec:
      nodeSelector: {{{SANDBOX_LABEL}: "true"}}
      tolerations: [{{operator: Exists}}]
      containers: [{{name: log-shipper, image: example.invalid/log-shipper}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: bascule-sandbox-on-call, labels: {{{SANDBOX_LABEL}: "true"}}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: bascule-on-call}}
subjects: [{{kind: User, apiGroup: rbac.authorization.k8s.io, name: {ON_CALL}}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: bascule-sandbox-on-call, namespace: {OPERATOR_NAMESPACE}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: bascule-live-report}}
subjects: [{{kind: User, apiGroup: rbac.authorization.k8s.io, name: {ON_CALL}}}]
"#
    )
}

/// The policy of the story: one node at a time and in one zone at a time, a canary first, only in the window, and
/// times that fit a story of minutes.
pub(crate) fn policy(repository: &str, window: DateTime<Utc>) -> String {
    let (minute, hour, day, month) = (window.minute(), window.hour(), window.day(), window.month());
    format!(
        r#"
apiVersion: bascule.dev/v1alpha1
kind: UpdatePolicy
metadata: {{name: {POLICY}, labels: {{{SANDBOX_LABEL}: "true"}}}}
spec:
  nodeSelector: {{matchLabels: {{{SANDBOX_LABEL}: "true"}}}}
  source: {{repository: "{repository}", channel: stable, pollInterval: 10s}}
  budget:
    maxUnavailable: 2
    perDomain: {{topologyKey: topology.kubernetes.io/zone, maxDomains: 1, maxUnavailable: 1}}
  staging: {{maxConcurrent: "50%"}}
  waves:
  - {{name: canary, count: 1, soak: 3s}}
  - {{name: rest}}
  maintenanceWindows:
  - {{schedule: "{minute} {hour} {day} {month} *", duration: 6h}}
  provenAfter: 1s
  drain: {{timeout: 60s}}
  health: {{nodeReadyTimeout: 45s, nodeSoak: 1s}}
  failureThreshold: 1
"#
    )
}

/// Tells the nodes of these machines apart as control planes, as kubeadm does. They take pods, as in small clusters.
pub(crate) fn control_plane_nodes(names: &[String]) -> String {
    let node = |name: &String| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{node-role.kubernetes.io/control-plane: \"\"}}}}\n"
        )
    };
    names.iter().map(node).collect::<Vec<_>>().join("---\n")
}

/// The policy of machines that carry the cluster. That they go one at a time, and only if etcd keeps its quorum, needs no
/// word in it; the gate asks that every part of every control plane is ready, before a node is disrupted and before it
/// commits.
pub(crate) fn control_plane_policy(repository: &str) -> String {
    format!(
        r#"
apiVersion: bascule.dev/v1alpha1
kind: UpdatePolicy
metadata: {{name: {POLICY}, labels: {{{SANDBOX_LABEL}: "true"}}}}
spec:
  nodeSelector: {{matchLabels: {{node-role.kubernetes.io/control-plane: ""}}}}
  source: {{repository: "{repository}", channel: stable, pollInterval: 10s}}
  budget: {{maxUnavailable: 1}}
  provenAfter: 1s
  drain: {{timeout: 60s}}
  health:
    nodeReadyTimeout: 3m
    nodeSoak: 1s
    gates:
    - name: control-planes
      object:
        apiVersion: v1
        kind: Pod
        namespace: kube-system
        selector: {{matchLabels: {{tier: control-plane}}}}
        cel: 'object.status.conditions.exists(c, c.type == "Ready" && c.status == "True")'
  failureThreshold: 1
"#
    )
}

/// What an admin grants whose policy looks at pods.
pub(crate) fn control_plane_gate() -> String {
    format!(
        r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: bascule-gates-pods
  labels: {{bascule.dev/aggregate-to-gates: "true", {SANDBOX_LABEL}: "true"}}
rules: [{{apiGroups: [""], resources: [pods], verbs: [get, list, watch]}}]
"#
    )
}

/// The next full minute that is at least `lead` seconds away: windows open at full minutes.
pub(crate) fn next_window(now: DateTime<Utc>, lead: i64) -> DateTime<Utc> {
    let earliest = now + chrono::TimeDelta::seconds(lead);
    let cut = earliest.with_second(0).and_then(|at| at.with_nanosecond(0)).unwrap_or(earliest);
    if cut == earliest { cut } else { cut + chrono::TimeDelta::minutes(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_open_at_the_next_full_minute_that_leaves_time_to_stage() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        assert_eq!(next_window(at("2026-03-01T10:00:10Z"), 20), at("2026-03-01T10:01:00Z"));
        assert_eq!(next_window(at("2026-03-01T10:00:40Z"), 20), at("2026-03-01T10:01:00Z"));
        assert_eq!(next_window(at("2026-03-01T10:00:41Z"), 20), at("2026-03-01T10:02:00Z"));
        assert_eq!(next_window(at("2026-12-31T23:59:41Z"), 20), at("2027-01-01T00:01:00Z"));
    }

    #[test]
    fn the_policy_is_one_that_the_api_accepts() {
        let window = "2026-03-01T10:05:00Z".parse().unwrap();
        let policy: bascule_api::UpdatePolicy =
            serde_saphyr::from_str(&policy("https://localhost:1/", window)).unwrap();
        assert_eq!(policy.spec.maintenance_windows[0].schedule, "5 10 1 3 *");
        assert_eq!(policy.spec.waves.len(), 2);
        let policy: bascule_api::UpdatePolicy =
            serde_saphyr::from_str(&control_plane_policy("https://releases.example.com/bascule/")).unwrap();
        assert_eq!(policy.spec.health.gates.len(), 1);
        let page = include_str!("../../../docs/sandbox.md");
        let shown = page.split("```yaml\n").skip(1).find_map(|rest| rest.split("\n```").next());
        let shown: bascule_api::UpdatePolicy = serde_saphyr::from_str(shown.unwrap()).unwrap();
        assert_eq!(shown.spec, policy.spec, "docs/sandbox.md shows the policy of the story");
    }
}
