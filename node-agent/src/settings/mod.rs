//! The agent's settings: files of the OS image, files of the node, environment; each value knows where it came from.

pub use bascule_agent_settings::{KEYS, Key, Kind, Listen, Origin, SettingsError, Sources, Value};

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use bascule_agent_settings::{Found, Values, read, read_what_can_be_used};
use bascule_api::{BootControlBackend, Product};

use crate::core::PerSlot;
use crate::engine::{PressureLimits, StageLimits};
use crate::observe::LookSettings;
use crate::slots::{SlotKind, SlotLayout, SlotNumbers};

/// What an agent goes by that only reports.
const TO_REPORT: &[&str] = &[
    "node.name",
    "host.root",
    "state.directory",
    "kubernetes.kubeconfig",
    "kubernetes.progress-every",
    "server.listen",
    "log.format",
    "log.filter",
];

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
    /// To the systemd journal, with fields.
    Journal,
}

/// Validated settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The Node's name; `None`: the host's name.
    pub node_name: Option<String>,
    /// The product, where os-release does not name it.
    pub product: Option<Product>,
    /// Where the host's root file system is seen.
    pub host_root: PathBuf,
    /// The boot loader; `None`: found out.
    pub backend: Option<BootControlBackend>,
    /// How often the boot loader may try an armed release.
    pub tries: u32,
    /// Where the boot partition is mounted; `None`: the usual places.
    pub esp: Option<PathBuf>,
    /// The disk with the slots; `None`: the one with the boot partition.
    pub disk: Option<PathBuf>,
    /// Where the slots are on it.
    pub slots: SlotLayout,
    /// The state folder.
    pub state: PathBuf,
    /// The trust root.
    pub trust_root: PathBuf,
    /// Certificate authorities for the repository beside the system's.
    pub extra_ca: Vec<PathBuf>,
    /// Trust only these.
    pub only_extra_ca: bool,
    /// The proxy for the repository: `environment`, `direct` or an address.
    pub proxy: String,
    /// Whether `file:` repositories are accepted.
    pub allow_local: bool,
    /// How slots are filled.
    pub stage: StageLimits,
    /// When the guard reverts, from the start of the boot.
    pub trial_deadline: Duration,
    /// Kubeconfig; `None`: the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// How often progress is written to the API server at most.
    pub progress_every: Duration,
    /// How often the machine is looked at without a reason.
    pub observe_every: Duration,
    /// How often the running slot is read whole.
    pub inspect_every: Duration,
    /// First wait after a failure.
    pub retry_first: Duration,
    /// Longest wait after a failure.
    pub retry_max: Duration,
    /// How long to wait for the machine to go down before asking again.
    pub reboot_retry: Duration,
    /// How long a slot that was read back may be armed without reading it again.
    pub reverify_after: Duration,
    /// How long a call on the system bus may take.
    pub bus_timeout: Duration,
    /// Units whose state is reported.
    pub units: Vec<String>,
    /// Where metrics, health and break-glass commands are served.
    pub listen: Listen,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged, as tracing's filter has it.
    pub log_filter: String,
    /// Every key with its value and origin, for `status --origins` and the log.
    pub origins: Vec<(&'static str, String, Origin)>,
    /// Why nothing may be done with them but to report: they are what is left of settings that can't be used.
    pub impediment: Option<String>,
}

impl Settings {
    /// Reads and validates.
    ///
    /// # Errors
    /// [`SettingsError`] names the file and line, or the variable.
    pub fn load(sources: &Sources) -> Result<Self, SettingsError> {
        Self::of(&read(sources)?)
    }

    fn of(found: &Found) -> Result<Self, SettingsError> {
        let values = Values::new(found);
        let slots = values.slot_numbers()?.map(|[a_data, a_verity, b_data, b_verity]| PerSlot {
            a: SlotNumbers { data: a_data, verity: a_verity },
            b: SlotNumbers { data: b_data, verity: b_verity },
        });
        let (retry_first, retry_max) = values.retries()?;
        Ok(Self {
            node_name: values.text("node.name")?,
            product: values.product("node.product")?,
            host_root: values.need(values.path("host.root")?, "host.root")?,
            backend: match values.choice("boot.backend")? {
                1 => Some(BootControlBackend::SystemdBoot),
                2 => Some(BootControlBackend::GptPrio),
                _ => None,
            },
            tries: values.need(values.whole("boot.tries")?, "boot.tries")?,
            esp: values.path("boot.partition")?,
            disk: values.path("slots.disk")?,
            slots: SlotLayout {
                kind: match values.choice("slots.kind")? {
                    1 => SlotKind::Usr,
                    _ => SlotKind::Root,
                },
                numbers: slots,
            },
            state: values.need(values.path("state.directory")?, "state.directory")?,
            trust_root: values.need(values.path("repository.trust-root")?, "repository.trust-root")?,
            extra_ca: values.list("repository.extra-ca")?.into_iter().map(PathBuf::from).collect(),
            only_extra_ca: values.flag("repository.only-extra-ca")?,
            proxy: values.text("repository.proxy")?.unwrap_or_default(),
            allow_local: values.flag("repository.allow-local")?,
            stage: StageLimits {
                bytes_per_second: values.bytes("transfer.bytes-per-second")?.and_then(NonZeroU64::new),
                workers: values
                    .whole("transfer.workers")?
                    .and_then(|count| NonZeroUsize::new(count as usize))
                    .unwrap_or(NonZeroUsize::MIN),
                pressure: PressureLimits {
                    io: values.percent("transfer.pause-at-io-pressure")?,
                    memory: values.percent("transfer.pause-at-memory-pressure")?,
                },
                low_priority: values.flag("transfer.low-priority")?,
            },
            trial_deadline: values.duration("trial.deadline")?,
            kubeconfig: values.path("kubernetes.kubeconfig")?,
            progress_every: values.duration("kubernetes.progress-every")?,
            observe_every: values.duration("observe.every")?,
            inspect_every: values.duration("observe.inspect-every")?,
            retry_first,
            retry_max,
            reboot_retry: values.duration("reboot.retry-after")?,
            reverify_after: values.duration("boot.reverify-after")?,
            bus_timeout: values.duration("bus.timeout")?,
            units: values.list("health.units")?,
            listen: values.listen("server.listen")?.unwrap_or(Listen::Off),
            log_format: match values.choice("log.format")? {
                1 => LogFormat::Json,
                2 => LogFormat::Journal,
                _ => LogFormat::Text,
            },
            log_filter: values.text("log.filter")?.unwrap_or_default(),
            origins: values.origins(),
            impediment: None,
        })
    }

    /// What the guard goes by. It must take a release back whose settings are the very thing that is broken: so, where the
    /// sources can't all be used, fewer of them, later ones dropped first, and without any the defaults. The error says
    /// what is wrong with all of them.
    ///
    /// # Errors
    /// Not even the defaults can be used, which no release of the agent has.
    pub fn load_what_can_be_used(sources: &Sources) -> Result<(Self, Option<SettingsError>), SettingsError> {
        let error = match Self::load(sources) {
            Ok(settings) => return Ok((settings, None)),
            Err(error) => error,
        };
        let fewer = (1..=sources.files.len()).rev().map(|count| Sources {
            files: sources.files.iter().take(count).cloned().collect(),
            required: sources.required.clone(),
            ..Sources::default()
        });
        let usable = fewer.filter_map(|fewer| Self::load(&fewer).ok()).next();
        match usable {
            Some(settings) => Ok((settings, Some(error))),
            None => Ok((Self::load(&Sources::default())?, Some(error))),
        }
    }

    /// What the agent reports by where its settings can't be used: all that can be used of them, with the reason as
    /// [`Settings::impediment`]. They say where the API server is and which node this is; nothing else is done with them.
    ///
    /// # Errors
    /// Not even the defaults can be used, which no release of the agent has.
    pub fn load_to_report(sources: &Sources) -> Result<Self, SettingsError> {
        let error = match Self::load(sources) {
            Ok(settings) => return Ok(settings),
            Err(error) => error,
        };
        let mut found = read_what_can_be_used(sources);
        found.retain(|key, _| TO_REPORT.contains(key));
        let settings = loop {
            match Self::of(&found) {
                Err(SettingsError::Value { key, .. }) if found.remove(key).is_some() => {}
                Err(_) => break Self::load(&Sources::default())?,
                Ok(settings) => break settings,
            }
        };
        let why = format!("the settings can't be used: {}", crate::engine::in_one_line(&error));
        Ok(Self { impediment: Some(why), ..settings })
    }

    /// How to look at the machine.
    pub fn look_settings(&self) -> LookSettings {
        LookSettings {
            slots: self.slots,
            backend: self.backend,
            product: self.product.clone(),
            units: self.units.clone(),
            impediment: self.impediment.clone(),
        }
    }

    /// What decisions need.
    pub fn config(&self, node: &str) -> crate::core::Config {
        // Any even spread does; the name is what differs between nodes and stays.
        let spread = node.bytes().fold(17_u64, |sum, byte| (sum * 31 + u64::from(byte)) % 1_001);
        crate::core::Config {
            tries: self.tries,
            trial_deadline: self.trial_deadline,
            reverify_after: self.reverify_after,
            reboot_retry: self.reboot_retry,
            retry_first: self.retry_first,
            retry_max: self.retry_max,
            observe_every: self.observe_every,
            inspect_every: self.inspect_every,
            spread,
            memory_limit: crate::linux::memory_limit(),
            ..crate::core::Config::default()
        }
    }
}

#[cfg(test)]
mod tests;
