//! Agents that have to do without something that they need: what each says of it, from the root that is shipped.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bascule_api::{NodeError, NodeUpdate, WaitReason, conditions};
use bascule_tests::container::Image;
use bascule_tests::control_plane::ControlPlane;
use bascule_tests::kubelet::{Health, Kubelet, Machine, Runtime};
use bascule_tests::supervise::Supervised;
use kube::Api;
use tokio::time::{sleep, timeout};

use super::{Machinery, NO_AUTHORITIES, PATIENCE, whole_host};

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
const WITHOUT: [(&str, NodeError, [&str; 2]); 5] = [
    ("no-disk", NodeError::Storage, ["the disk /dev/disk.img can't be opened", "slots.disk"]),
    ("no-esp", NodeError::Storage, ["no boot partition is mounted at /efi", "boot.partition"]),
    ("no-bus", NodeError::SystemBus, ["logind can't be reached on the system bus", "/run/dbus"]),
    // Whoever asks no server for anything needs none.
    (
        "no-authorities",
        NodeError::Network,
        ["no certificate authorities are known here", "mount a bundle at /etc/ssl/certs"],
    ),
    ("no-root", NodeError::Settings, ["the trust root /usr/lib/bascule/root.json can't be read", "in the OS image"]),
];

/// None of them ends before it could say so, and what nobody asks for before a release is to be staged is said at the start, too.
pub(super) async fn agents_that_miss_something_say_so(
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
            "no-authorities" => fs::write(root.join(NO_AUTHORITIES), "").unwrap(),
            "no-root" => fs::remove_file(root.join("usr/lib/bascule/root.json")).unwrap(),
            _ => {}
        }
        if node != "no-bus" {
            buses.push(Bus::start(&root).await);
        }
        let kubelet = control_plane.kubelet(node).unwrap().client().await.unwrap();
        let machinery = Machinery::new(control_plane, images, root, folder.join(node).join("pods"), kubelet.clone());
        let runtime = Arc::clone(&machinery) as Arc<dyn Runtime>;
        let machine = Machine { boot_id: boot_id.clone(), ..Machine::named(node, "a") };
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
