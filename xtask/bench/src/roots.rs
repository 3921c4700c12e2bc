//! The pairs of images: root trees of container hosts made of Debian packages, and EROFS images of them.
//!
//! (a) a release's point release → the same with all updates, the kernel's among them; (b) the same updates without the
//! kernel's; (c) that → the next Debian release with its updates. The mirror is whatever apt on this machine uses.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::measure::command;

/// Debian packages with the tools that are compared or used.
pub(crate) const TOOLS: &str = "mmdebstrap erofs-utils zstd xdelta3 casync curl time";

/// A container host, as vendors build them.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,udev,linux-image-amd64,containerd,runc,openssh-server,curl,ca-certificates,\
    nftables,iptables,iproute2,ethtool,conntrack,socat,ebtables,chrony,lvm2,mdadm,nfs-common,open-iscsi,multipath-tools,\
    xfsprogs,e2fsprogs,dosfstools,cryptsetup-bin,python3,less,jq,rsync,sudo,zstd,xz-utils,gnupg";
/// What such an image does not carry.
const EXCLUDED: [&str; 4] = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];
/// What is the build's own and would differ by chance. Kernel and initrd are in the UKI, not in the image.
const CLEARED: [&str; 5] = ["boot", "var/cache", "var/log", "var/lib/apt/lists", "etc/machine-id"];
const OLD: &str = "bookworm";
const NEXT: &str = "trixie";

/// The names of the pairs.
pub(crate) const PAIRS: [&str; 3] = ["a", "b", "c"];

/// Two images, the first the base of the second.
pub(crate) struct Pair {
    pub(crate) name: &'static str,
    pub(crate) meaning: &'static str,
    pub(crate) base: PathBuf,
    pub(crate) image: PathBuf,
}

impl Pair {
    /// Packages of the newer tree that the older one has not in the same version, and all packages of the newer one. The
    /// kernel's are left out where its files were taken from the older tree.
    pub(crate) fn packages(&self) -> Result<(usize, usize)> {
        let list = |image: &Path| -> Result<BTreeSet<String>> {
            let file = image.with_extension("").join("var/lib/dpkg/status");
            let status = fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))?;
            let packages = status.split("\n\n").filter(|package| !package.trim().is_empty());
            let packages = packages.filter(|text| self.name != "b" || !text.starts_with("Package: linux-image"));
            let kept = |line: &&str| line.starts_with("Package: ") || line.starts_with("Version: ");
            Ok(packages.map(|package| package.lines().filter(kept).collect::<Vec<_>>().join(" ")).collect())
        };
        let (old, new) = (list(&self.base)?, list(&self.image)?);
        Ok((new.difference(&old).count(), new.len()))
    }
}

/// One of the three pairs in `work`; trees and images that are there already are kept.
pub(crate) fn pair(work: &Path, name: &str) -> Result<Pair> {
    let image = |name: &str| -> Result<PathBuf> {
        let image = work.join(format!("{name}.erofs"));
        if !image.exists() {
            let root = tree(work, name)?;
            eprintln!("image {name}");
            let part = work.join(format!("{name}.part"));
            let uuid = "-Uba5c01e0-0000-4000-8000-000000000001";
            command("mkfs.erofs", ["-T1700000000", uuid, "--quiet"], [&part, &root])?;
            fs::rename(part, &image)?;
        }
        Ok(image)
    };
    let (name, meaning, base, new) = match name {
        "a" => ("a", "updates with a kernel", "old", "new"),
        "b" => ("b", "updates without a kernel", "old", "same-kernel"),
        "c" => ("c", "distribution upgrade", "new", "next"),
        _ => bail!("there is no pair {name}"),
    };
    Ok(Pair { name, meaning, base: image(base)?, image: image(new)? })
}

fn tree(work: &Path, name: &str) -> Result<PathBuf> {
    let root = work.join(name);
    if root.exists() {
        return Ok(root);
    }
    let part = work.join(format!("{name}.tree-part"));
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    if name == "same-kernel" {
        let (new, old) = (tree(work, "new")?, tree(work, "old")?);
        command("cp", ["-a"], [&new, &part])?;
        let modules = part.join("usr/lib/modules");
        fs::remove_dir_all(&modules)?;
        command("cp", ["-a"], [&old.join("usr/lib/modules"), &modules])?;
    } else {
        let suites: &[String] = &match name {
            "old" => vec![OLD.to_owned()],
            "new" => vec![OLD.to_owned(), format!("{OLD}-updates"), format!("{OLD}-security")],
            _ => vec![NEXT.to_owned(), format!("{NEXT}-updates"), format!("{NEXT}-security")],
        };
        eprintln!("tree {name}, from {}", suites.join(", "));
        let mirrors = Mirrors::of_this_machine()?;
        let mut arguments = vec!["--quiet".to_owned(), "--mode=root".to_owned(), "--variant=minbase".to_owned()];
        arguments.extend(EXCLUDED.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
        arguments.push(format!("--include={PACKAGES}"));
        arguments.push(suites.first().cloned().unwrap_or_default());
        arguments.push(part.display().to_string());
        arguments.extend(suites.iter().map(|suite| mirrors.source_line(suite)));
        command("mmdebstrap", arguments, [] as [&Path; 0])?;
    }
    for path in CLEARED {
        let path = part.join(path);
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
            fs::create_dir(&path)?;
        } else if path.exists() {
            fs::remove_file(&path)?;
        }
    }
    fs::rename(&part, &root)?;
    Ok(root)
}

/// Where this machine's apt gets Debian from.
struct Mirrors {
    main: Stanza,
    security: Stanza,
}

#[derive(Clone, Default)]
struct Stanza {
    uri: String,
    suites: Vec<String>,
    signed_by: String,
}

impl Mirrors {
    fn of_this_machine() -> Result<Self> {
        let release = fs::read_to_string("/etc/os-release")?;
        let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        let codename = codename.context("/etc/os-release names no VERSION_CODENAME; run this on Debian")?;
        let mut stanzas = Vec::new();
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        for entry in fs::read_dir("/etc/apt/sources.list.d")? {
            files.push(entry?.path());
        }
        files.sort();
        for file in files.iter().filter(|file| file.exists()) {
            let text = fs::read_to_string(file)?;
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("sources") => stanzas.extend(text.split("\n\n").filter_map(deb822)),
                Some("list") => stanzas.extend(text.lines().filter_map(one_line)),
                _ => {}
            }
        }
        let with =
            |suite: &str| stanzas.iter().find(|stanza| stanza.suites.iter().any(|found| found == suite)).cloned();
        let main = with(codename).with_context(|| format!("apt has no source with suite {codename}"))?;
        let security = format!("{codename}-security");
        let security = with(&security).with_context(|| format!("apt has no source with suite {security}"))?;
        Ok(Self { main, security })
    }

    fn source_line(&self, suite: &str) -> String {
        let stanza = if suite.ends_with("-security") { &self.security } else { &self.main };
        let signed_by = if stanza.signed_by.is_empty() {
            "/usr/share/keyrings/debian-archive-keyring.gpg"
        } else {
            &stanza.signed_by
        };
        format!("deb [signed-by={signed_by}] {} {suite} main", stanza.uri)
    }
}

/// One stanza of a `.sources` file (sources.list(5), deb822 style).
fn deb822(text: &str) -> Option<Stanza> {
    let field = |name: &str| {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let line = lines.filter_map(|line| line.split_once(':')).find(|(key, _)| key.eq_ignore_ascii_case(name));
        line.map(|(_, value)| value.trim().to_owned())
    };
    let uri = field("URIs")?.split_whitespace().next()?.to_owned();
    let suites = field("Suites")?.split_whitespace().map(str::to_owned).collect();
    Some(Stanza { uri, suites, signed_by: field("Signed-By").unwrap_or_default() })
}

/// One line of a `.list` file (sources.list(5), one-line style).
fn one_line(line: &str) -> Option<Stanza> {
    let rest = line.trim().strip_prefix("deb ")?.trim();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace();
    let uri = words.next()?.to_owned();
    Some(Stanza { uri, suites: vec![words.next()?.to_owned()], signed_by: String::new() })
}

/// Refuses to start without the tools, and says how to get them.
pub(crate) fn check_tools() -> Result<()> {
    let programs = ["mmdebstrap", "mkfs.erofs", "zstd", "xdelta3", "casync", "curl"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = |program: &&str| !std::env::split_paths(&path).any(|folder| folder.join(program).exists());
    if let Some(program) = programs.iter().copied().find(missing) {
        bail!("{program} is not installed; apt-get install {TOOLS}");
    }
    ensure!(Path::new("/usr/bin/time").exists(), "GNU time is not installed; apt-get install {TOOLS}");
    Ok(())
}
