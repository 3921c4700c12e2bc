//! Simulated machines as the sandbox holds them: a process each (the disk, the firmware, the shipped agent inside),
//! and a kubelet stand-in that lives exactly as long as the machine's operating system does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bascule_sim::machine::{Command, MachineConfig, MachineView, Power};
use bascule_tests::control_plane::{Credentials, Plane};
use bascule_tests::kubelet::{Health, Kubelet, KubeletHost, Runtime};
use bascule_tests::supervise::Supervised;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::observe::{Observer, SANDBOX_LABEL};

/// How long a machine's process may take to open its socket.
const SOCKET_PATIENCE: Duration = Duration::from_secs(60);

/// Where a machine stands in the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Seat {
    /// The node's name.
    pub(crate) node: String,
    /// Its failure domain.
    pub(crate) zone: String,
}

impl Seat {
    /// Nodes `n1`, `n2`, … over zones a, b and c, two next to each other in one zone as racks are filled.
    pub(crate) fn plan(nodes: u16) -> Vec<Self> {
        let in_zone = |zone: u16| nodes / 3 + u16::from(zone < nodes % 3);
        let zones = ["a", "b", "c"].into_iter().zip(0..);
        let filled = zones.flat_map(|(name, zone)| std::iter::repeat_n(name, usize::from(in_zone(zone))));
        filled.zip(1..).map(|(zone, number)| Self { node: format!("n{number}"), zone: zone.to_owned() }).collect()
    }
}

/// One machine that was switched on.
#[derive(Debug)]
pub(crate) struct Host {
    switches: mpsc::Sender<Command>,
    task: JoinHandle<()>,
    _process: Supervised,
}

/// What is the same for all machines.
#[derive(Clone)]
pub(crate) struct Surroundings {
    /// The program that plays a machine.
    pub(crate) program: PathBuf,
    /// Who hears of each change.
    pub(crate) observer: Arc<Observer>,
    /// What pods on the machine are.
    pub(crate) runtime: Arc<dyn Runtime>,
}

impl std::fmt::Debug for Surroundings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Surroundings").field("program", &self.program).finish_non_exhaustive()
    }
}

impl Host {
    /// Switches a machine on. Returns when its process answers; booting takes its own time.
    ///
    /// # Errors
    /// The process does not start or does not open its socket.
    pub(crate) async fn switch_on(
        seat: &Seat,
        config: &MachineConfig,
        kubelet: Credentials,
        plane: Option<Arc<Plane>>,
        around: &Surroundings,
    ) -> anyhow::Result<Self> {
        let file = config.directory.join("given.json");
        std::fs::write(&file, serde_json::to_vec_pretty(config)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        let arguments = ["machine".into(), "--config".into(), file.into_os_string()];
        let log = config.directory.join("process.log");
        let mut process = Supervised::start(&around.program, arguments, &[], &log)?;
        let socket = connect(&config.directory.join("machine.sock"), &mut process).await?;
        let (reader, writer) = socket.into_split();
        let (switches, commands) = mpsc::channel(8);
        let client = kubelet.client().await?;
        let life = Life { seat: seat.clone(), client, plane, around: around.clone(), kubelet: None };
        let task = tokio::spawn(life.live(BufReader::new(reader).lines(), writer, commands));
        Ok(Self { switches, task, _process: process })
    }

    /// The machine's switches, for somebody else to hold.
    pub(crate) fn switches(&self) -> mpsc::Sender<Command> {
        self.switches.clone()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Machines make their socket when they start; there is nothing to wait on before it exists.
async fn connect(socket: &Path, process: &mut Supervised) -> anyhow::Result<UnixStream> {
    let deadline = Instant::now() + SOCKET_PATIENCE;
    loop {
        if let Some(code) = process.ended()? {
            bail!("the machine process ended with code {code}: {}", process.log_tail(5));
        }
        match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("no machine answers at {}", socket.display()));
            }
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Turns the machine's states into a kubelet that is there or not.
struct Life {
    seat: Seat,
    client: kube::Client,
    /// What the machine carries of the cluster itself.
    plane: Option<Arc<Plane>>,
    around: Surroundings,
    kubelet: Option<(String, Kubelet)>,
}

impl Life {
    async fn live(
        mut self,
        mut states: Lines<BufReader<OwnedReadHalf>>,
        mut switches: OwnedWriteHalf,
        mut commands: mpsc::Receiver<Command>,
    ) {
        loop {
            tokio::select! {
                line = states.next_line() => match line {
                    Ok(Some(line)) => match serde_json::from_str::<MachineView>(&line) {
                        Ok(view) => self.follow(view).await,
                        Err(error) => tracing::warn!(node = self.seat.node, %error, "a machine speaks strangely"),
                    },
                    Ok(None) => return self.lost("it closed its socket".to_owned()),
                    Err(error) => return self.lost(error.to_string()),
                },
                command = commands.recv() => {
                    let Some(command) = command else { return };
                    let Ok(mut line) = serde_json::to_string(&command) else { continue };
                    line.push('\n');
                    if let Err(error) = switches.write_all(line.as_bytes()).await {
                        return self.lost(error.to_string());
                    }
                }
            }
        }
    }

    fn lost(&self, why: String) {
        self.around.observer.lose_machine(&self.seat.node, why);
    }

    async fn follow(&mut self, view: MachineView) {
        let wanted = view.system.as_ref().filter(|system| view.power == Power::Up && system.kubelet_starts);
        let same = match (&self.kubelet, wanted) {
            (Some((boot_id, _)), Some(system)) => *boot_id == system.boot_id,
            (None, None) => true,
            _ => false,
        };
        if !same {
            if let Some((_, kubelet)) = self.kubelet.take() {
                kubelet.stop().await;
                if let Some(plane) = &self.plane {
                    plane.shut_down().await;
                }
            }
            if let Some(system) = wanted {
                let health = if system.becomes_ready { Health::Good } else { Health::NeverReady };
                let mut machine = KubeletHost::named(&self.seat.node, &self.seat.zone);
                machine.boot_id.clone_from(&system.boot_id);
                machine.os_image = format!("Bascule reference OS {}", system.version);
                machine.labels.insert(SANDBOX_LABEL.to_owned(), "true".to_owned());
                machine.labels.insert("node.bascule.dev/pool".to_owned(), "workers".to_owned());
                if let Some(plane) = &self.plane {
                    plane.start();
                    machine.static_pods = plane.static_pods();
                }
                let runtime = Arc::clone(&self.around.runtime);
                let kubelet = Kubelet::start(self.client.clone(), machine, health, runtime);
                self.kubelet = Some((system.boot_id.clone(), kubelet));
            }
        }
        self.around.observer.see_machine(view);
    }
}

/// All machines by node.
pub(crate) type Hosts = BTreeMap<String, Host>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_nodes_fills_three_zones_evenly() {
        for (nodes, wanted) in [(3, "abc"), (4, "aabc"), (5, "aabbc"), (6, "aabbcc"), (7, "aaabbcc")] {
            let zones: String = Seat::plan(nodes).into_iter().map(|seat| seat.zone).collect();
            assert_eq!(zones, wanted);
        }
        let names: std::collections::BTreeSet<String> = Seat::plan(60).into_iter().map(|seat| seat.node).collect();
        assert_eq!(names.len(), 60);
    }
}
