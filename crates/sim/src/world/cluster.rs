//! Random clusters: small, odd, and full of policies that disagree.

use super::{
    Fate, Machine, World, build,
    pods::{App, Drains, Kind},
    refusing::Refusing,
};
use bascule_api::{IntOrPercent, Severity};
use bascule_planner::{GateSet, Snapshot, snapshot::EtcdMember};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::sync::Arc;

const ZONES: [&str; 3] = ["a", "b", "c"];

impl World {
    /// The world of a seed at its beginning.
    pub(super) fn random(seed: u64, gates: GateSet, drains: Drains) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let count = random.random_range(2..9_usize);
        let versions = pick(&mut random, &[&["1.0", "1.1"][..], &["1.0", "1.1", "1.2"]]);
        let mut offer = (*build::offer(versions)).clone();
        for release in &mut offer.releases {
            if random.random_range(0..12) == 0 {
                release.severity = Severity::Critical;
            }
            if random.random_range(0..6) == 0 {
                release.kubelet = Some(build::kubernetes(random.random_range(34..37)));
                release.brings_api_server = random.random_range(0..2) == 0;
            }
            if random.random_range(0..6) == 0 {
                release.published_at = build::at(random.random_range(-4_000..2_000));
            }
        }
        if random.random_range(0..8) == 0
            && let Some(last) = offer.releases.last_mut()
        {
            last.floor = Some(build::version("1.1")).filter(|floor| *floor < last.version);
        }
        let offer = Arc::new(offer);
        let two = random.random_range(0..4) == 0;
        let mut policy = |name: &str, group: &str| {
            let mut fields = fields(&mut random, two, group);
            if seed % 16 == 6 {
                ask_for_each_node(&mut fields);
            }
            Arc::new(build::policy(name, &fields, &offer))
        };
        let mut policies = vec![policy("workers", "x")];
        if two {
            policies.push(policy("others", "y"));
        }
        let snapshot = Snapshot {
            now: build::start(),
            seed,
            policies,
            api_server: (random.random_range(0..8) > 0).then(|| build::kubernetes(35)),
            ceiling: (random.random_range(0..3) == 0).then_some(IntOrPercent::Int(random.random_range(1..4))),
            operator_node: (random.random_range(0..2) == 0).then(|| "n0".to_owned()),
            ..Snapshot::default()
        };
        let mut world = Self::quiet(snapshot);
        world.random = random;
        world.seed = seed;
        world.history = Some(super::history::History::default());
        world.gates = gates;
        world.peace = false;
        world.refusing = Refusing::of_seed(seed);
        world.slow = Some(ChaCha8Rng::seed_from_u64(seed.rotate_left(16) ^ 0x510e));
        world.workload.healthy = true;
        world.workload.drains = drains;
        for version in ["1.1", "1.2", "1.3", "1.4"] {
            let fate = match world.random.random_range(0..8) {
                0 => Fate::NeverReady,
                1 => Fate::NoBoot,
                _ => Fate::Good,
            };
            world.fates.insert(version.to_owned(), fate);
        }
        for index in 0..count {
            world.add_node(&format!("n{index}"), two);
        }
        world.add_apps();
        world.show_workload();
        world
    }

    /// Adds a node on the oldest release.
    pub(super) fn add_node(&mut self, name: &str, two: bool) {
        let zone = pick(&mut self.random, &ZONES);
        let mut node = build::node(name, zone);
        let group = if two && self.chance(40) { "y" } else { "x" };
        Arc::make_mut(&mut node.labels).insert("group".to_owned(), group.to_owned());
        if self.chance(15) {
            Arc::make_mut(&mut node.labels).insert("canary".to_owned(), "yes".to_owned());
        }
        if self.chance(25) {
            // Some clusters keep etcd on nodes of its own.
            node.control_plane = self.chance(70);
            node.etcd = EtcdMember::Healthy;
        }
        let mut machine = Machine::new(name);
        machine.install(&build::version("1.0"), build::at(-86_400));
        machine.boot_seconds = self.random.random_range(20..120);
        machine.daemon_seconds = self.random.random_range(0..90);
        if self.chance(5) {
            (machine.daemons_broken, machine.never_ready, machine.daemons_since) = (true, true, None);
            for pod in &mut node.daemon_sets.0 {
                pod.ready = false;
            }
        }
        machine.stage_seconds = self.random.random_range(10..200);
        machine.skew = if self.chance(10) { self.random.random_range(-7_200..7_200) } else { 0 };
        if self.seed % 8 == 3 && name == "n0" {
            // Away for longer than any policy waits, and its agent speaks before its kubelet. No chance decides, so that all other
            // worlds stay what they are.
            (machine.boot_seconds, machine.kubelet_seconds) = (660, 60);
        }
        if self.chance(20) {
            machine.keep(&build::version("0.9"));
        }
        self.machines.insert(name.to_owned(), machine);
        self.greet(name);
        self.snapshot.nodes.push(Arc::new(node));
        for _ in 0..self.random.random_range(0..4) {
            self.workload.add(name, Kind::Loose, self.snapshot.now);
        }
        if self.chance(15) {
            self.workload.add(name, Kind::Tolerant, self.snapshot.now);
        }
    }

    fn add_apps(&mut self) {
        let nodes: Vec<String> = self.snapshot.nodes.iter().map(|node| node.name.to_string()).collect();
        for app in 0..self.up_to(2) {
            let wanted = self.random.random_range(2..7_u32);
            let keep = if self.chance(15) { wanted } else { self.random.random_range(1..wanted) };
            let switches = self.chance(15);
            let places: Vec<String> = (0..wanted).map(|_| pick(&mut self.random, &nodes)).collect();
            let places: Vec<&str> = places.iter().map(String::as_str).collect();
            let app_of = App { wanted, desired: keep, switches, ..App::default() };
            self.add_app(&format!("shop/app-{app}"), app_of, &places);
        }
    }
}

/// One of some things; the default of none.
fn pick<T: Clone + Default>(random: &mut ChaCha8Rng, from: &[T]) -> T {
    let index = random.random_range(0..from.len().max(1));
    from.get(index).cloned().unwrap_or_default()
}

/// Has gates asked for each node, where there are any. No chance decides, so that all other worlds stay what they are.
fn ask_for_each_node(fields: &mut Value) {
    if let Some(query) = fields.pointer_mut("/health/gates/0/promQL/query") {
        *query = json!(r#"max(ALERTS{node="$node"})"#);
    }
}

/// A random policy's fields.
fn fields(random: &mut ChaCha8Rng, grouped: bool, group: &str) -> Value {
    let on_timeout = pick(random, &["Abort", "Delete", "Abort"]);
    let soak = pick(random, &["0s", "1m", "5m"]);
    let mut fields = json!({
        "budget": {"maxUnavailable": random.random_range(1..4)},
        "failureThreshold": random.random_range(1..3),
        "health": {"nodeReadyTimeout": "10m", "nodeSoak": soak},
        "staging": {"maxConcurrent": random.random_range(1..4)},
        "automaticRollback": random.random_range(0..3) == 0
    });
    let mut set = |key: &str, value: Value| {
        if let Some(fields) = fields.as_object_mut() {
            fields.insert(key.to_owned(), value);
        }
    };
    if grouped {
        set("nodeSelector", json!({"matchLabels": {"group": group}}));
    }
    let mut rules = Vec::new();
    if random.random_range(0..3) == 0 {
        let builds = json!({"matchLabels": {"kind": "job"}});
        let loose = json!({"matchLabels": {"kind": "loose"}});
        let behavior = pick(random, &["Drain", "Skip"]);
        rules.push(
            json!({"name": "builds", "selector": builds, "behavior": "WaitCompleted", "order": -1, "timeout": "2m"}),
        );
        rules.push(json!({"name": "loose", "selector": loose, "behavior": behavior, "order": 3}));
    }
    let opens = (random.random_range(0..3) == 0).then_some("2m");
    let drain = json!({
        "timeout": "5m", "onTimeout": on_timeout, "rules": rules, "budgetsOpenAfterCordon": opens
    });
    set("drain", drain);
    match random.random_range(0..4) {
        0 => set("waves", json!([{"name": "canary", "count": 1, "soak": "5m"}, {"name": "rest"}])),
        1 => set(
            "waves",
            json!([
                {"name": "canary", "selector": {"matchLabels": {"canary": "yes"}}, "soak": "2m"},
                {"name": "half", "percent": 50, "soak": "3m"}
            ]),
        ),
        _ => {}
    }
    if random.random_range(0..3) == 0 {
        let most = random.random_range(1..3);
        set(
            "budget",
            json!({
                "maxUnavailable": "50%",
                "perDomain": {"topologyKey": "topology.kubernetes.io/zone", "maxDomains": most, "maxUnavailable": 1}
            }),
        );
    }
    match random.random_range(0..4) {
        0 => set("maintenanceWindows", json!([{"schedule": "0 * * * *", "duration": "40m", "timeZone": "UTC"}])),
        1 => set("maintenanceWindows", json!([{"schedule": "30 12-20 * * *", "duration": "25m", "timeZone": "UTC"}])),
        _ => {}
    }
    if random.random_range(0..4) == 0 {
        set("minReleaseAge", json!("1h"));
    }
    if random.random_range(0..4) == 0 {
        set("provenAfter", json!("20m"));
    }
    if random.random_range(0..5) == 0 {
        let ignore = json!(["MaintenanceWindow", "Wave", "MinimumAge"]);
        set("emergency", json!({"minSeverity": "Critical", "ignore": ignore}));
    }
    if random.random_range(0..5) == 0 {
        let job = json!({"template": {}});
        let hook = |name: &str| json!([{"name": name, "namespace": "hooks", "timeout": "3m", "job": job}]);
        let (before, after) = (hook("before"), hook("after"));
        let node = random.random_range(0..2) == 0;
        set(
            "hooks",
            if node {
                json!({"beforeDrain": before, "afterCommit": after})
            } else {
                json!({"beforeRollout": before, "afterRollout": after})
            },
        );
    }
    if random.random_range(0..4) == 0 {
        set(
            "health",
            json!({
                "nodeReadyTimeout": "10m",
                "prometheus": "http://prometheus.example.com:9090",
                "gates": [{"promQL": {"query": "max(ALERTS)", "equals": 0}}]
            }),
        );
    }
    if random.random_range(0..4) == 0 {
        set("newNodes", json!({"hold": true}));
    }
    fields
}
