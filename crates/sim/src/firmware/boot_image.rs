//! What a unified kernel image says about itself: the sections `.osrel` and `.cmdline` (UAPI Unified Kernel Image
//! Specification), read by the reader that everybody uses; systemd's stub and objdump are its judges (crates/image).

use bascule_image::command_line::CommandLine;
use bascule_image::io::ReadAt;
use bascule_image::uki::{self, ReadUkiError, Uki};
use serde::{Deserialize, Serialize};

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
    pub cmdline: CommandLine,
}

impl BootImage {
    /// Reads an image. `None` if it is no PE file, or `.osrel` is missing or names nothing, or it can't be read: the loader
    /// passes over those.
    pub fn read(file: &dyn ReadAt) -> Option<Self> {
        Self::parse(file).ok().flatten()
    }

    fn parse(file: &dyn ReadAt) -> Result<Option<Self>, ReadUkiError> {
        let uki = Uki::open(file)?;
        // Whatever bytes it has: the loader does not ask for text.
        let release = uki.shown_os_release()?;
        let own = |text: Option<&str>| text.map(str::to_owned);
        let image = Self {
            sort_key: own(release.sort_key()),
            version: own(release.version()),
            os_release: release.as_str().to_owned(),
            cmdline: uki.command_line().unwrap_or_default(),
        };
        Ok(release.title().is_some().then_some(image))
    }

    /// The entries that the loader shows for a file. One that could not be read is passed over.
    pub fn shown(file: &dyn ReadAt) -> Vec<Shown> {
        let whole = Uki::open(file).ok();
        let shown = uki::shown(file).unwrap_or_default().into_iter();
        shown
            .map(|entry| {
                let own = |text: Option<&str>| text.map(str::to_owned);
                let release = &entry.os_release;
                let command_line = |uki: &Uki<'_>| uki.clone().of_profile(entry.profile).command_line().ok();
                let image = Self {
                    sort_key: own(release.sort_key()),
                    version: own(release.version()),
                    os_release: release.as_str().to_owned(),
                    cmdline: whole.as_ref().and_then(command_line).unwrap_or_default(),
                };
                let named = || entry.profile_id.clone().unwrap_or_else(|| entry.profile.to_string());
                let profile = (entry.profile > 0).then(|| (entry.profile, named()));
                Shown { profile, image, starts: whole.is_some() }
            })
            .collect()
    }

    /// The value of `roothash=` on the command line.
    pub fn root_hash(&self) -> Option<String> {
        self.cmdline.value("roothash")
    }

    /// The faults that the release carries. Unknown ones are none: a misspelt fault shows as a release that works.
    pub fn faults(&self) -> Vec<Fault> {
        let named = self.cmdline.words().filter_map(|word| word.strip_prefix(FAULT_KEY).map(str::to_owned));
        named.filter_map(|name| Fault::ALL.into_iter().find(|fault| fault.name() == name)).collect()
    }
}

/// An entry that the loader shows for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Which profile it starts and what that is called, from the second on.
    pub profile: Option<(usize, String)>,
    /// What is read of it. The command line is empty where the file is not whole.
    pub image: BootImage,
    /// Whether it is a program that the firmware would load: one that was cut short is shown like any other.
    pub starts: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny::boot_image;

    #[test]
    fn an_image_is_shown_whatever_bytes_its_os_release_has_beside_its_name() {
        let read =
            |os_release: &[u8]| BootImage::read(&boot_image(&[(".osrel", os_release), (".linux", b"no kernel")]));
        for shown in [&b"ID=acme\nNAME=caf\xe9\n"[..], b"ID=acme\nANSI_COLOR=\x1b[1m\n", b"ID=acme\n\0\nID=other\n"] {
            let image = read(shown).unwrap_or_else(|| panic!("{} is not shown", String::from_utf8_lossy(shown)));
            assert_eq!(image.sort_key.as_deref(), Some("acme"));
        }
        assert_eq!(read(b"VERSION_ID=1\n"), None);
    }

    #[test]
    fn an_image_that_is_cut_short_is_shown_and_does_not_start() {
        let whole =
            boot_image(&[(".osrel", b"ID=acme\nVERSION_ID=1\n"), (".cmdline", b"quiet"), (".linux", &[7; 900])]);
        let told = |file: &[u8]| -> Vec<(Option<String>, bool)> {
            BootImage::shown(&file.to_vec()).into_iter().map(|shown| (shown.image.version, shown.starts)).collect()
        };
        let version = Some("1".to_owned());
        assert_eq!(told(&whole), vec![(version.clone(), true)]);
        for length in [whole.len() - 1, whole.len() - 600, 512 + 22] {
            assert_eq!(told(&whole[..length]), vec![(version.clone(), false)], "{length}");
        }
        assert!(told(&whole[..512]).is_empty());
    }

    #[test]
    fn each_profile_of_an_image_is_an_entry() {
        let file = boot_image(&[
            (".osrel", b"ID=acme\nVERSION_ID=1\n"),
            (".linux", b"no kernel"),
            (".profile", b"ID=main\n"),
            (".cmdline", b"quiet"),
            (".profile", b"ID=debug\n"),
            (".cmdline", b"debug"),
            (".profile", b"TITLE=Third\n"),
        ]);
        let shown = BootImage::shown(&file);
        let told = shown.iter().map(|shown| (shown.profile.clone(), shown.image.cmdline.as_str().to_owned()));
        let profile = |number: usize, name: &str| Some((number, name.to_owned()));
        let wanted = vec![
            (None, "quiet".to_owned()),
            (profile(1, "debug"), "debug".to_owned()),
            (profile(2, "2"), String::new()),
        ];
        assert_eq!(told.collect::<Vec<_>>(), wanted);
        assert!(shown.iter().all(|shown| shown.starts));
    }
}
