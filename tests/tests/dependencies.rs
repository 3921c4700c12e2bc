//! Dependencies point inwards (docs/architecture.md): what decides sees no client, no runtime, no clock and no random
//! source. The whole tree below a crate is read, so a dependency that comes in by a detour is seen too.

#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests are not `#[test]` functions themselves")]

use cargo_metadata::{DependencyKind, MetadataCommand, Package, TargetKind, camino::Utf8Path};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Command,
};

/// Crates that reach outside of the process, or bring what a pure function must not have.
const CLIENTS: &[&str] = &["kube", "kube-client", "kube-runtime", "reqwest", "hyper", "tough", "zbus", "zbus_systemd"];
const RUNTIMES: &[&str] = &["tokio", "async-std", "smol", "futures-executor"];
const CHANCE: &[&str] = &["rand", "rand_chacha", "fastrand", "getrandom"];

/// Everything a package is built from, by name, with the features it asks for itself (features that other members of
/// the workspace switch on in a shared dependency are not its doing).
fn below(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--package", package, "--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .args(["--target", "x86_64-unknown-linux-gnu"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo tree");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("names of packages");
    let names = text.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != package).map(str::to_owned).collect()
}

/// The members of this workspace that each member is built from, read from `cargo metadata`.
fn members() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata");
    let names: BTreeSet<String> = metadata.packages.iter().map(|package| package.name.to_string()).collect();
    let direct = metadata.packages.iter().map(|package| {
        let normal = package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal);
        let members = normal.map(|dependency| dependency.name.clone()).filter(|name| names.contains(name));
        (package.name.to_string(), members.collect())
    });
    direct.collect()
}

fn members_below(members: &BTreeMap<String, BTreeSet<String>>, package: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut open = vec![package.to_owned()];
    while let Some(name) = open.pop() {
        for next in members.get(&name).unwrap_or_else(|| panic!("no package {name}")) {
            if seen.insert(next.clone()) {
                open.push(next.clone());
            }
        }
    }
    seen
}

#[test]
fn what_decides_sees_no_client_no_runtime_and_no_chance() {
    for pure in ["bascule-names", "bascule-api", "bascule-planner"] {
        let below = below(pure);
        for forbidden in CLIENTS.iter().chain(RUNTIMES).chain(CHANCE) {
            assert!(!below.contains(*forbidden), "{pure} is built from {forbidden}");
        }
    }
}

/// What makes facts of Kubernetes objects asks nobody. Hashing brings `getrandom` into the tree below it: the names of Jobs have digests.
#[test]
fn what_makes_facts_of_objects_sees_no_client_and_no_runtime() {
    let below = below("bascule-facts");
    for forbidden in CLIENTS.iter().chain(RUNTIMES).chain(&["rand", "rand_chacha", "fastrand"]) {
        assert!(!below.contains(*forbidden), "bascule-facts is built from {forbidden}");
    }
}

/// Whoever plans makes facts in the same way: the operator and `bascule` have them from one crate, and the planner knows no object.
#[test]
fn kubernetes_objects_become_facts_in_one_crate() {
    let members = members();
    for planning in ["bascule-operator", "bascule-cli"] {
        assert!(members_below(&members, planning).contains("bascule-facts"), "{planning} makes facts of its own");
    }
    // The planner's benchmarks and the simulator make clusters up, without objects.
    let made_up = ["bascule-planner", "bascule-sim"];
    let all = packages_with_sources();
    let makers = all.iter().filter(|(_, sources)| sources.contains(concat!("back_", "seen:")));
    let makers: Vec<&str> =
        makers.map(|(package, _)| package.name.as_str()).filter(|name| !made_up.contains(name)).collect();
    assert_eq!(makers, ["bascule-facts"], "each of these makes the facts of a node by itself");
}

#[test]
fn the_release_format_sees_no_network_and_no_runtime() {
    let below = below("bascule-image");
    for forbidden in CLIENTS.iter().chain(RUNTIMES) {
        assert!(!below.contains(*forbidden), "bascule-image is built from {forbidden}");
    }
}

/// What runs on every node, and what speaks for all of them, verifies with ring alone: tough, with which repositories are
/// written, would bring aws-lc-rs along.
#[test]
fn readers_have_one_crypto_library() {
    for reader in ["bascule-agent", "bascule-operator"] {
        let below = below(reader);
        assert!(
            below.contains("bascule-repository") && below.contains("ring"),
            "{reader} reads repositories with ring"
        );
        for forbidden in ["tough", "aws-lc-rs", "aws-lc-sys"] {
            assert!(!below.contains(forbidden), "{reader} is built from {forbidden}");
        }
    }
    assert!(below("bascule-cli").contains("tough"), "this test would see it");
}

/// A dependency that nobody names any more still costs build time and trust.
#[test]
fn every_dependency_is_used() {
    for (package, sources) in packages_with_sources() {
        let names: BTreeSet<&str> =
            sources.split(|character: char| !character.is_alphanumeric() && character != '_').collect();
        for dependency in &package.dependencies {
            let name = dependency.rename.as_ref().unwrap_or(&dependency.name).replace('-', "_");
            assert!(names.contains(name.as_str()), "{} never uses its dependency {}", package.name, dependency.name);
        }
    }
}

/// What several programs read is read by one: agent, publisher, simulator, boot tests and the reference OS's first program can't
/// disagree about it.
#[test]
fn tables_superblocks_and_command_lines_have_one_reader_each() {
    let mut readers: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (package, sources) in packages_with_sources() {
        let name = package.name.to_string();
        if package.dependencies.iter().any(|dependency| dependency.name == "gptman") {
            readers.entry("partition table").or_default().insert(name.clone());
        }
        for (what, sign) in [
            // Of a dm-verity superblock (cryptsetup, lib/verity/verity.c).
            ("verity superblock", concat!("\"verity\\0", "\\0")),
            // Whoever reads root hashes reads those of /usr too (systemd-veritysetup-generator(8)).
            ("root hash of a command line", concat!("\"usr", "hash\"")),
        ] {
            if sources.contains(sign) {
                readers.entry(what).or_default().insert(name.clone());
            }
        }
    }
    let one = |name: &str| BTreeSet::from([name.to_owned()]);
    let wanted = BTreeMap::from([
        ("partition table", one("bascule-gpt")),
        ("verity superblock", one("bascule-image")),
        ("root hash of a command line", one("bascule-image")),
    ]);
    assert_eq!(readers, wanted, "everybody else asks these");
}

/// Every package of the workspace, with all its Rust sources.
fn packages_with_sources() -> Vec<(Package, String)> {
    let metadata = MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata");
    let folders: BTreeSet<&Utf8Path> =
        metadata.packages.iter().filter_map(|package| package.manifest_path.parent()).collect();
    let with = |package: &Package| {
        let mut sources = String::new();
        read_sources(package.manifest_path.parent().expect("a manifest lies in a folder"), &folders, &mut sources);
        (package.clone(), sources)
    };
    metadata.packages.iter().map(with).collect()
}

/// All Rust sources below a folder, without those of other members and of build output.
fn read_sources(folder: &Utf8Path, members: &BTreeSet<&Utf8Path>, to: &mut String) {
    for entry in folder.read_dir_utf8().expect("a folder of sources") {
        let entry = entry.expect("an entry of a folder");
        let path = entry.path();
        if entry.file_type().expect("the type of a file").is_dir() {
            if !members.contains(path) && path.file_name() != Some("target") {
                read_sources(path, members, to);
            }
        } else if path.extension() == Some("rs") {
            to.push_str(&std::fs::read_to_string(path).expect("a source file"));
        }
    }
}

/// Building and starting an empty test program costs as much as one with tests, and so does looking for examples in comments.
#[test]
fn no_test_program_is_empty_and_no_comment_is_searched_for_examples() {
    let metadata = MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata");
    for package in &metadata.packages {
        for target in &package.targets {
            let name = format!("{} of {}", target.name, package.name);
            assert!(
                !target.doctest,
                "{name}: say `doctest = false`, or run its examples in a step of `cargo xtask test`"
            );
            let is_own = target.kind.iter().any(|kind| matches!(kind, TargetKind::Lib | TargetKind::Bin));
            if target.test && is_own {
                let mut sources = String::new();
                read_sources(target.src_path.parent().expect("a folder"), &BTreeSet::new(), &mut sources);
                let has_tests = ["#[test]", "#[tokio::test", "proptest! {"].iter().any(|mark| sources.contains(mark));
                assert!(has_tests, "{name} has no tests: say `test = false`");
            }
        }
    }
}

#[test]
fn dependencies_point_inwards() {
    let members = members();
    for (package, allowed) in [
        ("bascule-names", &[][..]),
        ("bascule-kubeconfig", &[]),
        ("bascule-gpt", &[]),
        ("bascule-api", &["bascule-names"]),
        ("bascule-planner", &["bascule-names", "bascule-api"]),
        ("bascule-facts", &["bascule-names", "bascule-api", "bascule-planner"]),
        ("bascule-dashboard", &["bascule-names", "bascule-api", "bascule-planner"]),
        ("bascule-image", &["bascule-names"]),
        ("bascule-release", &["bascule-names", "bascule-image"]),
        ("bascule-repository", &["bascule-names", "bascule-image"]),
        ("bascule-secure-boot", &["bascule-names", "bascule-image"]),
        ("bascule-disk", &["bascule-names", "bascule-gpt", "bascule-image"]),
        ("bascule-agent-core", &["bascule-names", "bascule-api", "bascule-image"]),
        ("bascule-agent-settings", &["bascule-names", "bascule-api"]),
        (
            "bascule-agent",
            &[
                "bascule-agent-core",
                "bascule-agent-settings",
                "bascule-gpt",
                "bascule-names",
                "bascule-api",
                "bascule-image",
                "bascule-kubeconfig",
                "bascule-repository",
                "bascule-secure-boot",
            ],
        ),
        (
            "bascule-operator",
            &[
                "bascule-names",
                "bascule-api",
                "bascule-planner",
                "bascule-facts",
                "bascule-dashboard",
                "bascule-image",
                "bascule-kubeconfig",
                "bascule-repository",
            ],
        ),
        (
            "bascule-cli",
            &[
                "bascule-agent-settings",
                "bascule-names",
                "bascule-api",
                "bascule-planner",
                "bascule-facts",
                "bascule-dashboard",
                "bascule-disk",
                "bascule-gpt",
                "bascule-image",
                "bascule-kubeconfig",
                "bascule-release",
                "bascule-repository",
                "bascule-secure-boot",
            ],
        ),
    ] {
        let below = members_below(&members, package);
        let outside: Vec<_> = below.iter().filter(|name| !allowed.contains(&name.as_str())).collect();
        assert!(outside.is_empty(), "{package} must not be built from {outside:?}");
    }
}

/// Hashing brings `getrandom` into the tree below the release format, so that the agent's state machine draws nothing and
/// asks for no time is read in its sources.
#[test]
fn the_agents_state_machine_names_no_client_no_runtime_and_no_clock() {
    let below = below("bascule-agent-core");
    for forbidden in CLIENTS.iter().chain(RUNTIMES).chain(&["rand", "rand_chacha", "fastrand"]) {
        assert!(!below.contains(*forbidden), "bascule-agent-core is built from {forbidden}");
    }
    let mut folders = vec![PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/agent-core/src"))];
    let mut paths = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the state machine's folder") {
            let path = entry.expect("a file").path();
            if path.is_dir() { folders.push(path) } else { paths.push(path) }
        }
    }
    let mut files = 0;
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("a source file");
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for (number, line) in code.enumerate() {
            for forbidden in [
                "tokio",
                "kube::",
                "reqwest",
                "zbus",
                "rand::",
                "Utc::now",
                "SystemTime",
                "Instant",
                "std::fs",
                "std::env",
            ] {
                assert!(!line.contains(forbidden), "{}: line {number} names {forbidden}", path.display());
            }
        }
        files += 1;
    }
    assert!(files > 5, "the state machine moved; move this test with it");
}

#[test]
fn the_test_sees_a_forbidden_dependency() {
    assert!(below("bascule-operator").contains("tokio"), "a tree in which the operator has no runtime is misread");
}
