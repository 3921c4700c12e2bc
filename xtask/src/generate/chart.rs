//! charts/bascule: the Helm chart, made from `manifests/`, so that there is one source for both. A test renders it with
//! Helm and holds it equal to what kustomize makes.

use super::Generated;
use crate::workspace_root;
use anyhow::Context as _;
use std::fs;

/// When a file of `manifests/` is part of an installation.
#[derive(Clone, Copy)]
enum When {
    Always,
    /// A condition of the template language.
    If(&'static str),
}

const DAEMON_SET: When = When::If("ne .Values.agent.as \"HostService\"");

const HOST_SERVICE: When = When::If("ne .Values.agent.as \"DaemonSet\"");

/// The files, in the order of installation.
const FILES: [(&str, When); 28] = [
    ("crds/updatepolicies.yaml", When::Always),
    ("crds/nodeupdates.yaml", When::Always),
    ("crds/freezes.yaml", When::Always),
    ("crds/rollbacks.yaml", When::Always),
    ("admission/agent.yaml", When::Always),
    ("admission/operator.yaml", When::Always),
    ("admission/on-call.yaml", When::Always),
    ("admission/lease.yaml", When::Always),
    ("roles/agent.yaml", When::Always),
    ("roles/hooks.yaml", When::Always),
    ("roles/people.yaml", When::Always),
    ("roles/priority-level.yaml", When::Always),
    ("operator/rbac.yaml", When::Always),
    ("operator/flow-schema.yaml", When::Always),
    ("operator/deployment.yaml", When::Always),
    ("agent/namespace.yaml", DAEMON_SET),
    ("agent/rbac.yaml", DAEMON_SET),
    ("agent/flow-schema.yaml", DAEMON_SET),
    ("agent/daemonset.yaml", DAEMON_SET),
    ("components/host-agent/rbac.yaml", HOST_SERVICE),
    ("components/host-agent/flow-schema.yaml", HOST_SERVICE),
    ("components/high-availability/budget.yaml", When::If("gt (int .Values.operator.replicas) 1")),
    ("components/network-policy/operator.yaml", When::If(".Values.networkPolicy")),
    ("components/prometheus/pod-monitor.yaml", When::If(".Values.podMonitor")),
    ("components/alerts/rules.yaml", When::If(".Values.alerts")),
    ("components/dashboard/service.yaml", When::If(".Values.dashboard")),
    ("components/dashboard/network-policy.yaml", When::If(".Values.dashboard")),
    ("components/node-conditions/rbac.yaml", When::If(".Values.operator.nodeConditions")),
];

/// What a value of the chart stands for in the manifests.
const VALUES: [(&str, &str); 15] = [
    ("bascule-system", "{{ .Release.Namespace }}"),
    ("bascule-agents", "{{ .Values.agent.namespace }}"),
    ("image: bascule-operator", "image: {{ required \"operator.image is yours to set\" .Values.operator.image }}"),
    ("image: bascule-agent", "image: {{ required \"agent.image is yours to set\" .Values.agent.image }}"),
    (
        "      serviceAccountName: bascule-operator\n",
        "      serviceAccountName: bascule-operator\n{{- with .Values.imagePullSecrets }}\n      imagePullSecrets: {{ toJson . }}\n{{- end }}\n\
         {{- with .Values.operator.nodeSelector }}\n      nodeSelector: {{ toJson . }}\n{{- end }}\n",
    ),
    (
        "      serviceAccountName: bascule-agent\n",
        "      serviceAccountName: bascule-agent\n{{- with .Values.imagePullSecrets }}\n      imagePullSecrets: {{ toJson . }}\n{{- end }}\n\
         {{- with .Values.agent.nodeSelector }}\n      nodeSelector: {{ toJson . }}\n{{- end }}\n",
    ),
    ("replicas: 1", "replicas: {{ .Values.operator.replicas }}"),
    // What components/extra-ca, components/dashboard and components/node-conditions add to the Deployment, and what is the admin's own.
    (
        "              value: /var/lib/bascule\n",
        "              value: /var/lib/bascule\n{{- if .Values.operator.extraCA }}\n            - name: BASCULE_EXTRA_CA\n              \
         value: /etc/bascule/ca.pem\n{{- end }}\n{{- if .Values.dashboard }}\n            - name: BASCULE_DASHBOARD\n              \
         value: \"[::]:8081\"\n{{- end }}\n{{- if .Values.operator.nodeConditions }}\n            - name: BASCULE_NODE_CONDITIONS\n              \
         value: \"true\"\n{{- end }}\n{{- with .Values.operator.env }}\n{{ toYaml . | indent 12 }}\n{{- end }}\n",
    ),
    (
        "            - {name: state, mountPath: /var/lib/bascule}\n      volumes:\n        - name: state\n          emptyDir: {sizeLimit: 64Mi}\n",
        "            - {name: state, mountPath: /var/lib/bascule}\n{{- if .Values.operator.extraCA }}\n            - {name: extra-ca, \
         mountPath: /etc/bascule, readOnly: true}\n{{- end }}\n      volumes:\n        - name: state\n          emptyDir: \
         {sizeLimit: 64Mi}\n{{- if .Values.operator.extraCA }}\n        - {name: extra-ca, configMap: {name: \
         bascule-extra-ca}}\n{{- end }}\n",
    ),
    (
        "          resources:\n            requests:\n              cpu: 50m\n              memory: 64Mi\n            limits:\n              memory: 256Mi\n",
        "          resources:\n{{ toYaml .Values.operator.resources | indent 12 }}\n",
    ),
    (
        "          resources:\n            requests:\n              cpu: 10m\n              memory: 16Mi\n            limits:\n              memory: 128Mi\n",
        "          resources:\n{{ toYaml .Values.agent.resources | indent 12 }}\n",
    ),
    // What components/xbootldr adds to the DaemonSet.
    (
        "            - {name: settings, mountPath: /etc/bascule, readOnly: true}\n            - {name: state, mountPath: \
         /var/lib/bascule}\n",
        "            - {name: settings, mountPath: /etc/bascule, readOnly: true}\n            - {name: state, mountPath: \
         /var/lib/bascule}\n{{- with .Values.agent.xbootldr }}\n            - {name: boot, mountPath: /host/boot, \
         mountPropagation: HostToContainer}\n{{- end }}\n",
    ),
    (
        "        - {name: state, hostPath: {path: /var/lib/bascule, type: DirectoryOrCreate}}\n",
        "        - {name: state, hostPath: {path: /var/lib/bascule, type: DirectoryOrCreate}}\n{{- with \
         .Values.agent.xbootldr }}\n        - {name: boot, hostPath: {path: {{ . | quote }}}}\n{{- end }}\n",
    ),
    ("hostPath: {path: /efi}", "hostPath: {path: {{ .Values.agent.bootPartition | quote }}}"),
    (
        "              containerPort: 8080\n",
        "              containerPort: 8080\n{{- if .Values.dashboard }}\n            - name: dashboard\n              \
         containerPort: 8081\n{{- end }}\n",
    ),
];

const HEAD: &str = "# Generated by `cargo xtask generate` from manifests/.\n";

const CHART: &str = "\
apiVersion: v2
name: bascule
description: Keeps immutable Kubernetes hosts patched while the cluster stays available
type: application
version: VERSION
appVersion: VERSION
kubeVersion: \">=1.34.0-0\"
";

const VALUES_FILE: &str = "\
operator:
  # Yours to set: the image that `cargo xtask images --push` printed.
  image: \"\"
  # 2: one leads, one takes over.
  replicas: 2
  # Where many nodes are more than these: docs/install.md, \"Sizing\".
  resources:
    requests: {cpu: 50m, memory: 64Mi}
    limits: {memory: 256Mi}
  # More of its environment, e.g. {name: HTTPS_PROXY, value: \"http://proxy.example:3128\"} or {name: BASCULE_MAX_UNAVAILABLE, value: 5%}.
  env: []
  # PEM of an authority of your own, for repositories, Prometheus and gates.
  extraCA: \"\"
  # Also write the conditions of KEP-5683 to the Nodes: true. Brings the right to their status.
  nodeConditions: false
  # Which nodes may carry it, e.g. {node-role.kubernetes.io/control-plane: \"\"}: whoever has root on one has its rights.
  nodeSelector: {}
agent:
  # Yours to set, for a DaemonSet.
  image: \"\"
  # DaemonSet, HostService where the OS image carries the agent, or Both while nodes move from one to the other.
  as: DaemonSet
  # Of the DaemonSet. Not the release's own: its pods are privileged.
  namespace: bascule-agents
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {memory: 128Mi}
  # Where the hosts mount the boot partition: /efi or /boot/efi.
  bootPartition: /efi
  # Where they mount an XBOOTLDR beside it, where they have one: /boot.
  xbootldr: \"\"
  # Which nodes get its pods, where some are no hosts of Bascule's.
  nodeSelector: {}
# Of a registry that wants a user, in both namespaces, e.g. [{name: registry}].
imagePullSecrets: []
# The repository's root.json, for policies that name no other.
trustRoot: \"\"
# Who reaches the operator, and whom it reaches.
networkPolicy: false
# For clusters with the Prometheus operator.
podMonitor: false
alerts: false
# The page that only reads, on a port of its own; who may reach it is up to you.
dashboard: false
";

const TRUST_ROOT: &str = "\
{{- with .Values.trustRoot }}
apiVersion: v1
kind: ConfigMap
metadata:
  name: bascule-trust-root
  namespace: {{ $.Release.Namespace }}
data:
  root.json: {{ . | quote }}
{{- end }}
";

const EXTRA_CA: &str = "\
{{- with .Values.operator.extraCA }}
apiVersion: v1
kind: ConfigMap
metadata:
  name: bascule-extra-ca
  namespace: {{ $.Release.Namespace }}
data:
  ca.pem: {{ . | quote }}
{{- end }}
";

/// What components/alerts makes of dashboard.json.
const DASHBOARD: &str = "\
{{- if .Values.alerts }}
apiVersion: v1
kind: ConfigMap
metadata:
  name: bascule-dashboard
  namespace: {{ .Release.Namespace }}
  labels:
    grafana_dashboard: \"1\"
data:
  bascule.json: {{ .Files.Get \"dashboard.json\" | quote }}
{{- end }}
";

/// The chart's files. Those of `manifests/` that are generated too are in `made`, as they are about to be written.
pub(super) fn files(made: &[Generated]) -> anyhow::Result<Vec<Generated>> {
    let at = |name: &str, content: String| Generated { path: format!("charts/bascule/{name}"), content };
    let mut files = vec![
        at("Chart.yaml", format!("{HEAD}{}", CHART.replace("VERSION", env!("CARGO_PKG_VERSION")))),
        at("values.yaml", format!("{HEAD}{VALUES_FILE}")),
        at("templates/trust-root.yaml", format!("{HEAD}{TRUST_ROOT}")),
        at("templates/extra-ca.yaml", format!("{HEAD}{EXTRA_CA}")),
        at("templates/dashboard-config.yaml", format!("{HEAD}{DASHBOARD}")),
    ];
    let read = |file: &str| {
        let path = format!("manifests/{file}");
        if let Some(new) = made.iter().find(|one| one.path == path) {
            return Ok(new.content.clone());
        }
        let path = workspace_root().join("manifests").join(file);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    files.push(at("dashboard.json", read("components/alerts/dashboard.json")?));
    for (file, when) in FILES {
        // Prometheus' own templates are not Helm's.
        let text = read(file)?.replace("{{", "{{`{{`}}");
        let name = format!("templates/{}", file.replace('/', "-"));
        files.push(at(&name, template(&text, when)));
    }
    Ok(files)
}

fn template(manifest: &str, when: When) -> String {
    // Comments speak of kustomize and of the files beside.
    let lines = manifest.lines().filter(|line| !line.trim_start().starts_with("# "));
    let mut text: String = lines.map(|line| format!("{line}\n")).collect();
    for (written, value) in VALUES {
        text = text.replace(written, value);
    }
    match when {
        When::Always => format!("{HEAD}{text}"),
        When::If(condition) => format!("{HEAD}{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n"),
    }
}
