//! What a plan costs: `cargo bench -p bascule-planner`, or one of `full`, `again`, `places`, `forecast` after `--`. Prints medians of processor time; docs/benchmarks.md has those that were measured.
//! No test: a slow machine breaks nothing.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark")]

use bascule_api::{
    Architecture, BootControl, BootControlBackend, Booted, Counting, Digest, Duration, Goal, IntOrPercent,
    NodeUpdateSpec, NodeUpdateStatus, ReleaseRef, RepositoryStatus, RootHash, Severity, SlotName, SlotState,
    SlotStatus, Slots, Staged, Time, UpdatePolicySpec, UpdatePolicyStatus, Version, WaitReason,
};
use bascule_planner::{
    NodeReport, Planner, Snapshot,
    drain::{Needs, Space},
    forecast,
    snapshot::{
        Cordon, DaemonSetPod, DaemonSets, EtcdMember, Excluded, Node, NodePods, Offer, OfferState, PolicyFacts,
        Readiness, Release, Taints, Truce, UpdateFacts,
    },
};
use std::{collections::BTreeMap, sync::Arc, time::Instant};

/// Plans that a median is made of.
const ROUNDS: usize = 101;

/// Milliseconds of processor time this thread has used; a busy machine does not count. Linux: proc(5), schedstat.
/// The kernel brings the figure up to date when it schedules, on an idle machine only at its ticks otherwise.
fn spent() -> f64 {
    std::thread::yield_now();
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e6
}

fn at(seconds: i64) -> Time {
    Time::new(chrono::DateTime::from_timestamp(1_780_315_200 + seconds, 0).unwrap())
}

fn version(text: &str) -> Version {
    Version::parse(text).unwrap()
}

fn digest(byte: u8) -> Digest {
    Digest::from_sha256(&[byte; 32])
}

fn good(text: &str) -> SlotStatus {
    let root_hash = Some(RootHash::from_bytes(&[1; 32]));
    SlotStatus { state: SlotState::Good, version: Some(version(text)), root_hash, state_version: None }
}

/// Node `index` of a group: labels as a cloud gives them, on 41.2.0, with 41.3.0 staged.
fn node(index: usize, groups: usize) -> Node {
    let name = format!("ip-10-{}-{}.eu-central-1.compute.internal", index / 256, index % 256);
    let labels = [
        ("beta.kubernetes.io/arch", "amd64".to_owned()),
        ("beta.kubernetes.io/os", "linux".to_owned()),
        ("kubernetes.io/hostname", name.clone()),
        ("node.kubernetes.io/instance-type", "m7i.4xlarge".to_owned()),
        ("group", format!("g{}", index % groups)),
        ("topology.kubernetes.io/region", "eu-central-1".to_owned()),
        ("topology.kubernetes.io/zone", format!("eu-central-1{}", ["a", "b", "c"][index % 3])),
    ];
    let release = ReleaseRef {
        version: version("41.3.0"),
        digest: digest(3),
        repository: "https://images.example.com/acme-os".to_owned(),
        channel: "stable".parse().unwrap(),
    };
    let boot_id = format!("boot-{index}");
    let slots = Slots { a: good("41.2.0"), b: SlotStatus { state: SlotState::Staged, ..good("41.3.0") } };
    let update = UpdateFacts {
        generation: 3,
        owner_uid: Some(format!("uid-{index}")),
        deleting: false,
        spec: NodeUpdateSpec {
            policy: format!("group-{}", index % groups),
            goal: Goal::Staged,
            release: Some(release),
            grant: None,
            disruption: None,
            last_disruption: None,
            pack_fallback: bascule_api::PackFallback::default(),
            retry: None,
        },
        status: NodeUpdateStatus {
            observed_generation: Some(3),
            boot_id: Some(boot_id.clone()),
            architecture: Some(Architecture::X86_64),
            slots: Some(slots),
            booted: Some(Booted {
                slot: SlotName::A,
                version: version("41.2.0"),
                root_hash: RootHash::from_bytes(&[1; 32]),
                committed_at: Some(at(-86_400)),
            }),
            staged: Some(Staged { version: version("41.3.0"), digest: digest(3), at: None }),
            boot_control: Some(BootControl { backend: BootControlBackend::SystemdBoot, counting: Counting::Works }),
            ..NodeUpdateStatus::default()
        },
    };
    Node {
        name: name.into(),
        uid: format!("uid-{index}"),
        created_at: at(-86_400),
        deleting: false,
        labels: Arc::new(labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ready: Readiness { ready: true, since: Some(at(-80_000)) },
        cordon: Cordon::None,
        truce: Truce::None,
        leaving: None,
        excluded: Excluded::default(),
        space: Space::default(),
        taints: Taints::default(),
        boot_id,
        architecture: Some(Architecture::X86_64),
        control_plane: false,
        etcd: EtcdMember::None,
        update: Some(update),
        pods: NodePods { remaining: 30, ..NodePods::default() },
        daemon_sets: DaemonSets(
            ["net/cni", "net/proxy", "logs/agent", "storage/csi"]
                .map(|set| DaemonSetPod { set: set.into(), ready: true, since: None })
                .into(),
        ),
        earlier: None,
        agent_trouble: None,
        unreadable: None,
        read_again: None,
        boot_seen: Time::default(),
        back_seen: Time::default(),
    }
}

fn cluster(nodes: usize, groups: usize, fields: &serde_json::Value) -> Snapshot {
    let release = |text: &str, byte| Release {
        version: version(text),
        digests: BTreeMap::from([(Architecture::X86_64, digest(byte))]),
        severity: Severity::Low,
        published_at: at(-40_000),
        floor: None,
        downgrade: false,
        kubelet: None,
        brings_api_server: false,
        state_version: None,
        withdrawn: None,
    };
    let offer = Arc::new(Offer {
        state: OfferState::Valid,
        releases: vec![release("41.2.0", 2), release("41.3.0", 3)],
        repository: RepositoryStatus { expires_at: Some(at(100 * 86_400)), ..RepositoryStatus::default() },
    });
    let policies = (0..groups).map(|group| {
        let mut spec = serde_json::json!({
            "nodeSelector": {"matchLabels": {"group": format!("g{group}")}},
            "source": {"repository": "https://images.example.com/acme-os", "channel": "stable"}
        });
        for (key, value) in fields.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let spec: UpdatePolicySpec = serde_json::from_value(spec).unwrap();
        Arc::new(PolicyFacts {
            name: format!("group-{group}"),
            uid: format!("uid-{group}"),
            created_at: at(-90_000),
            generation: 1,
            labels: BTreeMap::new(),
            read_again: None,
            spec: bascule_planner::validate(&spec).map(Arc::new),
            advice: None,
            status: UpdatePolicyStatus::default(),
            offer: Arc::clone(&offer),
        })
    });
    Snapshot {
        now: at(0),
        seed: 7,
        policies: policies.collect(),
        nodes: (0..nodes).map(|index| Arc::new(node(index, groups))).collect(),
        ceiling: Some(IntOrPercent::Percent("20%".to_owned())),
        ..Snapshot::default()
    }
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// The median of plans after one node's change each, a second after the other, in the middle of a rollout.
fn again(snapshot: &mut Snapshot) -> f64 {
    let (mut planner, mut samples) = (Planner::default(), Vec::new());
    // Until nothing is left to do before somebody else acts: taints are set, the nodes that may move drain.
    loop {
        let first = planner.plan(snapshot);
        for step in &first.0.steps {
            let _ = bascule_planner::model::apply(snapshot, step, &first.1);
        }
        bascule_planner::model::write_statuses(snapshot, &first.1);
        if first.0.steps.is_empty() {
            break;
        }
    }
    for round in 0..ROUNDS {
        snapshot.now = Time::new(snapshot.now.get() + chrono::TimeDelta::seconds(1));
        let nodes = snapshot.nodes.len();
        let changed = Arc::make_mut(&mut snapshot.nodes[(round * 97) % nodes]);
        changed.pods.remaining = changed.pods.remaining.saturating_sub(1);
        let begin = spent();
        let made = planner.plan(snapshot);
        samples.push(spent() - begin);
        assert_eq!(made.1.nodes.len(), nodes);
    }
    median(samples)
}

/// Fills every node, so that no pod of any node finds another one: half of them have processors left, and half memory. There are
/// as many kinds of needs as a cluster has workloads.
fn fill(snapshot: &mut Snapshot) {
    let amounts = |amounts: [(&str, u64); 3]| -> BTreeMap<String, u64> {
        amounts.map(|(resource, amount)| (resource.to_owned(), amount)).into()
    };
    let kind = |kind: u64| {
        let requests = amounts([("cpu", 250 + kind), ("memory", (256 << 20) + kind), ("pods", 1)]);
        Arc::new(Needs { requests, ..Needs::default() })
    };
    let kinds: Vec<_> = (0..500).map(kind).collect();
    for (index, node) in snapshot.nodes.iter_mut().enumerate() {
        let node = Arc::make_mut(node);
        let (cpu, memory) = if index % 2 == 0 { (4_000, 64 << 20) } else { (100, 8 << 30) };
        node.space.free = amounts([("cpu", cpu), ("memory", memory), ("pods", 80)]);
        let needs = (0..10).map(|pod| Arc::clone(&kinds[(index * 7 + pod * 53) % kinds.len()]));
        node.pods.needs = needs.enumerate().map(|(pod, needs)| (format!("shop/pod-{index}-{pod}"), needs)).collect();
    }
}

/// A full cluster with needs: every node is asked, and none may be emptied.
fn places() {
    let mut snapshot = cluster(5_000, 1, &serde_json::json!({"budget": {"maxUnavailable": "10%"}}));
    fill(&mut snapshot);
    let mut full = Vec::new();
    for _ in 0..31 {
        let begin = spent();
        let made = Planner::default().plan(&snapshot);
        full.push(spent() - begin);
        let held = |said: &&NodeReport| said.wait.reason == WaitReason::PodFitsNowhere;
        assert_eq!(made.1.nodes.iter().filter(held).count(), 5_000);
    }
    println!("full plan, full cluster with needs, 5,000 nodes: {:.2} ms", median(full));
    println!("plan again after one node's change, full cluster with needs: {:.2} ms", again(&mut snapshot));
}

fn main() {
    let fields = serde_json::json!({
        "budget": {"maxUnavailable": "10%", "perDomain": {"maxDomains": 3}},
        "waves": [{"name": "canary", "percent": 1, "soak": "30m"}, {"name": "early", "percent": 20}, {"name": "rest"}],
        "maintenanceWindows": [{"schedule": "0 8 * * *", "duration": "10h", "timeZone": "Europe/Berlin"}]
    });
    let chosen: Vec<String> = std::env::args().skip(1).filter(|one| !one.starts_with('-')).collect();
    let wanted = |what: &str| chosen.is_empty() || chosen.iter().any(|one| one == what);
    let mut snapshot = cluster(10_000, 5, &fields);
    if wanted("full") {
        let mut full = Vec::new();
        for _ in 0..31 {
            let begin = spent();
            let made = Planner::default().plan(&snapshot);
            full.push(spent() - begin);
            assert!(!made.0.steps.is_empty());
        }
        println!("full plan, 10,000 nodes, 5 policies: {:.2} ms", median(full));
    }
    if wanted("again") {
        println!("plan again after one node's change, first wave moving: {:.2} ms", again(&mut snapshot));
        let fields = serde_json::json!({"budget": {"maxUnavailable": "10%"}});
        let mut snapshot = Snapshot { ceiling: None, ..cluster(10_000, 5, &fields) };
        println!("plan again after one node's change, a tenth of all nodes moving: {:.2} ms", again(&mut snapshot));
    }
    if wanted("places") {
        places();
    }
    if wanted("forecast") {
        ahead();
    }
}

fn ahead() {
    // 5,000 nodes, a tenth at once: as many rounds as the budget makes necessary, each of drain, boot and commit.
    let snapshot = cluster(5_000, 1, &serde_json::json!({"budget": {"maxUnavailable": "10%"}}));
    let snapshot = Snapshot { ceiling: None, ..snapshot };
    let options = forecast::Options::default();
    let begin = Instant::now();
    let seen = forecast(&snapshot, &options);
    let last = seen.policies[0].unwrap();
    let one = options.drain.as_secs() + options.boot.as_secs();
    let bound = Duration::from_secs(one * 10);
    let took = last.seconds_since(snapshot.now);
    println!(
        "5,000 nodes, 10 % at once: makespan {took} s, lower bound {} s, ratio {:.3}; forecast made in {:.1} s",
        bound.as_secs(),
        took as f64 / bound.as_secs() as f64,
        begin.elapsed().as_secs_f64()
    );
}
