//! What is shipped, started as it is installed: the images that `cargo xtask images` builds, with the mounts, users,
//! environment and arguments of `manifests/`, as pods of a real API server that enforces Pod Security.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are not `#[test]` functions themselves"
)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::net::Ipv6Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bascule_api::{NodeError, NodeUpdate, UpdatePolicy, WaitReason, conditions};
use bascule_sim::disk::Disk;
use bascule_sim::firmware::BootLoader;
use bascule_sim::layout::Sizes;
use bascule_sim::tiny::TinyRelease;
use bascule_tests::bascule;
use bascule_tests::container::{Container, Image, Mount, Node};
use bascule_tests::control_plane::{ControlPlane, Options, free_port};
use bascule_tests::files::copy_folder;
use bascule_tests::kubelet::{Health, Kubelet, KubeletHost, Runtime};
use bascule_tests::page::{self, Page};
use bascule_tests::registry::{self, Registry};
use bascule_tests::supervise::Supervised;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod};
use kube::api::{ListParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

/// Longer than anything here takes on a busy machine; a wait that ends this way is a failure.
const PATIENCE: Duration = Duration::from_secs(240);
const IMAGES: [&str; 2] = ["bascule-operator", "bascule-agent"];

/// Builds the images into a folder, with more arguments; gives the digest of each.
fn images(out: &Path, more: &[&OsStr]) -> Vec<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.env("REGISTRY_USER", registry::USER).env("REGISTRY_PASSWORD", registry::PASSWORD);
    let built = command.args(["images", "--out"]).arg(out).args(more).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let said = String::from_utf8(built.stdout).unwrap();
    let digests: Vec<String> = said
        .lines()
        .filter(|line| !line.starts_with("pushed"))
        .map(|line| line.split(' ').nth(1).unwrap().to_owned())
        .collect();
    assert_eq!(digests.len(), IMAGES.len(), "{said}");
    digests
}

/// Whatever lies in a folder, by its path.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Twice the same, whole folders, into a registry that wants a user the second time. Gives the images, unpacked.
async fn built_twice(folder: &Path) -> BTreeMap<&'static str, Image> {
    let (out, again) = (folder.join("images"), folder.join("again"));
    let digests = images(&out, &[]);
    let registry = Registry::start_for_its_user(folder).await.unwrap();
    let place = format!("{}/platform", registry.address());
    let push: [&OsStr; 6] = [
        "--push".as_ref(),
        place.as_ref(),
        "--ca".as_ref(),
        registry.authority().as_os_str(),
        "--tag".as_ref(),
        "0.1.0".as_ref(),
    ];
    assert_eq!(images(&again, &push), digests);
    let (first, second) = (contents(&out), contents(&again));
    assert_eq!(first.keys().collect::<Vec<_>>(), second.keys().collect::<Vec<_>>());
    for (path, content) in &first {
        // Not shown when it differs: programs.
        assert!(second.get(path) == Some(content), "{} is another one the second time", path.display());
    }
    for (name, digest) in IMAGES.iter().zip(&digests) {
        let manifest = registry.get(&format!("platform/{name}/manifests/0.1.0")).await.unwrap();
        assert_eq!(manifest.error_for_status().unwrap().headers()["docker-content-digest"], digest.as_str());
        let document = |kind: &str| -> Value {
            serde_json::from_slice(&fs::read(out.join(format!("{name}.{kind}.json"))).unwrap()).unwrap()
        };
        let bom = document("cdx");
        let parts = bom["components"].as_array().unwrap().iter().map(|part| part["name"].as_str().unwrap());
        let parts: Vec<&str> = parts.collect();
        assert!(parts.contains(&"rustls") && !parts.contains(&"clap_derive"), "{parts:?}");
        assert_provenance(&document("provenance"), name, digest);
    }
    let unpacked = IMAGES.map(|name| {
        let image = Image::unpack(&out.join(name), &folder.join("roots").join(name)).unwrap();
        assert_eq!((image.user.as_str(), image.entrypoint.len()), ("65532:65532", 1));
        let seen = fs::read_dir(&image.root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut seen: Vec<String> = seen.collect();
        seen.sort();
        assert_eq!(seen, [name, "etc"], "nothing else is in the image");
        let authorities = fs::read_to_string(image.root.join("etc/ssl/certs/ca-certificates.crt")).unwrap();
        let authorities = reqwest::Certificate::from_pem_bundle(authorities.as_bytes()).unwrap();
        assert!(authorities.len() > 50, "{} certificate authorities", authorities.len());
        let label = |key: &str| image.labels.get(&format!("org.opencontainers.image.{key}")).map(String::as_str);
        assert_eq!(
            (label("title"), label("version"), label("licenses")),
            (Some(name), Some("0.1.0"), Some("Apache-2.0"))
        );
        assert_eq!(label("revision").map(str::to_owned), revision());
        let program = fs::read(image.root.join(name)).unwrap();
        for place in [page::tree().to_str().unwrap(), "/.cargo/registry"] {
            let found = program.windows(place.len()).any(|part| part == place.as_bytes());
            assert!(!found, "{name} holds {place}, so a build in another place makes another image");
        }
        assert_audited(name, &image.root.join(name));
        (name, image)
    });
    unpacked.into_iter().collect()
}

/// The commit of this tree, as images name it.
fn revision() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(page::tree()).args(arguments).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "HEAD"]) else { return Some("unknown".to_owned()) };
    let clean = git(&["status", "--porcelain", "--untracked-files=no"]).is_none_or(|changes| changes.is_empty());
    Some(if clean { commit } else { format!("{commit}-dirty") })
}

/// What a verifier asks (slsa.dev/spec/v1.0/verifying-artifacts): which image, built by what, from which commit and
/// dependencies.
fn assert_provenance(statement: &Value, name: &str, digest: &str) {
    let subject = &statement["subject"][0];
    assert_eq!(subject["name"], name);
    assert_eq!(format!("sha256:{}", subject["digest"]["sha256"].as_str().unwrap()), digest);
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
    let built = &statement["predicate"]["buildDefinition"];
    assert!(built["internalParameters"]["compiler"].as_str().unwrap().starts_with("rustc "), "{built}");
    let from = built["resolvedDependencies"].as_array().unwrap();
    let locked = page::tree().join("Cargo.lock");
    let locked = bascule_image::Sha256::of(&fs::read(locked).unwrap()).to_string();
    assert!(from.iter().any(|one| one["uri"] == "Cargo.lock" && one["digest"]["sha256"] == locked.as_str()));
    if let Some(commit) = revision().filter(|commit| commit != "unknown") {
        assert!(
            from.iter().any(|one| one["digest"]["gitCommit"] == commit.as_str()),
            "{commit} is in none of {from:?}"
        );
    }
    assert!(from.iter().any(|one| one["uri"].as_str().unwrap().starts_with("pkg:cargo/rustls@")));
}

/// The program carries the list of what it was built from, where scanners look for it.
fn assert_audited(name: &str, program: &Path) {
    let list = program.with_extension("list");
    let dump = format!("--dump-section=.dep-v0={}", list.display());
    let dumped = Command::new("objcopy").arg(dump).arg(program).arg("/dev/null").status().unwrap();
    assert!(dumped.success());
    let mut text = String::new();
    let packed = fs::read(&list).unwrap();
    std::io::Read::read_to_string(&mut flate2::read::ZlibDecoder::new(packed.as_slice()), &mut text).unwrap();
    fs::remove_file(list).unwrap();
    let list: auditable_serde::VersionInfo = serde_json::from_str(&text).unwrap();
    let root = list.packages.iter().find(|package| package.root).unwrap();
    assert_eq!(root.name, name);
    assert!(list.packages.iter().any(|package| package.name == "tokio" && package.version.major == 1));
}

/// The machine below the pods: containers from the images, mounts from a folder that plays the host's root.
struct Machinery {
    images: BTreeMap<&'static str, Image>,
    host: PathBuf,
    folder: PathBuf,
    server: String,
    authority: String,
    /// Of the kubelet.
    client: Client,
    running: Mutex<BTreeMap<String, Started>>,
}

struct Started {
    name: String,
    log: PathBuf,
    listen: String,
    process: Supervised,
}

#[async_trait]
impl Runtime for Machinery {
    fn runs(&self, pod: &Pod) -> bool {
        pod.name_any().starts_with("bascule-")
    }

    async fn start(&self, pod: &Pod, token: &str) -> Result<(), String> {
        let name = pod.name_any();
        let image = self.images.iter().find(|(image, _)| name.starts_with(**image)).ok_or("no such image")?.1;
        // Each container has a root of its own.
        let root = self.folder.join(&name);
        copy_folder(&image.root, &root).map_err(|error| error.to_string())?;
        let image = Image { root, ..image.clone() };
        let node = Node {
            root: self.host.clone(),
            volumes: self.folder.join("volumes"),
            server: self.server.clone(),
            authority: self.authority.clone(),
            token: token.to_owned(),
            config_maps: self.config_maps(pod).await.map_err(|error| error.to_string())?,
        };
        let mut container = Container::of_pod(pod, &image, &node).map_err(|error| error.to_string())?;
        // The machine's network is everybody's here, and the port of the operator's manifest may be taken. The agent has
        // none, and refuses a setting that it does not know.
        let listen = format!("[::1]:{}", free_port().map_err(|error| error.to_string())?);
        if name.starts_with("bascule-operator") {
            container.environment.push(("BASCULE_LISTEN".to_owned(), listen.clone()));
        }
        let command_line = self.host.join(COMMAND_LINE);
        if command_line.exists() {
            let target = PathBuf::from("/proc/cmdline");
            container.mounts.push(Mount { source: command_line, target, read_only: true });
        }
        let log = self.folder.join(format!("{name}.log"));
        let runtime = [OsStr::new(env!("CARGO_BIN_EXE_xtask")), OsStr::new("container")];
        let process = container.start(&runtime, &log).map_err(|error| error.to_string())?;
        let started = Started { name, log, listen, process };
        self.running.lock().unwrap().insert(pod.uid().unwrap_or_default(), started);
        Ok(())
    }

    async fn stop(&self, pod: &Pod) {
        self.running.lock().unwrap().remove(&pod.uid().unwrap_or_default());
    }

    async fn power_off(&self, _node: &str) {
        self.running.lock().unwrap().clear();
    }
}

impl Machinery {
    /// That of a machine whose root is `host`. `client` is its kubelet.
    fn new(
        control_plane: &ControlPlane,
        images: &BTreeMap<&'static str, Image>,
        host: PathBuf,
        folder: PathBuf,
        client: Client,
    ) -> Arc<Self> {
        fs::create_dir_all(&folder).unwrap();
        Arc::new(Self {
            images: images.clone(),
            host,
            folder,
            server: control_plane.server().to_owned(),
            authority: control_plane.authority_certificate().to_owned(),
            client,
            running: Mutex::default(),
        })
    }

    /// What the pod mounts of its namespace, read with the kubelet's rights.
    async fn config_maps(&self, pod: &Pod) -> kube::Result<BTreeMap<String, BTreeMap<String, String>>> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let mut found = BTreeMap::new();
        for map in volumes.filter_map(|volume| volume.config_map.as_ref()) {
            found.insert(map.name.clone(), maps.get(&map.name).await?.data.unwrap_or_default());
        }
        Ok(found)
    }

    fn logs(&self) -> String {
        let running = self.running.lock().unwrap();
        let logs = running.values().map(|one| format!("== {}\n{}", one.name, fs::read_to_string(&one.log).unwrap()));
        logs.collect::<Vec<_>>().join("\n")
    }

    fn listens(&self, prefix: &str) -> Vec<String> {
        let running = self.running.lock().unwrap();
        running.values().filter(|one| one.name.starts_with(prefix)).map(|one| one.listen.clone()).collect()
    }

    /// Waits until both replicas are ready, over IPv6.
    async fn until_ready(&self) {
        let plain = reqwest::Client::builder().no_proxy().build().unwrap();
        let both = async {
            loop {
                let mut ready = 0;
                for listen in self.listens("bascule-operator") {
                    let answer = plain.get(format!("http://{listen}/readyz")).send().await;
                    ready += usize::from(answer.is_ok_and(|answer| answer.status().is_success()));
                }
                if ready == 2 {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        if timeout(PATIENCE, both).await.is_err() {
            panic!("two replicas never were ready\n{}", self.logs());
        }
    }

    async fn until<K>(&self, api: Api<K>, name: &str, holds: impl Fn(&K) -> bool + Send)
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + 'static,
    {
        let condition = |object: Option<&K>| object.is_some_and(&holds);
        if timeout(PATIENCE, await_condition(api.clone(), name, condition)).await.is_err() {
            panic!("{name} never was as expected: {:?}\n{}", api.get_opt(name).await, self.logs());
        }
    }
}

/// What the agent's manifest mounts of a host: an empty disk, a boot partition with nothing on it, and a root of trust.
fn host(folder: &Path, trust_root: &str) -> PathBuf {
    let root = folder.join("host");
    for place in
        ["dev", "efi/EFI", "sys/firmware/efi/efivars", "usr/lib/bascule", "run/dbus", "run/systemd", "etc/bascule"]
    {
        fs::create_dir_all(root.join(place)).unwrap();
    }
    let text = "ID=acme-os\nIMAGE_ID=acme-os\nIMAGE_VERSION=1.0\nVERSION_ID=1.0\n";
    fs::write(root.join("usr/lib/os-release"), text).unwrap();
    fs::File::create(root.join("dev/disk.img")).unwrap().set_len(64 << 20).unwrap();
    fs::write(root.join("etc/bascule/agent.toml"), "[slots]\ndisk = \"/dev/disk.img\"\n").unwrap();
    fs::write(root.join("usr/lib/bascule/root.json"), trust_root).unwrap();
    root
}

/// Where a host of [`whole_host`] keeps what its kernel was started with.
const COMMAND_LINE: &str = "cmdline";
/// LoaderFeatures (systemd, "The Boot Loader Interface"), of a boot loader that counts boots, with an EFI variable's attributes before it.
const LOADER_FEATURES: &str = "LoaderFeatures-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
const COUNTS_BOOTS: [u8; 12] = [6, 0, 0, 0, 1 << 4, 0, 0, 0, 0, 0, 0, 0];

/// The same with all that an agent wants to see: it runs release 1.0 from slot A.
fn whole_host(folder: &Path, trust_root: &str) -> PathBuf {
    let root = host(folder, trust_root);
    let release = TinyRelease::new("acme-os", "1.0", 12 * 4096, &[]).unwrap();
    let sizes = Sizes::tiny();
    let disk = Disk::create_file(&root.join("dev/disk.img"), sizes.disk()).unwrap();
    release.provision(&disk, sizes, BootLoader::SystemdBoot, Uuid::new_v4()).unwrap();
    let entries = root.join("efi/EFI/Linux");
    fs::create_dir_all(&entries).unwrap();
    fs::write(entries.join(release.entry()), &release.uki).unwrap();
    fs::write(root.join("sys/firmware/efi/efivars").join(LOADER_FEATURES), COUNTS_BOOTS).unwrap();
    fs::write(root.join(COMMAND_LINE), format!("roothash={} ro\n", release.root_hash)).unwrap();
    root
}

/// A system bus with a logind that nobody asked to hold anything back.
struct Bus {
    _daemon: Supervised,
    /// Held: the service ends with it.
    _logind: zbus::Connection,
}

struct Logind;

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Logind {
    async fn list_inhibitors(&self) -> Vec<(String, String, String, String, u32, u32)> {
        Vec::new()
    }
}

impl Bus {
    /// Where a host has it.
    async fn start(host: &Path) -> Self {
        let address = format!("unix:path={}", host.join("run/dbus/system_bus_socket").display());
        let config = host.join("bus.conf");
        let text = format!(
            "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
             \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n<busconfig><type>custom</type>\
             <listen>{address}</listen><auth>EXTERNAL</auth><policy context=\"default\"><allow send_destination=\"*\" \
             eavesdrop=\"true\"/><allow own=\"*\"/><allow eavesdrop=\"true\"/></policy></busconfig>\n"
        );
        fs::write(&config, text).unwrap();
        let config = format!("--config-file={}", config.display());
        let arguments = [config.as_str(), "--nofork", "--nopidfile"];
        let daemon = Supervised::start(Path::new("dbus-daemon"), arguments, &[], &host.join("bus.log")).unwrap();
        let serving = async {
            loop {
                let builder = zbus::connection::Builder::address(address.as_str()).name("org.freedesktop.login1");
                match builder.serve_at("/org/freedesktop/login1", Logind).build().await {
                    Ok(connection) => return connection,
                    // It does not listen yet.
                    Err(_) => sleep(Duration::from_millis(100)).await,
                }
            }
        };
        let served = timeout(PATIENCE, serving).await;
        let logind = served.unwrap_or_else(|_| panic!("no bus: {}", daemon.log_tail(20)));
        Self { _daemon: daemon, _logind: logind }
    }
}

/// Nodes whose agent has to do without something, and what it says of that: its kind, the cause, and what mends it.
const WITHOUT: [(&str, NodeError, [&str; 2]); 4] = [
    ("no-disk", NodeError::Storage, ["the disk /dev/disk.img can't be opened", "slots.disk"]),
    ("no-esp", NodeError::Storage, ["no boot partition is mounted at /efi", "boot.partition"]),
    ("no-bus", NodeError::SystemBus, ["logind can't be reached on the system bus", "/run/dbus"]),
    ("no-root", NodeError::Settings, ["the trust root /usr/lib/bascule/root.json can't be read", "in the OS image"]),
];

/// None of them ends before it could say so, and what nobody asks for before a release is to be staged is said at the start, too.
async fn agents_that_miss_something_say_so(
    control_plane: &ControlPlane,
    images: &BTreeMap<&'static str, Image>,
    folder: &Path,
    trust_root: &str,
) {
    let client = control_plane.client().await.unwrap();
    // The containers' kernel is this machine's.
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
    let (mut kubelets, mut buses, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
    for (node, category, parts) in WITHOUT {
        let root = whole_host(&folder.join(node), trust_root);
        match node {
            "no-disk" => fs::remove_file(root.join("dev/disk.img")).unwrap(),
            "no-esp" => fs::remove_dir_all(root.join("efi/EFI")).unwrap(),
            "no-root" => fs::remove_file(root.join("usr/lib/bascule/root.json")).unwrap(),
            _ => {}
        }
        if node != "no-bus" {
            buses.push(Bus::start(&root).await);
        }
        let kubelet = control_plane.kubelet(node).unwrap().client().await.unwrap();
        let machinery = Machinery::new(control_plane, images, root, folder.join(node).join("pods"), kubelet.clone());
        let runtime = Arc::clone(&machinery) as Arc<dyn Runtime>;
        let machine = KubeletHost { boot_id: boot_id.clone(), ..KubeletHost::named(node, "a") };
        kubelets.push(Kubelet::start(kubelet, machine, Health::Good, runtime));
        nodes.push((node, category, parts, machinery));
    }
    for (node, category, parts, machinery) in &nodes {
        let says = |text: &str| parts.iter().all(|part| text.contains(*part));
        let told = |update: &NodeUpdate| {
            let Some(status) = &update.status else { return false };
            let error = status.last_error.as_ref();
            let condition = conditions::get(&status.conditions, conditions::AGENT_HEALTHY);
            // Who can't look at the machine, or must not, is not asked to stage anything.
            let explained = *category != NodeError::SystemBus
                || status
                    .rollout
                    .as_ref()
                    .is_some_and(|rollout| rollout.reason == WaitReason::StagingFailed && says(&rollout.message));
            error.is_some_and(|error| error.category == *category && says(&error.message))
                && condition.is_some_and(|one| one.status == "False" && says(&one.message))
                && explained
        };
        machinery.until(Api::<NodeUpdate>::all(client.clone()), node, told).await;
    }
    for (node, _, _, machinery) in &nodes {
        let log = machinery.logs();
        let warned = |so: &str, of: &str| log.lines().any(|line| line.contains(so) && line.contains(of));
        let missing = (
            warned("no release can be staged here", "there is no system bus at /run/dbus/"),
            warned("the agent only reports", "the trust root /usr/lib/bascule/root.json"),
        );
        assert_eq!(missing, (*node == "no-bus", *node == "no-root"), "{node}: {log}");
        let mut running = machinery.running.lock().unwrap();
        assert_eq!(running.len(), 1, "{node}");
        for one in running.values_mut() {
            assert_eq!(one.process.ended().unwrap(), None, "{node} ended: {}", one.process.log_tail(20));
        }
    }
}

#[test]
fn half_a_user_is_refused_before_anything_is_built() {
    let folder = tempfile::tempdir().unwrap();
    for (set, missing) in [("REGISTRY_USER", "REGISTRY_PASSWORD"), ("REGISTRY_PASSWORD", "REGISTRY_USER")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.env(set, "x").env_remove(missing).args(["images", "--push", "registry.example.com", "--out"]);
        let refused = command.arg(folder.path().join("images")).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(&format!("{set} is set and {missing} is not")), "{said}");
        assert!(!folder.path().join("images").exists());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_shipped_starts_as_its_manifests_say() {
    bascule_tests::install_tls_provider();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // Containers of other users walk through it.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let images = built_twice(folder).await;

    // The page, in other namespaces than its own, with an authority for the repository, in a cluster of IPv6 alone.
    let there = Ipv6Addr::LOCALHOST;
    let control_plane = ControlPlane::start(Options { address: there.into(), ..Options::default() }).await.unwrap();
    let (vendor, server) = bascule::repository_at((there, 0).into()).await;
    let overlay = folder.join("overlay");
    let page = Page::read().with(&[("bascule-system", "updates")]);
    let trust_root = String::from_utf8(vendor.trust_root()).unwrap();
    page.lay_out(&overlay, &page::tree().join("manifests"), &trust_root);
    page::in_namespaces(&overlay, "updates", "hosts");
    page.add_authority(&overlay, server.ca_pem());
    control_plane.apply_kustomization(&overlay).await.unwrap();

    let client = control_plane.client().await.unwrap();
    let kubelet = control_plane.kubelet("n1").unwrap().client().await.unwrap();
    let machinery =
        Machinery::new(&control_plane, &images, host(folder, &trust_root), folder.join("pods"), kubelet.clone());
    let runtime = Arc::clone(&machinery) as Arc<dyn Runtime>;
    let _kubelet = Kubelet::start(kubelet, KubeletHost::named("n1", "a"), Health::Good, runtime);

    // A policy: the operator reads the repository, by the authority beside those in its image, and enrols the node.
    let policy: UpdatePolicy = serde_json::from_value(json!({
        "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy", "metadata": {"name": "workers"},
        "spec": {
            "nodeSelector": {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "Exists"}]},
            "source": {"repository": server.url(), "channel": "stable"},
            "staging": {"maxConcurrent": 10},
            "provenAfter": "0s",
        },
    }))
    .unwrap();
    let policies: Api<UpdatePolicy> = Api::all(client.clone());
    policies.create(&PostParams::default(), &policy).await.unwrap();
    machinery
        .until(policies, "workers", |policy| {
            let target = policy.status.as_ref().and_then(|status| status.target.as_ref());
            target.is_some_and(|target| target.version.as_str() == "1.1")
        })
        .await;
    // The agent, with the token of its pod, about its own node: that this machine is none for it.
    machinery
        .until(Api::<NodeUpdate>::all(client.clone()), "n1", |update| {
            let status = update.status.as_ref();
            status.is_some_and(|status| status.agent_version.is_some() && status.last_error.is_some())
        })
        .await;
    machinery.until_ready().await;
    agents_that_miss_something_say_so(&control_plane, &images, folder, &trust_root).await;

    // Nothing was refused by Pod Security, and nobody died.
    let events = Api::<Event>::all(client).list(&ListParams::default()).await.unwrap();
    let said = |event: &&Event| event.message.as_deref().is_some_and(|said| said.contains("PodSecurity"));
    let refused: Vec<_> = events.iter().filter(said).collect();
    assert!(refused.is_empty(), "{refused:?}");
    let mut running = machinery.running.lock().unwrap();
    assert_eq!(running.len(), 3);
    for one in running.values_mut() {
        assert_eq!(one.process.ended().unwrap(), None, "{} ended: {}", one.name, one.process.log_tail(20));
    }
}
