//! logind over a real bus: a private dbus-daemon with a logind of the test's own behind it, a slow one, and none.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bascule_agent::host::{BusError, SystemBus as _, UnitRun};
use bascule_agent::linux::LinuxBus;
use tokio::runtime::Runtime;
use zbus::object_server::SignalEmitter;
use zbus::{OwnedFd, OwnedObjectPath};

const LOGIND: &str = "org.freedesktop.login1";
const SYSTEMD: &str = "org.freedesktop.systemd1";
/// Everything of the test's own answers at once, but for what a busy machine takes.
const TIMEOUT: Duration = Duration::from_secs(60);
/// A hook that is a link to another unit.
const LINKED: &str = "bascule-linked@1.0.service";
/// A hook of whose start systemd says nothing.
const STUCK: &str = "bascule-stuck@1.0.service";
/// What never answers takes this long.
const SHORT: Duration = Duration::from_secs(2);

/// A bus of the test's own.
struct Daemon {
    process: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Self {
        Self::with_policy("")
    }

    /// One that everybody may ask everything, but for what `policy` says (dbus-daemon(1), `<policy>`).
    fn with_policy(policy: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("bus.conf");
        let text = format!(
            "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
             \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n<busconfig><type>custom</type>\
             <listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\"><allow send_destination=\"*\" \
             eavesdrop=\"true\"/><allow own=\"*\"/><allow eavesdrop=\"true\"/></policy>{policy}</busconfig>\n",
            folder.path().join("bus").display()
        );
        std::fs::write(&config, text).unwrap();
        let mut process = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile", "--print-address=1"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon of Debian's package dbus-daemon is needed");
        // The address is printed once the bus listens.
        let mut address = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut address).unwrap();
        Self { process, address: address.trim().to_owned(), _folder: folder }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Default)]
struct Told {
    messages: Vec<String>,
    reboots: u32,
    /// The reading end of each inhibitor's pipe: at its end, the agent let go.
    inhibitors: Vec<(String, std::io::PipeReader)>,
}

#[derive(Clone, Default)]
struct Logind {
    told: Arc<Mutex<Told>>,
    /// The units that systemd was told to stop.
    stopped: Arc<Mutex<Vec<String>>>,
    refuses: bool,
    hangs: bool,
}

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Logind {
    async fn list_inhibitors(&self) -> Vec<(String, String, String, String, u32, u32)> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        vec![("shutdown:sleep".into(), "backup".into(), "copying".into(), "block".into(), 0, 77)]
    }

    async fn inhibit(&self, what: String, who: String, _why: String, mode: String) -> OwnedFd {
        let (reader, writer) = std::io::pipe().unwrap();
        self.told.lock().unwrap().inhibitors.push((format!("{what} {who} {mode}"), reader));
        OwnedFd::from(std::os::fd::OwnedFd::from(writer))
    }

    async fn set_wall_message(&self, message: String, _enable: bool) {
        self.told.lock().unwrap().messages.push(message);
    }

    async fn reboot(&self, _interactive: bool) -> zbus::fdo::Result<()> {
        if self.refuses {
            return Err(zbus::fdo::Error::AccessDenied("not you".into()));
        }
        self.told.lock().unwrap().reboots += 1;
        Ok(())
    }
}

/// Knows the kubelet's unit, and the OS image's hooks.
struct Systemd {
    stopped: Arc<Mutex<Vec<String>>>,
}

type Unit = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    async fn list_units_by_names(&self, names: Vec<String>) -> Vec<Unit> {
        let path = OwnedObjectPath::try_from("/").unwrap();
        let unit = |name: String| {
            let known = name == "kubelet.service";
            let hook = name.starts_with("bascule-");
            let (load, active) = if known || hook { ("loaded", "failed") } else { ("not-found", "inactive") };
            let text = String::new;
            // Of a unit that others are links to, its own name is told.
            let name = if name == LINKED { "acme-migrate@1.0.service".to_owned() } else { name };
            (name, text(), load.into(), active.into(), text(), text(), path.clone(), 0, text(), path.clone())
        };
        names.into_iter().map(unit).collect()
    }

    async fn subscribe(&self) -> zbus::fdo::Result<()> {
        Err(zbus::fdo::Error::Failed("already subscribed".into()))
    }

    async fn unsubscribe(&self) {}

    /// The job's end is told before its name.
    async fn restart_unit(
        &self,
        name: String,
        _mode: String,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> OwnedObjectPath {
        if name == STUCK {
            std::future::pending::<()>().await;
        }
        let job = |number: u32| OwnedObjectPath::try_from(format!("/org/freedesktop/systemd1/job/{number}")).unwrap();
        Self::job_removed(&emitter, 6, job(6), "other.service".into(), "failed".into()).await.unwrap();
        if let Some(result) = name.strip_prefix("bascule-").and_then(|name| name.strip_suffix("@1.0.service")) {
            Self::job_removed(&emitter, 7, job(7), name.clone(), result.to_owned()).await.unwrap();
        }
        job(7)
    }

    async fn stop_unit(&self, name: String, _mode: String) -> OwnedObjectPath {
        self.stopped.lock().unwrap().push(name);
        OwnedObjectPath::try_from("/").unwrap()
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        unit: String,
        result: String,
    ) -> zbus::Result<()>;
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn serve(runtime: &Runtime, daemon: &Daemon, logind: Logind) -> zbus::Connection {
    let systemd = Systemd { stopped: Arc::clone(&logind.stopped) };
    runtime.block_on(async {
        zbus::connection::Builder::address(daemon.address.as_str())
            .name(LOGIND)
            .name(SYSTEMD)
            .serve_at("/org/freedesktop/login1", logind)
            .serve_at("/org/freedesktop/systemd1", systemd)
            .build()
            .await
            .unwrap()
    })
}

fn bus(runtime: &Runtime, daemon: &Daemon) -> LinuxBus {
    LinuxBus::at(daemon.address.clone(), runtime.handle().clone(), TIMEOUT)
}

#[test]
fn logind_is_told_and_asked() {
    let (runtime, daemon, logind) = (runtime(), Daemon::start(), Logind::default());
    let _service = serve(&runtime, &daemon, logind.clone());
    let bus = bus(&runtime, &daemon);
    let found = bus.inhibitors().unwrap();
    assert_eq!((found[0].who.as_str(), found[0].mode.as_str()), ("backup", "block"));
    bus.reboot("Bascule reboots").unwrap();
    let told = logind.told.lock().unwrap();
    assert_eq!((told.reboots, told.messages.as_slice()), (1, &["Bascule reboots".to_owned()][..]));
    drop(told);
    let units = bus.unit_states(&["kubelet.service".into(), "none.service".into()]).unwrap();
    assert_eq!(units["kubelet.service"].active, "failed");
    assert_eq!(units["none.service"].load, "not-found");
}

#[test]
fn an_inhibitor_lasts_as_long_as_it_is_held() {
    use std::io::Read as _;
    let (runtime, daemon, logind) = (runtime(), Daemon::start(), Logind::default());
    let _service = serve(&runtime, &daemon, logind.clone());
    let bus = bus(&runtime, &daemon);
    let hold = bus.inhibit_shutdown("writing").unwrap();
    let (what, mut reader) = logind.told.lock().unwrap().inhibitors.pop().unwrap();
    assert_eq!(what, "shutdown bascule-agent block");
    let watch = std::thread::spawn(move || reader.read(&mut [0]).unwrap());
    assert!(!watch.is_finished());
    drop(hold);
    assert_eq!(watch.join().unwrap(), 0, "the pipe ends when the agent lets go");
}

#[test]
fn a_logind_that_refuses_is_a_refusal_with_its_words() {
    let (runtime, daemon) = (runtime(), Daemon::start());
    let _service = serve(&runtime, &daemon, Logind { refuses: true, ..Logind::default() });
    let error = bus(&runtime, &daemon).reboot("x").unwrap_err();
    assert!(matches!(&error, BusError::Refused { message, .. } if message.contains("not you")), "{error:?}");
}

#[test]
fn a_logind_that_never_answers_is_an_error_in_time() {
    let (runtime, daemon) = (runtime(), Daemon::start());
    let _service = serve(&runtime, &daemon, Logind { hangs: true, ..Logind::default() });
    let begun = Instant::now();
    let bus = LinuxBus::at(daemon.address.clone(), runtime.handle().clone(), SHORT);
    let error = bus.inhibitors().unwrap_err();
    assert!(matches!(error, BusError::Slow { seconds: 2, .. }), "{error:?}");
    assert!(begun.elapsed() < TIMEOUT);
}

#[test]
fn no_bus_and_no_logind_are_errors_and_a_bus_that_comes_back_is_used() {
    let runtime = runtime();
    let daemon = Daemon::start();
    let bus = bus(&runtime, &daemon);
    let error = bus.inhibitors().unwrap_err();
    assert!(matches!(error, BusError::Unreachable { service: "logind", .. }), "{error:?}");
    let _service = serve(&runtime, &daemon, Logind::default());
    assert_eq!(bus.inhibitors().unwrap().len(), 1, "the next try finds it");
    let gone = LinuxBus::at("unix:path=/nonexistent/bus".to_owned(), runtime.handle().clone(), TIMEOUT);
    assert!(matches!(gone.inhibitors().unwrap_err(), BusError::Unreachable { .. }));
}

#[test]
fn a_unit_is_run_to_its_end_and_stopped_when_its_time_is_over() {
    let (runtime, daemon, logind) = (runtime(), Daemon::start(), Logind::default());
    let _service = serve(&runtime, &daemon, logind.clone());
    let bus = bus(&runtime, &daemon);
    for (unit, end) in [
        ("none@1.0.service", UnitRun::Absent),
        ("bascule-done@1.0.service", UnitRun::Done),
        ("bascule-skipped@1.0.service", UnitRun::Done),
        ("bascule-dependency@1.0.service", UnitRun::Failed("ended with dependency".to_owned())),
        (LINKED, UnitRun::Failed("ended with linked".to_owned())),
    ] {
        assert_eq!(bus.run_unit(unit, TIMEOUT).unwrap(), end, "{unit}");
    }
    assert!(logind.stopped.lock().unwrap().is_empty());
    let endless = "bascule-before-arm@2.0.service";
    assert_eq!(bus.run_unit(endless, Duration::from_millis(100)).unwrap(), UnitRun::TimedOut);
    assert_eq!(*logind.stopped.lock().unwrap(), [endless]);
}

#[test]
fn a_bus_on_which_systemd_can_not_be_asked_is_none_without_such_a_unit() {
    let denied = format!("<policy context=\"mandatory\"><deny send_destination=\"{SYSTEMD}\"/></policy>");
    // A proxy in front of a bus shows what may not be asked as if it were not there.
    for (policy, is_there) in [(denied.as_str(), true), ("", false)] {
        let (runtime, daemon) = (runtime(), Daemon::with_policy(policy));
        // Each on a connection of its own: what is denied is whoever has the name, by all its names.
        let own = |name: &'static str| zbus::connection::Builder::address(daemon.address.as_str()).name(name);
        let logind = own(LOGIND).serve_at("/org/freedesktop/login1", Logind::default());
        let _logind = runtime.block_on(logind.build()).unwrap();
        let systemd = Systemd { stopped: Arc::default() };
        let systemd = own(SYSTEMD).serve_at("/org/freedesktop/systemd1", systemd);
        let _systemd = is_there.then(|| runtime.block_on(systemd.build()).unwrap());
        let bus = bus(&runtime, &daemon);
        assert_eq!(bus.inhibitors().unwrap().len(), 1);
        for unit in ["none@1.0.service", "bascule-done@1.0.service"] {
            let error = bus.run_unit(unit, TIMEOUT).unwrap_err();
            assert!(matches!(error, BusError::NotAsked { service: "systemd", .. }), "{policy:?}: {error:?}");
        }
    }
    let runtime = runtime();
    let gone = LinuxBus::at("unix:path=/nonexistent/bus".to_owned(), runtime.handle().clone(), TIMEOUT);
    assert!(matches!(gone.run_unit("none@1.0.service", TIMEOUT).unwrap_err(), BusError::Unreachable { .. }));
}

#[test]
fn a_unit_of_whose_start_nothing_is_heard_is_stopped_all_the_same() {
    let (runtime, daemon, logind) = (runtime(), Daemon::start(), Logind::default());
    let _service = serve(&runtime, &daemon, logind.clone());
    // The other calls have to be answered within it, on a busy machine too.
    let bus = LinuxBus::at(daemon.address.clone(), runtime.handle().clone(), SHORT * 5);
    let error = bus.run_unit(STUCK, Duration::from_millis(100)).unwrap_err();
    assert!(matches!(error, BusError::Slow { .. }), "{error:?}");
    assert_eq!(*logind.stopped.lock().unwrap(), [STUCK]);
}
