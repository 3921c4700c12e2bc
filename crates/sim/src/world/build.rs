//! Facts for worlds, scenarios and benchmarks, with as little as has to be said.

use bascule_api::{
    Architecture, Digest, FreezeSpec, KubernetesVersion, Product, RollbackSpec, RollbackStatus, RootHash, Severity,
    Time, UpdatePolicySpec, UpdatePolicyStatus, Version,
};
use bascule_planner::drain::Space;
use bascule_planner::snapshot::{
    Cordon, DaemonSetPod, DaemonSets, EtcdMember, Excluded, FreezeFacts, Node, NodePods, Offer, OfferState,
    PolicyFacts, Readiness, Release, RollbackFacts, Taints, Truce,
};
use std::{collections::BTreeMap, sync::Arc};

/// The moment at which worlds begin: Monday 2026-06-01, 12:00 UTC.
#[must_use]
pub fn start() -> Time {
    Time::new(chrono::DateTime::from_timestamp(1_780_315_200, 0).unwrap_or_default())
}

/// A moment so many seconds after the beginning (or before it).
#[must_use]
pub fn at(seconds: i64) -> Time {
    Time::new(start().get() + chrono::TimeDelta::seconds(seconds))
}

/// A version.
///
/// # Panics
/// For a text that is no version: the tests' own mistake.
#[must_use]
#[allow(clippy::expect_used, reason = "tests' own texts")]
pub fn version(text: &str) -> Version {
    Version::parse(text).expect("a version")
}

/// The product of all releases here.
///
/// # Panics
/// Never: the name is one.
#[must_use]
#[allow(clippy::expect_used, reason = "tests' own texts")]
pub fn product() -> Product {
    Product::parse("acme-os").expect("a product")
}

/// A version of Kubernetes.
#[must_use]
pub const fn kubernetes(minor: u16) -> KubernetesVersion {
    KubernetesVersion { major: 1, minor }
}

/// The digest that a version's manifest has in these worlds.
#[must_use]
pub fn digest(version: &str) -> Digest {
    let mut bytes = [0_u8; 32];
    for (byte, text) in bytes.iter_mut().zip(version.bytes()) {
        *byte = text;
    }
    Digest::from_sha256(&bytes)
}

/// The digest of the manifest of a version that was published anew so many times; 0: as it was first. As with any two digests no part
/// of it is that of another: boot images wait under names of the first 16 digits of theirs.
#[must_use]
pub fn digest_anew(version: &str, times: u8) -> Digest {
    Digest::from_sha256(&digest(version).to_bytes().map(|byte| byte ^ times))
}

/// The root hash of the image that a manifest of this digest names. It is neither the digest nor the version: a version that is
/// published anew has another image.
#[must_use]
pub fn root_hash(digest: &Digest) -> RootHash {
    RootHash::from_bytes(&digest.to_bytes().map(|byte| byte ^ 0x5a))
}

/// A release that was published a day before the beginning.
#[must_use]
pub fn release(text: &str) -> Release {
    Release {
        version: version(text),
        digests: BTreeMap::from([(Architecture::X86_64, digest(text))]),
        severity: Severity::Low,
        published_at: at(-86_400),
        floor: None,
        downgrade: false,
        kubelet: None,
        brings_api_server: false,
        state_version: None,
        withdrawn: None,
    }
}

/// A channel with these releases, healthy.
#[must_use]
pub fn offer(versions: &[&str]) -> Arc<Offer> {
    Arc::new(Offer {
        state: OfferState::Valid,
        releases: versions.iter().map(|version| release(version)).collect(),
        repository: bascule_api::RepositoryStatus {
            verified_at: Some(start()),
            expires_at: Some(at(400 * 86_400)),
            ..bascule_api::RepositoryStatus::default()
        },
    })
}

/// A node in a zone, ready, uncordoned, without a NodeUpdate.
#[must_use]
pub fn node(name: &str, zone: &str) -> Node {
    let labels = [("kubernetes.io/hostname", name), ("topology.kubernetes.io/zone", zone), ("role", "worker")];
    Node {
        name: name.into(),
        uid: format!("uid-{name}-1"),
        created_at: at(-30 * 86_400),
        deleting: false,
        labels: Arc::new(labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()),
        ready: Readiness { ready: true, since: Some(at(-86_400)) },
        cordon: Cordon::None,
        taints: Taints::default(),
        truce: Truce::None,
        leaving: None,
        excluded: Excluded::default(),
        space: Space::default(),
        boot_id: format!("{name}-boot-1"),
        boot_seen: at(-86_400),
        back_seen: at(-86_400),
        architecture: Some(Architecture::X86_64),
        control_plane: false,
        etcd: EtcdMember::None,
        update: None,
        earlier: None,
        pods: NodePods::default(),
        daemon_sets: DaemonSets(vec![DaemonSetPod {
            set: "kube-system/cni".into(),
            ready: true,
            since: Some(at(-86_400)),
        }]),
        agent_trouble: None,
        unreadable: None,
        read_again: None,
    }
}

/// A policy's spec: selector `role: worker`, one source, and what `fields` says beside them.
///
/// # Panics
/// For fields that are no policy: the tests' own mistake.
#[must_use]
#[allow(clippy::expect_used, reason = "tests' own texts")]
pub fn spec(fields: &serde_json::Value) -> UpdatePolicySpec {
    let mut spec = serde_json::json!({
        "nodeSelector": {"matchLabels": {"role": "worker"}},
        "source": {"repository": "https://images.example.com/acme-os", "channel": "stable"},
        "provenAfter": "0s"
    });
    for (key, value) in fields.as_object().into_iter().flatten() {
        if let Some(spec) = spec.as_object_mut() {
            spec.insert(key.clone(), value.clone());
        }
    }
    serde_json::from_value(spec).expect("a policy's spec")
}

/// A policy over a channel.
#[must_use]
pub fn policy(name: &str, fields: &serde_json::Value, offer: &Arc<Offer>) -> PolicyFacts {
    PolicyFacts {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        created_at: at(-86_400),
        generation: 1,
        labels: BTreeMap::from([("policy".to_owned(), name.to_owned())]),
        read_again: None,
        spec: bascule_planner::validate(&spec(fields)).map(Arc::new),
        advice: None,
        status: UpdatePolicyStatus::default(),
        offer: Arc::clone(offer),
    }
}

/// A freeze of all policies.
#[must_use]
pub fn freeze(name: &str, created_at: Time, seconds: u64) -> FreezeFacts {
    FreezeFacts {
        name: name.to_owned(),
        generation: 1,
        created_at,
        kept_elsewhere: false,
        spec: FreezeSpec {
            reason: "incident".to_owned(),
            duration: bascule_api::Duration::from_secs(seconds),
            policy_selector: None,
            policies: Vec::new(),
            nodes: Vec::new(),
            undo_drains: false,
            requested_by: Some("alice".to_owned()),
            ended_by: None,
        },
        status: bascule_api::FreezeStatus::default(),
    }
}

/// The same, ended by somebody before its time.
#[must_use]
pub fn ended(freeze: &FreezeFacts, by: &str) -> FreezeFacts {
    let mut freeze = freeze.clone();
    freeze.spec.ended_by = Some(by.to_owned());
    freeze.generation += 1;
    freeze
}

/// A Rollback of a whole policy to what the other slots hold.
#[must_use]
pub fn rollback(name: &str, policy: &str, created_at: Time) -> RollbackFacts {
    RollbackFacts {
        name: name.to_owned(),
        generation: 1,
        created_at,
        spec: RollbackSpec {
            reason: "breaks NIC offload".to_owned(),
            policy: policy.to_owned(),
            nodes: Vec::new(),
            version: None,
            block: true,
            respect_windows: false,
            ignore_budgets: false,
            accept_state: false,
            requested_by: Some("bob".to_owned()),
        },
        status: RollbackStatus::default(),
    }
}
