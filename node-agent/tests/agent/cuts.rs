//! Power cuts while the service itself works: its loop, its watch of the API server, several workers, a delta, staging that is called
//! off, and the farewell. What reached the disk is recorded in whatever order the threads brought it there, and every point of that is
//! cut afterwards. (`bascule-sim`'s own cuts run decisions and engine in one thread, with full packs, and the same in each run.)

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bascule_agent::core::Event;
use bascule_agent::engine::StageLimits;
use bascule_agent::host::TransferOptions;
use bascule_agent::kubernetes::Credentials;
use bascule_agent::run::run;
use bascule_agent::settings::Settings;
use bascule_api::{Goal, Grant};
use bascule_image::digest::Sha256;
use bascule_sim::disk::{Loss, Recording};
use bascule_sim::firmware::BootLoader;
use bascule_sim::host::SimReleases;
use bascule_sim::layout::{Sizes, Table};
use bascule_sim::tiny::TinyRelease;
use serde_json::Value;
use tokio::sync::{oneshot, watch};

use crate::api_server::ApiServer;
use crate::machine::Machine;
use crate::run::settings;
use crate::stand_in::spec;

/// Far longer than anything here takes on a busy computer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an image: four frames.
const IMAGE: u64 = 256 << 10;

/// What comes between while the service stages: at this download, the boot image's (1) or the pack's (2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Undisturbed,
    /// The operator wants another release.
    OtherRelease(usize),
    /// The service is told to end, and started again.
    Ended(usize),
}

/// A service that worked until the reboot that it was granted.
struct Ran {
    machine: Machine,
    recording: Recording,
    /// What may ever run here.
    known: Vec<TinyRelease>,
    /// What the operator wanted at last.
    wanted: TinyRelease,
    /// How often staging was called off.
    called_off: usize,
}

/// A timed wait for what nobody sends, in a thread without a runtime, until something holds. Whether it came to that.
fn soon(holds: impl Fn() -> bool) -> bool {
    let (_sender, receiver) = std::sync::mpsc::channel::<()>();
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > PATIENCE {
            return false;
        }
        let _ = receiver.recv_timeout(Duration::from_millis(2));
    }
    true
}

async fn until(holds: impl Fn() -> bool) {
    let mut look = tokio::time::interval(Duration::from_millis(10));
    while !holds() {
        look.tick().await;
    }
}

fn word(goal: Goal, release: &TinyRelease, grant: Option<&Grant>) -> Value {
    serde_json::to_value(spec(goal, release, grant)).unwrap()
}

/// Whether the agent said that a release is staged.
fn says_staged(server: &ApiServer, release: &TinyRelease) -> bool {
    let held = server.held.lock().unwrap();
    held.patches.iter().any(|(_, _, body)| body["status"]["staged"]["version"] == release.version)
}

async fn work(boot: BootLoader, turn: Turn) -> Ran {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (server, folder) = (ApiServer::start().await, tempfile::tempdir().unwrap());
    let old = TinyRelease::new("acme-os", "1.0", usize::try_from(IMAGE).unwrap(), &[]).unwrap();
    let [first, other] = ["1.1", "1.2"].map(|version| TinyRelease::following(&old, version).unwrap());
    let wanted = if matches!(turn, Turn::OtherRelease(_)) { other.clone() } else { first.clone() };
    let (tell, told) = watch::channel(false);
    let (downloads, called_off) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let releases = SimReleases::of([&first, &other]).noting({
        let (server, other, called_off) = (server.clone(), other.clone(), called_off.clone());
        move |options: &TransferOptions| {
            let number = downloads.fetch_add(1, Ordering::SeqCst) + 1;
            match turn {
                Turn::OtherRelease(at) if at == number => server.put("n1", &word(Goal::Staged, &other, None)),
                Turn::Ended(at) if at == number => _ = tell.send_replace(true),
                _ => return,
            }
            // What is downloaded is called off in its middle, and not before or after it.
            if soon(|| options.cancel.load(Ordering::SeqCst)) {
                called_off.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let machine = Machine::laid_out(boot, Sizes { data: IMAGE, ..Sizes::tiny() }, &old, releases);
    machine.hardware.disk.start_recording();
    let stage = StageLimits { workers: NonZeroUsize::new(4).unwrap(), low_priority: false, ..StageLimits::default() };
    let settings = Settings { stage, ..settings(folder.path()) };
    let credentials = || Credentials::Kubeconfig(server.kubeconfig(folder.path()));
    server.put("n1", &word(Goal::Staged, &first, None));
    if matches!(turn, Turn::Ended(_)) {
        let mut told = told;
        let ends = async move {
            let _ = told.wait_for(|told| *told).await;
        };
        run(&settings, "n1".to_owned(), machine.sim.host(), credentials(), ends).await.unwrap();
        assert!(!says_staged(&server, &first), "it was to be ended before that");
    }
    let (end, ended) = oneshot::channel::<()>();
    let ends = async move { ended.await.unwrap_or_default() };
    let running = run(&settings, "n1".to_owned(), machine.sim.host(), credentials(), ends);
    let operator = async {
        until(|| says_staged(&server, &wanted)).await;
        server.put("n1", &word(Goal::Booted, &wanted, Some(&machine.grant(1))));
        until(|| !machine.sim.bus.reboots().is_empty()).await;
        drop(end);
    };
    let (ran, ()) = tokio::join!(running, operator);
    ran.unwrap();
    assert_eq!(machine.sim.bus.unguarded(), Vec::<String>::new(), "written while nothing held the shutdown back");
    let recording = machine.hardware.disk.take_recording().unwrap();
    let called_off = called_off.load(Ordering::SeqCst);
    Ran { machine, recording, known: vec![old, first, other], wanted, called_off }
}

impl Ran {
    /// Turns the machine on after a cut. Some known release comes up whole at the first start.
    fn starts(&self, at: usize, loss: Loss) -> Result<Machine, String> {
        let releases = Arc::new(SimReleases::of(&self.known));
        let machine = self.machine.cut(self.recording.cut(at, loss), releases)?;
        let system = &machine.system;
        let is_it = |release: &&TinyRelease| {
            let image = system.boot_image.is_none_or(|digest| digest == Sha256::of(&release.uki));
            image && system.root_hash == release.root_hash
        };
        match self.known.iter().find(is_it) {
            Some(release) if release.version == "1.0" || release.version == self.wanted.version => Ok(machine),
            Some(release) => Err(format!("{} runs, which was called off", release.version)),
            None => Err(format!("{} runs, which is no whole release", system.version)),
        }
    }

    /// The same, and on until what is wanted runs and is committed.
    fn ends_well(&self, at: usize, loss: Loss) -> Result<(), String> {
        let mut machine = self.starts(at, loss)?;
        for generation in 10..16 {
            let mut agent = machine.agent();
            let runs = machine.system.version == self.wanted.version;
            let goal = if runs { Goal::Committed } else { Goal::Booted };
            let grant = machine.grant(generation);
            let mut event = machine.word(goal, &self.wanted, Some(grant));
            let is_over = |agent: &bascule_agent::agent::Agent| {
                runs && agent.published().is_some_and(|status| status.trial.is_none() && status.last_error.is_none())
            };
            for _ in 0..6 {
                agent.handle(event).map_err(|error| error.to_string())?;
                if is_over(&agent) || !machine.sim.bus.reboots().is_empty() {
                    break;
                }
                machine.clock.pass(Duration::from_secs(1800));
                event = Event::Tick;
            }
            if machine.sim.bus.reboots().is_empty() {
                return if is_over(&agent) { self.rests(machine) } else { Err(format!("{:?}", agent.state().problem)) };
            }
            machine.reboot();
        }
        Err("it reboots for ever".to_owned())
    }

    /// The next start brings the same, and table and boot partition are whole.
    fn rests(&self, mut machine: Machine) -> Result<(), String> {
        machine.reboot();
        if machine.system.version != self.wanted.version || machine.system.trial {
            return Err(format!("{} boots next (trial: {})", machine.system.version, machine.system.trial));
        }
        let table = Table::read(&machine.hardware.disk).map_err(|error| error.to_string())?;
        let damage = table.esp().and_then(|esp| esp.check()).map_err(|error| error.to_string())?;
        if table.copies_agree() && damage.is_empty() {
            return Ok(());
        }
        Err(format!("at rest: the tables agree: {}, the boot partition: {damage:?}", table.copies_agree()))
    }
}

#[tokio::test]
async fn a_service_whose_power_is_cut_at_any_point_of_its_work_ends_well() {
    for boot in [BootLoader::SystemdBoot, BootLoader::Gptprio] {
        for turn in [Turn::Undisturbed, Turn::OtherRelease(1), Turn::OtherRelease(2), Turn::Ended(1), Turn::Ended(2)] {
            let begun = Instant::now();
            let ran = tokio::time::timeout(4 * PATIENCE, work(boot, turn)).await.unwrap();
            assert_eq!(ran.called_off, usize::from(turn != Turn::Undisturbed), "{boot:?}, {turn:?}");
            let mut cuts = 0;
            for (number, at) in ran.recording.cut_points().into_iter().enumerate() {
                let losses = [Loss::Nothing, Loss::Everything, Loss::Torn((at as u64) << 16 | 7)];
                // All of them start something; of three one goes all the way, in turn.
                for (place, loss) in losses.into_iter().enumerate() {
                    let goes_on = place == number % 3;
                    let outcome = if goes_on { ran.ends_well(at, loss) } else { ran.starts(at, loss).map(drop) };
                    outcome.unwrap_or_else(|wrong| {
                        let story = ran.recording.story(at, 40);
                        panic!("{boot:?}, {turn:?}: {wrong}\nbefore the cut at {at} with {loss:?}:\n{story}")
                    });
                    cuts += 1;
                }
            }
            println!("{boot:?}, {turn:?}: {cuts} cuts in {:?}", begun.elapsed());
        }
    }
}
