//! A machine as a process, seen through its socket, as the sandbox sees it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bascule_agent::host::SystemBus as _;
use bascule_sim::disk::Disk;
use bascule_sim::firmware::BootLoader;
use bascule_sim::firmware::boot_image::Fault;
use bascule_sim::host::child::MachineBus;
use bascule_sim::layout::{Sizes, Slot};
use bascule_sim::machine::process::Files;
use bascule_sim::machine::socket::Client;
use bascule_sim::machine::{Command, MachineConfig, MachineView, Power};
use bascule_sim::tiny::TinyRelease;
use tokio::process::Child;

use crate::support::{IDENTITY, Writer, release};

/// Far longer than anything here takes on a busy computer.
const PATIENCE: Duration = Duration::from_secs(60);

struct Running {
    _directory: tempfile::TempDir,
    _process: Child,
    client: Client,
    files: Files,
}

/// Installs 1.0, lets `prepare` do something to the disk, and turns the machine on.
async fn turn_on(prepare: impl FnOnce(&Disk)) -> Running {
    let directory = tempfile::tempdir().unwrap();
    let first = release("1.0");
    let path = directory.path().join("disk.img");
    let disk = Disk::create_file(&path, Sizes::tiny().disk()).unwrap();
    first.provision(&disk, Sizes::tiny(), BootLoader::SystemdBoot, IDENTITY).unwrap();
    prepare(&disk);
    let config = MachineConfig {
        name: "n1".into(),
        disk: path,
        directory: directory.path().join("machine"),
        boot: BootLoader::SystemdBoot,
        firmware_ms: 1,
        startup_ms: 1,
        agent_settings: directory.path().join("agent.toml"),
        environment: [("RUST_LOG".to_owned(), "info".to_owned())].into(),
    };
    write_settings(&config.agent_settings);
    let file = directory.path().join("machine.json");
    std::fs::write(&file, serde_json::to_vec(&config).unwrap()).unwrap();
    let process = tokio::process::Command::new(env!("CARGO_BIN_EXE_bascule-sim-node"))
        .args(["machine".as_ref(), "--config".as_ref(), file.as_os_str()])
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let files = Files::of(&config.directory);
    let client = reach(&files.socket()).await;
    Running { _directory: directory, _process: process, client, files }
}

/// An API server that is not there: the agent goes on without it.
fn write_settings(path: &Path) {
    let folder = path.parent().unwrap();
    let text = format!(
        "[node]\nname = \"n1\"\n[server]\nlisten = \"off\"\n[kubernetes]\nkubeconfig = \"{}\"\n",
        folder.join("kubeconfig").display()
    );
    std::fs::write(path, text).unwrap();
}

/// The socket appears when the process has come so far; there is nothing to wait on before it exists.
async fn reach(socket: &Path) -> Client {
    let tries = async {
        loop {
            match Client::connect(socket).await {
                Ok(client) => return client,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, tries).await.unwrap()
}

fn up(view: &MachineView) -> bool {
    view.power == Power::Up
}

fn version(view: &MachineView) -> &str {
    view.system.as_ref().map_or("nothing", |system| &system.version)
}

fn arm(disk: &Disk, release: &TinyRelease) {
    let writer = Writer { disk, boot: BootLoader::SystemdBoot, mistake: None };
    writer.stage(Slot::B, release);
    writer.arm(Slot::B, release);
}

#[tokio::test]
async fn a_machine_starts_tells_and_obeys_its_switches() {
    let mut machine = turn_on(|_| {}).await;
    let first = machine.client.wait_for(PATIENCE, |view| up(view) && view.agent.is_some()).await.unwrap();
    assert_eq!((version(&first), first.starts), ("1.0", 1));
    assert_eq!(first.slots[0].label, "1.0");
    let boot_id = first.system.unwrap().boot_id;

    machine.client.send(Command::KillAgent).await.unwrap();
    let killed = machine.client.wait_for(PATIENCE, |view| view.agent.is_some() && view.agent != first.agent).await;
    assert_eq!(killed.unwrap().system.unwrap().boot_id, boot_id, "only the agent was started again");

    machine.client.send(Command::PowerCut).await.unwrap();
    let second = machine.client.wait_for(PATIENCE, |view| up(view) && view.starts == 2).await.unwrap();
    assert_ne!(second.system.unwrap().boot_id, boot_id);

    machine.client.send(Command::PowerOff).await.unwrap();
    machine.client.wait_for(PATIENCE, |view| view.power == Power::Off && view.agent.is_none()).await.unwrap();
    machine.client.send(Command::PowerOn).await.unwrap();
    machine.client.wait_for(PATIENCE, |view| up(view) && view.starts == 3).await.unwrap();
}

#[tokio::test]
async fn services_are_told_when_the_machine_goes_down_in_order_and_not_when_its_power_goes() {
    let mut machine = turn_on(|_| {}).await;
    let ends = |files: &Files| std::fs::read_to_string(files.log("agent")).unwrap().matches("the agent ends").count();
    let runs = |files: &Files| std::fs::read_to_string(files.log("agent")).unwrap().matches("the agent runs").count();
    for (switch, starts, told) in [(Command::Reboot, 2, 1), (Command::PowerCut, 3, 1), (Command::Reboot, 4, 2)] {
        machine.client.wait_for(PATIENCE, |view| up(view) && view.agent.is_some()).await.unwrap();
        // Before that it has no handler for the signal, as in the second after any start.
        let before = usize::try_from(starts - 1).unwrap();
        let running = async {
            while runs(&machine.files) < before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, running).await.unwrap();
        machine.client.send(switch).await.unwrap();
        machine.client.wait_for(PATIENCE, |view| up(view) && view.starts == starts).await.unwrap();
        assert_eq!(ends(&machine.files), told, "{switch:?}");
    }
}

#[tokio::test]
async fn what_holds_a_machine_back_and_what_fails_on_it_ends_with_its_boot() {
    let mut machine = turn_on(|_| {}).await;
    machine.client.wait_for(PATIENCE, up).await.unwrap();
    let bus = MachineBus::of(&machine.files);
    let units = ["containerd.service".to_owned()];
    let said = || {
        let states = bus.unit_states(&units).unwrap();
        let inhibitors = bus.inhibitors().unwrap();
        let blocks =
            inhibitors.iter().filter(|one| one.mode == "block" && one.what.split(':').any(|what| what == "shutdown"));
        (blocks.count(), states["containerd.service"].active.clone())
    };
    assert_eq!(said(), (0, "active".to_owned()));
    for (command, wanted) in [
        (Command::HoldBack, (1, "active")),
        (Command::FailUnits, (1, "failed")),
        (Command::LetGo, (0, "failed")),
        (Command::MendUnits, (0, "active")),
        (Command::HoldBack, (1, "active")),
        (Command::FailUnits, (1, "failed")),
    ] {
        machine.client.send(command).await.unwrap();
        let heard = async {
            while said() != (wanted.0, wanted.1.to_owned()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.unwrap_or_else(|_| panic!("{command:?}: {:?}", said()));
    }
    machine.client.send(Command::PowerCut).await.unwrap();
    machine.client.wait_for(PATIENCE, |view| up(view) && view.starts == 2).await.unwrap();
    assert_eq!(said(), (0, "active".to_owned()));
}

#[tokio::test]
async fn a_release_that_crashes_each_time_is_left_by_itself() {
    let broken = TinyRelease::new("acme-os", "1.1", 48 << 10, &[Fault::CrashLoop]).unwrap();
    let mut machine = turn_on(|disk| arm(disk, &broken)).await;
    let tried = machine.client.wait_for(PATIENCE, |view| up(view) && version(view) == "1.1").await.unwrap();
    assert!(tried.system.unwrap().trial);
    let back = machine.client.wait_for(PATIENCE, |view| up(view) && version(view) == "1.0").await.unwrap();
    assert_eq!(back.starts, 4, "{:?}", back.boot_log);
}

#[tokio::test]
async fn faults_of_the_kubelet_show_and_an_agent_that_hangs_is_never_started() {
    let faults = [Fault::NeverReady, Fault::HangBeforeAgent];
    let broken = TinyRelease::new("acme-os", "1.1", 48 << 10, &faults).unwrap();
    let mut machine = turn_on(|disk| arm(disk, &broken)).await;
    let view = machine.client.wait_for(PATIENCE, |view| up(view) && version(view) == "1.1").await.unwrap();
    let system = view.system.unwrap();
    assert!(system.kubelet_starts && !system.becomes_ready);
    assert_eq!(system.faults, faults);
    assert!(!machine.files.log("agent").exists(), "the agent's unit was never started");
}
