//! Each field that can't be used is named, with what would be accepted.

use super::validate;
use bascule_api::UpdatePolicySpec;
use serde_json::{Value, json};

fn spec(fields: &Value) -> UpdatePolicySpec {
    let mut spec = json!({
        "nodeSelector": {"matchLabels": {"role": "worker"}},
        "source": {"repository": "https://images.example.com/acme-os", "channel": "stable"}
    });
    for (key, value) in fields.as_object().unwrap() {
        spec[key] = value.clone();
    }
    serde_json::from_value(spec).unwrap()
}

#[test]
fn a_careful_policy_is_valid() {
    let valid = validate(&spec(&json!({
        "budget": {"maxUnavailable": "10%", "perDomain": {"maxDomains": 1}},
        "waves": [{"name": "canary", "count": 1, "soak": "30m"}, {"name": "early", "percent": 20}, {"name": "rest"}],
        "maintenanceWindows": [{"schedule": "0 22 * * Mon-Thu", "duration": "5h", "timeZone": "Europe/Berlin"}],
        "health": {
            "prometheus": "http://prometheus.monitoring:9090",
            "gates": [
                {"promQL": {"query": "up{node=\"$node\"}", "min": 1}},
                {"http": {"url": "https://shop.example.com/healthz"}}
            ]
        }
    })))
    .unwrap();
    assert_eq!(valid.windows.len(), 1);
    let gates: Vec<_> = valid.gates.iter().map(|gate| (gate.name.as_str(), gate.per_node)).collect();
    assert_eq!(gates, [("promQL-1", true), ("http-2", false)]);
}

#[test]
fn every_refusal_names_its_field() {
    let gate = |gate: Value| json!({"health": {"prometheus": "http://prometheus:9090", "gates": [gate]}});
    let windows = |schedule: &str, zone: &str| {
        json!({"maintenanceWindows": [
            {"schedule": "0 1 * * *", "duration": "1h"},
            {"schedule": schedule, "duration": "1h", "timeZone": zone}
        ]})
    };
    for (fields, field, category) in [
        (windows("0 1 * * *", "Europe/Berln"), "spec.maintenanceWindows[1].timeZone", "time-zone"),
        (windows("0 99 * * *", "UTC"), "spec.maintenanceWindows[1].schedule", "schedule"),
        (windows("0 0 30 2 *", "UTC"), "spec.maintenanceWindows[1].schedule", "schedule"),
        (
            json!({"nodeSelector": {"matchExpressions": [{"key": "role", "operator": "In"}]}}),
            "spec.nodeSelector",
            "selector",
        ),
        (json!({"budget": {"maxUnavailable": "110%"}}), "spec.budget.maxUnavailable", "quantity"),
        (json!({"budget": {"maxUnavailable": "many"}}), "spec.budget.maxUnavailable", "quantity"),
        (json!({"budget": {"perDomain": {"topologyKey": "/zone"}}}), "spec.budget.perDomain.topologyKey", "selector"),
        (json!({"staging": {"maxConcurrent": "-1%"}}), "spec.staging.maxConcurrent", "quantity"),
        (
            json!({"source": {"repository": "http://images.example.com", "channel": "stable"}}),
            "spec.source.repository",
            "url",
        ),
        (
            json!({"source": {"repository": "https://user:secret@images.example.com", "channel": "stable"}}),
            "spec.source.repository",
            "url",
        ),
        (json!({"version": "1.2", "blockedVersions": ["1.2"]}), "spec.version", "version"),
        (json!({"allowedVersions": ["1.1", "1.2"], "blockedVersions": ["1.2"]}), "spec.allowedVersions", "version"),
        (json!({"waves": [{"name": "a", "count": 1, "percent": 5}]}), "spec.waves[0]", "waves"),
        (json!({"waves": [{"name": "all"}, {"name": "b", "count": 1}]}), "spec.waves[0]", "waves"),
        (json!({"waves": [{"name": "a", "count": 1}, {"name": "a"}]}), "spec.waves[1].name", "list"),
        (json!({"emergency": {"minSeverity": "High", "ignore": []}}), "spec.emergency.ignore", "list"),
        (json!({"drain": {"timeout": "0s"}}), "spec.drain.timeout", "duration"),
        (json!({"health": {"nodeReadyTimeout": "2d"}}), "spec.health.nodeReadyTimeout", "duration"),
        (json!({"failureThreshold": 0}), "spec.failureThreshold", "quantity"),
        (gate(json!({})), "spec.health.gates[0]", "gate"),
        (gate(json!({"promQL": {"query": "up"}})), "spec.health.gates[0].promQL", "gate"),
        (
            gate(json!({"object": {"apiVersion": "v1", "kind": "Secret", "cel": "true"}})),
            "spec.health.gates[0].object.kind",
            "gate",
        ),
        (
            gate(json!({"object": {"apiVersion": "oauth.openshift.io/v1", "kind": "OAuthAccessToken", "cel": "true"}})),
            "spec.health.gates[0].object.kind",
            "gate",
        ),
        // What would make another request of it than the one that is asked for.
        (
            gate(json!({"object": {"apiVersion": "v1", "kind": "Pod", "namespace": "shop/secrets?a=", "cel": "true"}})),
            "spec.health.gates[0].object.namespace",
            "name",
        ),
        (
            gate(
                json!({"object": {"apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "..", "cel": "true"}}),
            ),
            "spec.health.gates[0].object.name",
            "name",
        ),
        (
            gate(json!({"object": {"apiVersion": "apps/v1/namespaces?", "kind": "Pod", "cel": "true"}})),
            "spec.health.gates[0].object.apiVersion",
            "name",
        ),
        (json!({"health": {"prometheusSecret": "a%2fb"}}), "spec.health.prometheusSecret", "name"),
        (
            json!({"hooks": {"beforeDrain": [{"name": "h", "namespace": "ops/pods#", "job": {"template": {}}}]}}),
            "spec.hooks.beforeDrain[0].namespace",
            "name",
        ),
        (gate(json!({"http": {"url": "ftp://example.com"}})), "spec.health.gates[0].http.url", "url"),
        (json!({"health": {"gates": [{"promQL": {"query": "up", "min": 1}}]}}), "spec.health.prometheus", "gate"),
        (
            json!({"hooks": {"beforeDrain": [{"name": "h", "namespace": "ops", "job": {}}]}}),
            "spec.hooks.beforeDrain[0].job",
            "hook",
        ),
    ] {
        let error = validate(&spec(&fields)).expect_err(field);
        assert_eq!((error.field.as_str(), error.category()), (field, category), "{error}");
        assert!(error.to_string().starts_with(&format!("{field}: ")), "{error}");
    }
}

#[test]
fn an_object_gate_that_names_the_node_is_asked_for_each_node() {
    for (expression, named) in [
        ("object.spec.nodeName != node", true),
        ("node==object.spec.nodeName", true),
        ("!(has(object.spec.nodeName) && object.spec.nodeName == node)", true),
        ("object.spec.node == 'node'", false),
        ("object.spec . node == 1", false),
        ("object.nodes.all(n, n == \"a 'node\")", false),
        ("object.a == 'it\\'s node' || node_name", false),
        ("object.a == 'x' && node != ''", true),
        ("'fit' in object.metadata.labels", false),
        ("// don't reboot under a build\nobject.spec.nodeName != node", true),
        ("object.a == '''it's''' && object.spec.nodeName != node", true),
        ("object.a.matches(r'\\') && object.spec.nodeName != node", true),
        ("object.a == \"\"\"a \"node\" of it\"\"\" // node", false),
        ("object.a == 'node", false),
        ("object.a == 'node\\", false),
        ("object.a == 'ß' || object.ä == node", true),
    ] {
        assert_eq!(super::mentions(expression, "node"), named, "{expression}");
    }
}
