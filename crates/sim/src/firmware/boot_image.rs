//! What a unified kernel image says about itself: the sections `.osrel` and `.cmdline` (UAPI Unified Kernel Image
//! Specification). The firmware has a reader of its own, other than the agent's, so that the two check each other.

use object::read::pe::PeFile64;
use object::{Object, ObjectSection};
use serde::{Deserialize, Serialize};

/// Sections longer than this are not read.
const MAX_TEXT: u64 = 64 << 10;

/// On the command line: `bascule.sim.fault=<fault>`, as often as wanted.
const FAULT_KEY: &str = "bascule.sim.fault=";

/// How a release is broken; carried by its own boot image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The kubelet runs, the node never becomes Ready.
    NeverReady,
    /// The kubelet fails at every start.
    KubeletFails,
    /// The system is up for a moment, then resets itself, each time.
    CrashLoop,
    /// Services start, the agent never does. The guard does.
    HangBeforeAgent,
    /// Nothing starts; the hardware's watchdog resets the machine.
    Hang,
    /// The kernel panics before it mounts anything.
    Panic,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 6] =
        [Fault::NeverReady, Fault::KubeletFails, Fault::CrashLoop, Fault::HangBeforeAgent, Fault::Hang, Fault::Panic];

    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Fault::NeverReady => "never-ready",
            Fault::KubeletFails => "kubelet-fails",
            Fault::CrashLoop => "crash-loop",
            Fault::HangBeforeAgent => "hang-before-agent",
            Fault::Hang => "hang",
            Fault::Panic => "panic",
        }
    }

    /// The command line argument that makes a release have this fault.
    pub fn argument(self) -> String {
        format!("{FAULT_KEY}{}", self.name())
    }
}

/// What the firmware and the kernel read from a boot image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootImage {
    /// IMAGE_ID, else ID, of `.osrel`.
    pub sort_key: Option<String>,
    /// IMAGE_VERSION, else VERSION, VERSION_ID, BUILD_ID, of `.osrel`.
    pub version: Option<String>,
    /// All of `.osrel`.
    pub os_release: String,
    /// The kernel's command line.
    pub cmdline: String,
}

impl BootImage {
    /// Reads an image. `None` if it is no PE file, or `.osrel` is missing or names nothing: the loader passes over those.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let file = PeFile64::parse(bytes).ok()?;
        let text = |name: &str| {
            let section = file.section_by_name(name).filter(|section| section.size() <= MAX_TEXT)?;
            let text = String::from_utf8_lossy(section.data().ok()?).into_owned();
            Some(text.trim_end_matches('\0').to_owned())
        };
        let release = text(".osrel")?;
        let field = |wanted: &[&str]| {
            wanted.iter().find_map(|key| {
                release.lines().find_map(|line| {
                    let (name, value) = line.trim().split_once('=')?;
                    let value = value.trim_matches(['"', '\'']);
                    (name == *key && !value.is_empty()).then(|| value.to_owned())
                })
            })
        };
        field(&["PRETTY_NAME", "IMAGE_ID", "NAME", "ID"])?;
        Some(Self {
            sort_key: field(&["IMAGE_ID", "ID"]),
            version: field(&["IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID"]),
            os_release: release.clone(),
            cmdline: text(".cmdline").unwrap_or_default().trim().to_owned(),
        })
    }

    /// The value of `roothash=` on the command line.
    pub fn root_hash(&self) -> Option<&str> {
        self.cmdline.split_whitespace().find_map(|argument| argument.strip_prefix("roothash="))
    }

    /// The faults that the release carries. Unknown ones are none: a misspelt fault shows as a release that works.
    pub fn faults(&self) -> Vec<Fault> {
        let named = self.cmdline.split_whitespace().filter_map(|argument| argument.strip_prefix(FAULT_KEY));
        named.filter_map(|name| Fault::ALL.into_iter().find(|fault| fault.name() == name)).collect()
    }
}
