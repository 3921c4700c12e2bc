//! The agent beside its releases: what it says of itself and of its node, when it rests, and when it wakes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bascule_agent::boot::DigestCache;
use bascule_agent::core::{During, EffectKind, Event};
use bascule_agent::host::{Esp, EspFile, Host, Space};
use bascule_agent::observe::{LookSettings, observe};
use bascule_api::conditions;
use bascule_api::{Goal, NodeError, NodeUpdateStatus, SlotState};
use bascule_image::io::ReadAt;
use bascule_sim::disk::{Access, Cache, Effect, FaultRule};
use bascule_sim::firmware::BootLoader;
use bascule_sim::layout::ESP;

use crate::machine::{AgentHost, problem, release};

#[test]
fn staging_rests_under_pressure_and_goes_on_where_it_was() {
    use bascule_agent::core::{Config, State, step};
    use bascule_agent::engine::{Engine, StageLimits};
    use bascule_agent::host::{Pressure, Stall};
    use std::sync::Mutex;
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
    machine
        .sim
        .system
        .set_pressure(Some(Pressure { io: Stall { share: 95.0, ..Stall::default() }, ..Pressure::default() }));
    let mut engine = Engine::new(machine.sim.host(), Default::default(), StageLimits::default());
    let stop = engine.stop_handle();
    let now = machine.agent().now();
    let mut state = State::new(Config::default());
    let mut events = std::collections::VecDeque::from([Event::Tick, machine.word(Goal::Staged, &new, None)]);
    let mut rests = Vec::new();
    while let Some(event) = events.pop_front() {
        let (next, effects) = step(state, event, now);
        state = next;
        if effects.iter().all(|effect| effect.name() == "publish") {
            continue;
        }
        let told = Mutex::new(Vec::new());
        engine.perform(&effects, &|event| {
            if matches!(&event, Event::Transfer(transfer) if transfer.paused.is_some()) {
                // Whoever stops a transfer need not wait for the end of its rest.
                stop.stop();
            }
            told.lock().unwrap().push(event);
        });
        for event in told.into_inner().unwrap() {
            if let Event::Transfer(transfer) = &event {
                rests.extend(transfer.paused.clone());
            }
            if matches!(&event, Event::Failed(failure) if failure.cancelled) {
                machine.sim.system.set_pressure(None);
            }
            events.push_back(event);
        }
    }
    assert!(rests.first().is_some_and(|why| why == "disk pressure 95 %, limit 60 %"), "{rests:?}");
    let facts = state.facts.as_ref().unwrap();
    assert_eq!(state.ready(facts).map(|known| known.version.as_str()), Some("1.1"), "{:?}", state.problem);
}

#[test]
fn a_write_below_the_running_system_is_noticed() {
    use bascule_sim::layout::{Slot, Table};
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Idle, &new, None)).unwrap();
    let week = Duration::from_secs(7 * 24 * 3600);
    machine.clock.pass(week);
    agent.handle(Event::Tick).unwrap();
    assert!(!conditions::is_true(&agent.published().unwrap().conditions, conditions::DRIFT));
    let part = Table::read(&machine.hardware.disk).unwrap().part(Slot::A.data()).unwrap();
    part.write_all(5 * 4096, b"somebody was here").unwrap();
    part.flush().unwrap();
    machine.clock.pass(week);
    agent.handle(Event::Tick).unwrap();
    let status = agent.published().unwrap();
    assert!(conditions::is_true(&status.conditions, conditions::DRIFT), "{status:?}");
    assert_eq!(status.slots.as_ref().unwrap().a.state, SlotState::Damaged);
    assert_eq!(status.last_error, None, "it is an observation, not a failure of the agent");
}

#[test]
fn trouble_that_passes_is_forgotten_and_the_agent_rests() {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
    machine.hardware.disk.inject(FaultRule::always(Access::Read, Some(Cache::WHOLE), Effect::Eio));
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Idle, &new, None)).unwrap();
    let trouble = agent.state().problem.clone().unwrap();
    assert_eq!((trouble.category, trouble.during), (NodeError::Storage, During::Effect(EffectKind::Observe)));
    let rest = agent.state().rest(agent.now());
    assert!(rest >= Duration::from_secs(1), "it waits before it looks again: {rest:?}");
    machine.hardware.disk.clear_faults();
    machine.clock.pass(rest + Duration::from_secs(1));
    agent.handle(Event::Tick).unwrap();
    assert_eq!(agent.state().problem, None);
    let rest = agent.state().rest(agent.now());
    assert!(rest >= Duration::from_secs(30), "an idle agent does not wake up more often: {rest:?}");
    assert_eq!(agent.published().unwrap().last_error, None);
}

#[test]
fn an_agent_without_news_writes_nothing() {
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
    let mut agent = machine.agent();
    agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
    let before = agent.published().unwrap().clone();
    for _ in 0..20 {
        machine.clock.pass(Duration::from_secs(300));
        agent.handle(Event::Tick).unwrap();
    }
    assert_eq!(*agent.published().unwrap(), before);
    // Another process of the agent takes up where the first was: what is on the server is not written again.
    let mut agent = machine.agent();
    let word = machine.word(Goal::Staged, &new, None);
    let Event::Desired(Some(mut desired)) = word else { panic!() };
    desired.generation = before.observed_generation.unwrap();
    agent.handle(Event::Remembered(Box::new(before))).unwrap();
    agent.handle(Event::Desired(Some(desired))).unwrap();
    assert_eq!(agent.published(), None);
}

/// A look that is due soon is taken when the agent is awake for something else; before that, being awake is no reason.
#[test]
fn a_look_that_is_due_soon_is_taken_when_something_else_wakes_the_agent() {
    let every = bascule_agent::core::Config::default().observe_every;
    let machine = AgentHost::new(BootLoader::SystemdBoot, &release("1.0", &[]), &[]);
    let mut agent = machine.agent();
    let looked_at = agent.state().observed_at;
    assert_eq!(agent.state().rest(agent.now()), every, "by itself it wakes up when the look is due");
    for _ in 0..3 {
        machine.clock.pass(every / 5);
        agent.handle(Event::Tick).unwrap();
        assert_eq!(agent.state().observed_at, looked_at);
    }
    machine.clock.pass(every / 5);
    agent.handle(Event::Tick).unwrap();
    assert_eq!(agent.state().observed_at, looked_at + every / 5 * 4);
    assert_eq!(agent.state().rest(agent.now()), every, "the next one is due a whole time later");
}

/// Every chain of effects has a deadline. What carries it out may hang in the kernel; then that is said, and the loop, which asks
/// [`State::hangs`], does not feed the watchdog.
#[test]
fn work_that_does_not_come_back_is_reported_until_it_does() {
    use bascule_agent::core::Work;
    let (old, new) = (release("1.0", &[]), release("1.1", &[]));
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[&new]);
    let mut agent = machine.agent();
    // A disk that never answers: nothing comes back of what is carried out.
    let effects = agent.step(machine.word(Goal::Staged, &new, None));
    assert!(!effects.is_empty());
    let work = agent.state().work.expect("it is at work");
    machine.clock.pass(work.patience() - Duration::from_secs(1));
    assert_eq!(agent.step(Event::Tick), [], "nothing else is begun meanwhile");
    assert!(agent.state().hangs(agent.now()).is_none() && agent.published().unwrap().last_error.is_none());
    assert!(agent.state().rest(agent.now()) <= Duration::from_secs(1), "it wakes up to say so");
    machine.clock.pass(Duration::from_secs(2));
    agent.step(Event::Tick);
    assert!(agent.state().hangs(agent.now()).is_some());
    let status = agent.published().unwrap();
    assert!(status.last_error.as_ref().unwrap().message.contains("silent for 10 minutes"), "{status:?}");
    assert!(!conditions::is_true(&status.conditions, conditions::AGENT_HEALTHY));
    // The disk answers after all.
    for event in agent.perform(&effects) {
        agent.handle(event).unwrap();
    }
    assert!(agent.state().hangs(agent.now()).is_none());
    assert_eq!(agent.published().unwrap().last_error, None);
    assert_eq!(agent.published().unwrap().staged.as_ref().unwrap().version.as_str(), "1.1");
    for work in [Work::Look, Work::Short, Work::Arm, Work::Resolve, Work::Stage, Work::Inspect, Work::Verify] {
        assert!(work.patience() <= Duration::from_secs(2 * 3600), "{work:?} has a deadline");
    }
}

#[test]
fn an_agent_whose_first_look_fails_says_so() {
    let old = release("1.0", &[]);
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[]);
    machine.hardware.disk.inject(FaultRule::always(Access::Read, Some(Cache(ESP)), Effect::Eio));
    let mut agent = machine.agent();
    // What an agent before this one said is the server's memory of this node, and stays.
    let remembered = NodeUpdateStatus { last_grant: Some(7), ..NodeUpdateStatus::default() };
    agent.handle(Event::Remembered(Box::new(remembered))).unwrap();
    agent.handle(machine.word(Goal::Idle, &old, None)).unwrap();
    let status = agent.published().unwrap();
    assert_eq!((problem(status), status.last_grant), (Some("Storage"), Some(7)));
    let healthy = status.conditions.iter().find(|condition| condition.type_ == conditions::AGENT_HEALTHY).unwrap();
    assert_eq!((healthy.status.as_str(), healthy.reason.as_str()), ("False", "Storage"));
    machine.hardware.disk.clear_faults();
    machine.clock.pass(Duration::from_secs(3600));
    agent.handle(Event::Tick).unwrap();
    let status = agent.published().unwrap();
    assert!(status.last_error.is_none() && status.boot_id.is_some(), "{status:?}");
}

#[test]
fn units_that_must_run_and_do_not_are_reported_and_a_bus_that_is_gone_says_nothing_of_them() {
    use bascule_agent::agent::Agent;
    use bascule_agent::core::Config;
    use bascule_agent::engine::{Engine, StageLimits};
    use bascule_agent::host::UnitState;
    use bascule_agent::observe::LookSettings;
    use std::sync::atomic::Ordering;
    let old = release("1.0", &[]);
    let mut machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[]);
    let bus = machine.sim.bus.clone();
    let set = |unit: &str, active: &str| {
        let state = UnitState { load: "loaded".to_owned(), active: active.to_owned() };
        bus.units.lock().unwrap().insert(unit.to_owned(), state);
    };
    set("kubelet.service", "active");
    set("containerd.service", "failed");
    let units = ["kubelet.service", "containerd.service", "none.service"].map(String::from).to_vec();
    let engine =
        Engine::new(machine.sim.host(), LookSettings { units, ..LookSettings::default() }, StageLimits::default());
    let mut agent = Agent::new(engine, Config::default());
    agent.handle(Event::Tick).unwrap();
    agent.handle(machine.word(Goal::Idle, &old, None)).unwrap();
    let healthy = |agent: &Agent| {
        let found = conditions::get(&agent.published().unwrap().conditions, conditions::AGENT_HEALTHY).unwrap();
        (found.status.clone(), found.message.clone())
    };
    let sentence = "units that do not run: containerd.service (failed), none.service (not-found)";
    assert_eq!(healthy(&agent), ("False".to_owned(), sentence.to_owned()));
    set("containerd.service", "active");
    set("none.service", "active");
    let look = |agent: &mut Agent| {
        machine.clock.pass(Duration::from_secs(600));
        agent.handle(Event::Tick).unwrap();
        healthy(agent).0
    };
    assert_eq!(look(&mut agent), "True");
    bus.gone.store(true, Ordering::SeqCst);
    assert_eq!(look(&mut agent), "True");
    assert!(agent.state().problem.is_none(), "{:?}", agent.state().problem);
}

/// A boot partition that counts the bytes that are read of its files.
struct Counting {
    esp: Arc<dyn Esp>,
    bytes: Arc<AtomicU64>,
}

/// A file on it.
struct CountingFile {
    file: Box<dyn ReadAt>,
    bytes: Arc<AtomicU64>,
}

impl ReadAt for CountingFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.file.read_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
}

impl Esp for Counting {
    fn list(&self, directory: &str) -> io::Result<Vec<EspFile>> {
        self.esp.list(directory)
    }

    fn read(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        self.esp.read(path, limit)
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn ReadAt>> {
        let file = self.esp.open(path)?;
        Ok(Box::new(CountingFile { file, bytes: self.bytes.clone() }))
    }

    fn write(&self, path: &str, content: &mut dyn io::Read) -> io::Result<()> {
        self.esp.write(path, content)
    }

    fn write_start(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.esp.write_start(path, bytes)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.esp.rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.esp.remove(path)
    }

    fn sync(&self) -> io::Result<()> {
        self.esp.sync()
    }

    fn space(&self) -> io::Result<Space> {
        self.esp.space()
    }

    fn is_read_only(&self) -> io::Result<bool> {
        self.esp.is_read_only()
    }
}

/// A boot image has a hundred MB, and a look comes every five minutes. Whole files are read only to tell whether two are the same,
/// and once: a debug image beside the running one stays for ever.
#[test]
fn looks_do_not_read_boot_images_whole_again_and_again() {
    const SIZE: u64 = 300 << 10;
    let old = release("1.0", &[]);
    let machine = AgentHost::new(BootLoader::SystemdBoot, &old, &[]);
    let whole = machine.sim.host();
    let mut image = old.uki.clone();
    image.resize(usize::try_from(SIZE).unwrap(), 0);
    whole.esp.write(&format!("EFI/Linux/{}", old.entry()), &mut image.as_slice()).unwrap();
    let bytes = Arc::new(AtomicU64::new(0));
    let host = Host { esp: Arc::new(Counting { esp: whole.esp.clone(), bytes: bytes.clone() }), ..whole };
    let digests = DigestCache::default();
    let look = || {
        let before = bytes.load(Ordering::Relaxed);
        observe(&host, &LookSettings::default(), &digests).unwrap();
        bytes.load(Ordering::Relaxed) - before
    };
    let alone = look();
    assert!(alone < SIZE / 4, "an image alone is no two of anything, and {alone} bytes were read of it");
    *image.last_mut().unwrap() = 1;
    host.esp.write("EFI/Linux/acme-os_1.0-debug.efi", &mut image.as_slice()).unwrap();
    let first = look();
    assert!(
        first >= 2 * SIZE,
        "whether two images of one release and one length are one is not known of {first} bytes"
    );
    for again in [look(), look()] {
        assert!(again < SIZE / 2, "{again} bytes were read once more");
    }
}
