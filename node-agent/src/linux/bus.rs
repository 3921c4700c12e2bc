//! logind and systemd over D-Bus.
//!
//! The connection is made when it is first needed and made anew after a failure. Each call ends within a bounded time,
//! whatever the bus does.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::runtime::Handle;
use zbus::Connection;
use zbus_systemd::login1::ManagerProxy as Logind;
use zbus_systemd::systemd1::ManagerProxy as Systemd;

use crate::host::{BusError, Inhibition, Inhibitor, SystemBus, UnitRun, UnitState};

/// Where systemd's own programs find the system bus (sd_bus_open_system(3)). The D-Bus specification, and zbus with it, says
/// `/var/run`, which in a container image without a file system of its own is no link to `/run`.
const SYSTEM_BUS: &str = "unix:path=/run/dbus/system_bus_socket";
/// How the address of a bus at a path begins.
const AT_PATH: &str = "unix:path=";
/// Says another place (D-Bus Specification, "Well-known Message Bus Instances").
const SYSTEM_BUS_VARIABLE: &str = "DBUS_SYSTEM_BUS_ADDRESS";
/// Most units of one question.
const MAX_UNITS: usize = 64;
/// The name we show to others.
const WHO: &str = "bascule-agent";

/// The system bus.
#[derive(Debug)]
pub struct LinuxBus {
    runtime: Handle,
    timeout: Duration,
    address: Option<String>,
    connection: Mutex<Option<Connection>>,
}

impl LinuxBus {
    /// The system bus of this machine. Calls come from other threads than the runtime's own.
    pub fn new(runtime: Handle, timeout: Duration) -> Self {
        Self { runtime, timeout, address: None, connection: Mutex::default() }
    }

    /// Another bus, by its D-Bus address.
    pub fn at(address: String, runtime: Handle, timeout: Duration) -> Self {
        Self { address: Some(address), ..Self::new(runtime, timeout) }
    }

    fn call<T>(
        &self,
        service: &'static str,
        work: impl AsyncFnOnce(Connection) -> zbus::Result<T>,
    ) -> Result<T, BusError> {
        self.call_within(service, self.timeout, work)
    }

    fn call_within<T>(
        &self,
        service: &'static str,
        timeout: Duration,
        work: impl AsyncFnOnce(Connection) -> zbus::Result<T>,
    ) -> Result<T, BusError> {
        let before = self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let all = async {
            let connection = match before {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            let answer = work(connection.clone()).await?;
            Ok::<_, zbus::Error>((connection, answer))
        };
        let outcome = self.runtime.block_on(async { tokio::time::timeout(timeout, all).await });
        let mut kept = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(Ok((connection, answer))) => {
                *kept = Some(connection);
                Ok(answer)
            }
            Ok(Err(error)) => {
                // An answer with an error is an answer; anything else may be a connection that is gone.
                if !matches!(error, zbus::Error::MethodError(..) | zbus::Error::FDO(_)) {
                    *kept = None;
                }
                Err(bus_error(service, error))
            }
            Err(_) => {
                *kept = None;
                Err(BusError::Slow { service, seconds: timeout.as_secs() })
            }
        }
    }

    async fn connect(&self) -> zbus::Result<Connection> {
        match &self.address {
            Some(address) => zbus::connection::Builder::address(address.as_str()).build().await,
            None if std::env::var_os(SYSTEM_BUS_VARIABLE).is_some() => Connection::system().await,
            None => zbus::connection::Builder::address(SYSTEM_BUS).build().await,
        }
    }
}

/// A sentence where there is no socket of the system bus. Nobody is connected to: a bus that hangs must not hang who starts.
pub(super) fn absent() -> Option<String> {
    if std::env::var_os(SYSTEM_BUS_VARIABLE).is_some() {
        return None;
    }
    let path = SYSTEM_BUS.trim_start_matches(AT_PATH);
    let error = std::fs::metadata(path).err()?;
    Some(format!(
        "there is no system bus at {path}, and without it nobody can reboot this machine: start it, and mount the host's \
         /run/dbus where the agent is a pod: {error}"
    ))
}

fn bus_error(service: &'static str, error: zbus::Error) -> BusError {
    match error {
        zbus::Error::MethodError(name, message, _) => {
            let message = message.unwrap_or_else(|| name.as_str().to_owned());
            BusError::Refused { service, message: message.chars().take(256).collect() }
        }
        zbus::Error::FDO(error) => match *error {
            // The bus itself answers for a service that is not there.
            zbus::fdo::Error::ServiceUnknown(_)
            | zbus::fdo::Error::NameHasNoOwner(_)
            | zbus::fdo::Error::NoReply(_)
            | zbus::fdo::Error::Disconnected(_) => BusError::Unreachable { service, source: error },
            other => BusError::Refused { service, message: other.to_string().chars().take(256).collect() },
        },
        other => BusError::Unreachable { service, source: other.into() },
    }
}

/// What the first question says where nobody may ask (a policy of the bus), or a proxy in front of the bus shows no such service.
fn not_asked(error: BusError) -> BusError {
    match error {
        BusError::Refused { service, message } => BusError::NotAsked { service, message },
        BusError::Unreachable { service, source } => match source.downcast_ref::<zbus::fdo::Error>() {
            Some(zbus::fdo::Error::ServiceUnknown(message) | zbus::fdo::Error::NameHasNoOwner(message)) => {
                BusError::NotAsked { service, message: message.clone() }
            }
            _ => BusError::Unreachable { service, source },
        },
        other => other,
    }
}

impl SystemBus for LinuxBus {
    fn inhibitors(&self) -> Result<Vec<Inhibitor>, BusError> {
        let found = self.call("logind", async |bus| Logind::new(&bus).await?.list_inhibitors().await)?;
        let inhibitor = |(what, who, why, mode, _, _)| Inhibitor { what, who, why, mode };
        Ok(found.into_iter().map(inhibitor).collect())
    }

    fn inhibit_shutdown(&self, why: &str) -> Result<Box<dyn Inhibition>, BusError> {
        let why = why.to_owned();
        let descriptor = self.call("logind", async |bus| {
            let logind = Logind::new(&bus).await?;
            logind.inhibit("shutdown".to_owned(), WHO.to_owned(), why, "block".to_owned()).await
        })?;
        // logind lets go when the last copy of the descriptor is closed.
        Ok(Box::new(descriptor))
    }

    fn reboot(&self, message: &str) -> Result<(), BusError> {
        let message = message.to_owned();
        self.call("logind", async |bus| {
            let logind = Logind::new(&bus).await?;
            // Without the right to set it, rebooting is still right.
            if let Err(error) = logind.set_wall_message(message, true).await {
                tracing::warn!(%error, "there will be no wall message");
            }
            logind.reboot(false).await
        })
    }

    fn unit_states(&self, units: &[String]) -> Result<BTreeMap<String, UnitState>, BusError> {
        let names: Vec<String> = units.iter().take(MAX_UNITS).cloned().collect();
        let found = self.call("systemd", async |bus| Systemd::new(&bus).await?.list_units_by_names(names).await)?;
        let state = |unit: (String, String, String, String, _, _, _, _, _, _)| {
            let (name, _, load, active, ..) = unit;
            (name, UnitState { load, active })
        };
        Ok(found.into_iter().map(state).collect())
    }

    fn run_unit(&self, unit: &str, limit: Duration) -> Result<UnitRun, BusError> {
        const SERVICE: &str = "systemd";
        // One was asked for, and it is told by its own name where this one is an alias (a link to another unit).
        let states = self.unit_states(&[unit.to_owned()]).map_err(not_asked)?;
        match states.values().next().map(|state| state.load.as_str()) {
            Some("loaded") => {}
            Some("not-found" | "masked") | None => return Ok(UnitRun::Absent),
            Some(load) => return Ok(UnitRun::Failed(format!("could not be loaded ({load})"))),
        }
        // Nothing else is said until it ends.
        tracing::info!(unit, seconds = limit.as_secs(), "runs, and is waited for at most so long");
        let name = unit.to_owned();
        // The calls beside the wait have the time of one.
        let ended = self.call_within(SERVICE, limit + self.timeout, async |bus| {
            let systemd = Systemd::new(&bus).await?;
            // Without it systemd tells nobody of the ends of jobs. Twice on one connection is an error, and no harm.
            if let Err(error) = systemd.subscribe().await {
                tracing::debug!(%error, "systemd was not asked for its signals");
            }
            let mut ends = systemd.receive_job_removed().await?;
            let job = systemd.restart_unit(name.clone(), "replace".to_owned()).await?;
            let end = async {
                while let Some(signal) = ends.next().await {
                    let end = signal.args()?;
                    if end.job == job {
                        return Ok(Some(end.result.clone()));
                    }
                }
                Ok::<_, zbus::Error>(None)
            };
            let result = match tokio::time::timeout(limit, end).await {
                Ok(result) => result?.map(|result| match result.as_str() {
                    "done" | "skipped" => UnitRun::Done,
                    other => UnitRun::Failed(format!("ended with {other}")),
                }),
                Err(_) => {
                    systemd.stop_unit(name, "replace".to_owned()).await?;
                    Some(UnitRun::TimedOut)
                }
            };
            // Nobody listens until the next hook.
            if let Err(error) = systemd.unsubscribe().await {
                tracing::debug!(%error, "systemd goes on telling of jobs");
            }
            Ok(result)
        });
        if matches!(ended, Err(BusError::Slow { .. })) {
            // It may have begun, and has no limit of its own unless its unit says one.
            let name = unit.to_owned();
            let stopped =
                self.call(SERVICE, async |bus| Systemd::new(&bus).await?.stop_unit(name, "replace".to_owned()).await);
            if let Err(error) = stopped {
                tracing::warn!(unit, error = &error as &dyn std::error::Error, "the unit may go on running");
            }
        }
        ended?.ok_or_else(|| BusError::Unreachable { service: SERVICE, source: "the bus went away meanwhile".into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_is_looked_for_where_the_daemon_set_mounts_it() {
        let manifest = include_str!("../../../manifests/agent/daemonset.yaml");
        let folder = SYSTEM_BUS.strip_prefix(AT_PATH).and_then(|path| path.rsplit_once('/')).unwrap().0;
        for line in
            [format!("{{name: dbus, mountPath: {folder}}}"), format!("{{name: dbus, hostPath: {{path: {folder}}}}}")]
        {
            assert!(manifest.contains(&line), "the DaemonSet has no `{line}`");
        }
    }
}
