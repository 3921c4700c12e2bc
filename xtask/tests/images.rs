//! What is shipped, started as it is installed: the images that `cargo xtask images` builds, with the mounts, users,
//! environment and arguments of `manifests/`, as pods of a real API server that enforces Pod Security.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are not `#[test]` functions themselves")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bascule_api::{NodeUpdate, UpdatePolicy};
use bascule_tests::bascule;
use bascule_tests::container::{Container, Image, Node};
use bascule_tests::control_plane::{ControlPlane, Options, free_port};
use bascule_tests::files::copy_folder;
use bascule_tests::kubelet::{Health, Kubelet, Machine, Runtime};
use bascule_tests::supervise::Supervised;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{ListParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const PATIENCE: Duration = Duration::from_secs(90);

/// Builds the images into a folder, with more arguments; gives the lines that tell their digests.
fn images(out: &Path, more: &[&OsStr]) -> Vec<String> {
    let built =
        Command::new(env!("CARGO_BIN_EXE_xtask")).args(["images", "--out"]).arg(out).args(more).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    String::from_utf8(built.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Debian's registry, with TLS on loopback.
struct Registry {
    address: String,
    ca: PathBuf,
    _process: Supervised,
}

impl Registry {
    async fn start(folder: &Path) -> Self {
        let signed = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let (ca, key) = (folder.join("registry.pem"), folder.join("registry.key"));
        fs::write(&ca, signed.cert.pem()).unwrap();
        fs::write(&key, signed.signing_key.serialize_pem()).unwrap();
        let address = format!("127.0.0.1:{}", free_port().unwrap());
        let settings = json!({
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": folder.join("registry")}},
            "http": {"addr": address, "tls": {"certificate": ca, "key": key}},
        });
        let file = folder.join("registry.yml");
        fs::write(&file, settings.to_string()).unwrap();
        let arguments = [OsStr::new("serve"), file.as_os_str()];
        let log = folder.join("registry.log");
        let process = Supervised::start(Path::new("/usr/bin/docker-registry"), arguments, &[], &log).unwrap();
        let registry = Self { address, ca, _process: process };
        timeout(PATIENCE, async {
            while registry.get("").await.is_err() {
                sleep(Duration::from_millis(50)).await;
            }
        })
        .await
        .unwrap();
        registry
    }

    async fn get(&self, path: &str) -> reqwest::Result<reqwest::Response> {
        let ca = reqwest::Certificate::from_pem(&fs::read(&self.ca).unwrap()).unwrap();
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([ca]).build()?;
        let request = client.get(format!("https://{}/v2/{path}", self.address));
        request.header("accept", "application/vnd.oci.image.manifest.v1+json").send().await
    }
}

/// The machine below the pods: containers from the images, mounts from a folder that plays the host's root.
struct Machinery {
    images: BTreeMap<&'static str, Image>,
    host: PathBuf,
    folder: PathBuf,
    server: String,
    authority: String,
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
        };
        let mut container = Container::of_pod(pod, &image, &node).map_err(|error| error.to_string())?;
        // The machine's network is everybody's here, and the port of the manifest may be taken.
        let listen = format!("[::1]:{}", free_port().map_err(|error| error.to_string())?);
        container.environment.push(("BASCULE_LISTEN".to_owned(), listen.clone()));
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
    fn logs(&self) -> String {
        let running = self.running.lock().unwrap();
        let logs = running.values().map(|one| format!("== {}\n{}", one.name, fs::read_to_string(&one.log).unwrap()));
        logs.collect::<Vec<_>>().join("\n")
    }

    fn listens(&self, prefix: &str) -> Vec<String> {
        let running = self.running.lock().unwrap();
        running.values().filter(|one| one.name.starts_with(prefix)).map(|one| one.listen.clone()).collect()
    }
}

/// What the agent's manifest mounts of a host: an empty disk and a boot partition with nothing on it.
fn host(folder: &Path) -> PathBuf {
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
    root
}

/// The overlay of docs/install.md in another namespace than the one it shows.
fn overlay(folder: &Path, trust_root: &str) -> PathBuf {
    let page = fs::read_to_string(format!("{ROOT}/docs/install.md")).unwrap();
    let block = |name: &str| {
        let marked = page.split(&format!("<!-- {name}: begin")).nth(1).and_then(|rest| rest.split("```").nth(1));
        marked.and_then(|block| block.strip_prefix("yaml\n")).unwrap().replace("bascule-system", "updates")
    };
    let overlay = folder.join("overlay");
    copy_folder(&Path::new(ROOT).join("manifests"), &overlay.join("manifests")).unwrap();
    for (part, before, after) in [("operator", "bascule-system", "updates"), ("agent", "bascule-agents", "hosts")] {
        let file = overlay.join(format!("manifests/{part}/kustomization.yaml"));
        let text = fs::read_to_string(&file).unwrap();
        fs::write(file, text.replace(&format!("namespace: {before}"), &format!("namespace: {after}"))).unwrap();
    }
    fs::write(overlay.join("kustomization.yaml"), block("overlay")).unwrap();
    fs::write(overlay.join("on-call.yaml"), block("on-call")).unwrap();
    fs::write(overlay.join("root.json"), trust_root).unwrap();
    overlay
}

async fn until<K>(api: Api<K>, name: &str, machinery: &Machinery, holds: impl Fn(&K) -> bool + Send)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + 'static,
{
    let condition = |object: Option<&K>| object.is_some_and(&holds);
    if timeout(PATIENCE, await_condition(api.clone(), name, condition)).await.is_err() {
        panic!("{name} never was as expected: {:?}\n{}", api.get_opt(name).await, machinery.logs());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_shipped_starts_as_its_manifests_say() {
    bascule_tests::install_tls_provider();
    let folder = tempfile::tempdir().unwrap();
    // Containers of other users walk through it.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let out = folder.path().join("images");
    let first = images(&out, &[]);
    assert_eq!(first.len(), 2, "{first:?}");

    // Again, and into a registry: nothing depends on when or how often it is built.
    let registry = Registry::start(folder.path()).await;
    let place = format!("{}/platform", registry.address);
    let push = [
        "--push".as_ref(),
        place.as_ref(),
        "--ca".as_ref(),
        registry.ca.as_os_str(),
        "--tag".as_ref(),
        "0.1.0".as_ref(),
    ];
    let again = images(&out, &push);
    let digests = |lines: &[String]| -> Vec<String> {
        lines
            .iter()
            .filter(|line| !line.starts_with("pushed"))
            .map(|line| line.split(' ').nth(1).unwrap().to_owned())
            .collect()
    };
    assert_eq!(digests(&first), digests(&again));
    for (name, digest) in ["bascule-operator", "bascule-agent"].iter().zip(digests(&first)) {
        let answer =
            registry.get(&format!("platform/{name}/manifests/0.1.0")).await.unwrap().error_for_status().unwrap();
        assert_eq!(answer.headers()["docker-content-digest"], digest.as_str());
        let bom: Value = serde_json::from_slice(&fs::read(out.join(format!("{name}.cdx.json"))).unwrap()).unwrap();
        let parts: Vec<&str> =
            bom["components"].as_array().unwrap().iter().map(|part| part["name"].as_str().unwrap()).collect();
        assert!(parts.contains(&"rustls") && !parts.contains(&"clap_derive"), "{parts:?}");
        let built: Value =
            serde_json::from_slice(&fs::read(out.join(format!("{name}.provenance.json"))).unwrap()).unwrap();
        assert_eq!(format!("sha256:{}", built["subject"][0]["digest"]["sha256"].as_str().unwrap()), digest);
    }

    let unpack = |name: &'static str| {
        let image = Image::unpack(&out.join(name), &folder.path().join("roots").join(name)).unwrap();
        assert_eq!((image.user.as_str(), image.entrypoint.len()), ("65532:65532", 1));
        let mut seen: Vec<String> = Vec::new();
        for entry in fs::read_dir(&image.root).unwrap() {
            seen.push(entry.unwrap().file_name().into_string().unwrap());
        }
        seen.sort();
        assert_eq!(seen, [name, "etc"], "nothing else is in the image");
        assert_audited(name, &image.root.join(name));
        (name, image)
    };
    let unpacked = [unpack("bascule-operator"), unpack("bascule-agent")];

    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    let (vendor, server) = bascule::repository().await;
    let trust_root = String::from_utf8(vendor.trust_root()).unwrap();
    control_plane.apply_kustomization(&overlay(folder.path(), &trust_root)).await.unwrap();
    let client = control_plane.client().await.unwrap();

    let machinery = Arc::new(Machinery {
        images: unpacked.into_iter().collect(),
        host: host(folder.path()),
        folder: folder.path().join("pods"),
        server: control_plane.server().to_owned(),
        authority: control_plane.authority_certificate().to_owned(),
        running: Mutex::default(),
    });
    fs::create_dir_all(&machinery.folder).unwrap();
    let kubelet = control_plane.kubelet("n1").unwrap().client().await.unwrap();
    let runtime = Arc::clone(&machinery) as Arc<dyn Runtime>;
    let _kubelet = Kubelet::start(kubelet, Machine::named("n1", "a"), Health::Good, runtime);

    // A policy: the operator enrols the node, and the authorities in its image are what it judges the server by.
    let policy: UpdatePolicy = serde_json::from_value(json!({
        "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy", "metadata": {"name": "workers"},
        "spec": {
            "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "n1"}},
            "source": {"repository": server.url(), "channel": "stable"},
        },
    }))
    .unwrap();
    let policies: Api<UpdatePolicy> = Api::all(client.clone());
    policies.create(&PostParams::default(), &policy).await.unwrap();
    until(policies, "workers", &machinery, |policy| {
        let status = serde_json::to_string(&policy.status).unwrap();
        status.contains("is not trusted; if it is your own authority's, add that as an extra CA")
    })
    .await;
    // The agent, with the token of its pod, about its own node: that this machine is none for it.
    until(Api::<NodeUpdate>::all(client.clone()), "n1", &machinery, |update| {
        let status = update.status.as_ref();
        let told =
            |status: &bascule_api::NodeUpdateStatus| status.conditions.iter().any(|one| one.type_ == "AgentHealthy");
        status.is_some_and(|status| status.agent_version.is_some() && told(status))
    })
    .await;

    // Both replicas on the only node, ready over IPv6.
    let plain = reqwest::Client::builder().no_proxy().build().unwrap();
    timeout(PATIENCE, async {
        loop {
            let mut ready = 0;
            for listen in machinery.listens("bascule-operator") {
                let answer = plain.get(format!("http://{listen}/readyz")).send().await;
                ready += usize::from(answer.is_ok_and(|answer| answer.status().is_success()));
            }
            if ready == 2 {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("two replicas never were ready\n{}", machinery.logs()));

    // Nothing was refused by Pod Security, and nobody died.
    let events = Api::<Event>::all(client).list(&ListParams::default()).await.unwrap();
    let said = |event: &&Event| event.message.as_deref().is_some_and(|said| said.contains("PodSecurity"));
    let refused: Vec<_> = events.iter().filter(said).collect();
    assert!(refused.is_empty(), "{refused:?}");
    let mut running = machinery.running.lock().unwrap();
    for one in running.values_mut() {
        assert_eq!(one.process.ended().unwrap(), None, "{} ended: {}", one.name, one.process.log_tail(20));
    }
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
