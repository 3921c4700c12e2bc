//! What the settings of a transfer say reaches every download of a stage. That a download then keeps to its bytes a second
//! is tested where it is made (`bascule-repository`, `remote`).

use std::sync::{Arc, Mutex, OnceLock};

use bascule_agent::agent::Agent;
use bascule_agent::core::{Config, Event};
use bascule_agent::engine::Engine;
use bascule_agent::host::TransferOptions;
use bascule_agent::observe::LookSettings;
use bascule_agent::settings::{Settings, Sources};
use bascule_api::Goal;
use bascule_sim::firmware::BootLoader;
use bascule_sim::host::{SimBus, SimReleases};

use crate::machine::{AgentHost, release};

/// Stages a release with these settings of `[transfer]`, and notes something at each of its downloads.
fn at_each_download<T: Send + 'static>(
    transfer: &str,
    note: impl Fn(&TransferOptions) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.toml");
    std::fs::write(&file, format!("[transfer]\n{transfer}\n")).unwrap();
    let settings = Settings::load(&Sources::usual(Some(file), Vec::new())).unwrap();
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let noted = Arc::new(Mutex::new(Vec::new()));
    let notes = noted.clone();
    let releases = SimReleases::of([&new]).noting(move |options| notes.lock().unwrap().push(note(options)));
    let mut machine = AgentHost::offered(BootLoader::SystemdBoot, &old, releases);
    let engine = Engine::new(machine.sim.host(), LookSettings::default(), settings.stage.clone());
    let mut agent = Agent::new(engine, Config::default());
    agent.handle(Event::Tick).unwrap();
    agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
    assert!(agent.published().unwrap().staged.is_some());
    std::mem::take(&mut *noted.lock().unwrap())
}

/// The pack and the boot image.
const DOWNLOADS: usize = 2;

#[test]
fn the_limit_on_bytes_a_second_reaches_pack_and_boot_image() {
    for (setting, expected) in [("bytes-per-second = 12345", Some(12_345)), ("bytes-per-second = 0", None)] {
        let seen = at_each_download(setting, |options| options.bytes_per_second.map(|limit| limit.get()));
        assert_eq!(seen, [expected; DOWNLOADS], "{setting}");
    }
}

/// For the disk, too: the kernel takes that priority from this one (ioprio_set(2)).
#[test]
fn pack_and_boot_image_are_brought_at_the_lowest_priority_unless_that_is_switched_off() {
    let nice = || rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
    let usual = nice();
    for (setting, expected) in [("low-priority = true", 19), ("low-priority = false", usual)] {
        assert_eq!(at_each_download(setting, move |_| nice()), [expected; DOWNLOADS], "{setting}");
    }
    assert_eq!(nice(), usual, "only the threads that stage are slowed down");
}

/// Whoever shuts the machine down need not wait for the network.
#[test]
fn shutdown_is_held_back_while_something_is_written_and_not_while_it_is_fetched() {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let bus = Arc::new(OnceLock::<Arc<SimBus>>::new());
    let held = Arc::new(Mutex::new(Vec::new()));
    let (asked, noted) = (bus.clone(), held.clone());
    let note = move |_: &TransferOptions| noted.lock().unwrap().push(asked.get().unwrap().held());
    let mut machine = AgentHost::offered(BootLoader::SystemdBoot, &old, SimReleases::of([&new]).noting(note));
    bus.set(machine.sim.bus.clone()).unwrap();
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
    assert!(agent.published().unwrap().staged.is_some());
    assert_eq!(*held.lock().unwrap(), [0; DOWNLOADS]);
    assert_eq!(machine.sim.bus.unguarded(), [""; 0], "what boots was written without");
}
