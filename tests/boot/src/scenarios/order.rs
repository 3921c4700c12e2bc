//! The order of entries: what a real systemd-boot makes of two boot partitions full of images, and what our reading of its rules
//! makes of them. No machine is updated safely by an agent that thinks that the boot loader would take another entry than it
//! takes.
//!
//! systemd-boot lists what it found in the variable `LoaderEntries`, in its own order (systemd, "The Boot Loader Interface").
//! So one boot judges all of them.

use anyhow::{Context as _, ensure};
use bascule_agent::boot::text_entries;
use bascule_agent::core::boot::{BootFile, BootPartition, TextEntry, loader_order};
use bascule_agent::linux::MountedEsp;
use bascule_agent::uki;
use bascule_sim::layout::XBOOTLDR;
use bascule_sim::tiny::boot_image;

use super::BOOT;
use crate::install::Boot;
use crate::lab::{Lab, Setup};
use crate::offline;
use crate::reference::Edition;

/// The entries in systemd-boot's order.
const LISTED: &str = "/sys/firmware/efi/efivars/LoaderEntries-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Versions whose order is not that of their letters (Version Format Specification of the UAPI group).
const VERSIONS: [&str; 26] = [
    "1.0",
    "1.0-rc1",
    "1.0~rc1",
    "1.0~rc.2",
    "1.0^1",
    "1.0^20261101",
    "1.0-1",
    "1.0-10",
    "1.0-9",
    "1.0.0",
    "01.0",
    "1.0a",
    "1.0.a",
    "1.0_2",
    "1.1~",
    "1.1",
    "1.1^",
    "1.1-rc.2",
    "1.10",
    "1.9",
    "2024.10",
    "2026.01.15",
    "2026.1.2",
    "20261129",
    "a",
    "v1.0",
];

/// A file of the test, as it lies on a boot partition.
#[derive(Debug)]
struct Fake {
    partition: BootPartition,
    name: String,
    bytes: Vec<u8>,
}

fn image(os_release: &str) -> Vec<u8> {
    boot_image(&[(".osrel", os_release.as_bytes()), (".cmdline", b"quiet"), (".linux", b"no kernel")])
}

/// All files, half of them on each partition.
fn fakes() -> Vec<Fake> {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |name: String, os_release: &str| files.push((name, image(os_release)));
    for (number, version) in VERSIONS.iter().enumerate() {
        // The version decides; the names are in another order.
        let text = format!("ID=acme\nPRETTY_NAME=\"Acme {version}\"\nIMAGE_VERSION={version}\n");
        add(format!("acme_{:02}.efi", number * 7 % 26), &text);
        // Without a sort key the name decides.
        add(format!("plain_{version}.efi"), "NAME=Plain\n");
    }
    for (name, os_release) in [
        ("key-upper.efi", "IMAGE_ID=Zulu\nNAME=x\nIMAGE_VERSION=1\n"),
        ("key-lower.efi", "IMAGE_ID=zulu\nNAME=x\nIMAGE_VERSION=1\n"),
        ("key-early.efi", "IMAGE_ID=aaa\nNAME=x\n"),
        ("key-longer.efi", "IMAGE_ID=acme-os\nNAME=x\nIMAGE_VERSION=9\n"),
        ("key-image.efi", "ID=acme\nIMAGE_ID=acme\nNAME=x\nIMAGE_VERSION=3\nVERSION_ID=1\n"),
        ("field-version.efi", "ID=fields\nNAME=x\nVERSION=\"12 (bookworm)\"\nVERSION_ID=99\nBUILD_ID=99\n"),
        ("field-id.efi", "ID=fields\nNAME=x\nVERSION_ID=13\nBUILD_ID=1\n"),
        ("field-build.efi", "ID=fields\nNAME=x\nBUILD_ID=11\n"),
        ("field-none.efi", "ID=fields\nNAME=x\n"),
        ("untitled.efi", "VERSION_ID=7\n"),
        // Bytes that are no text to us and do not concern the boot loader.
        ("lines-of-dos.efi", "ID=control\r\nNAME=x\r\nVERSION_ID=1\r\n"),
        ("lines-of-old.efi", "ID=control\rNAME=x\rVERSION_ID=2\r"),
        ("colour.efi", "ANSI_COLOR=\x1b[1m\nID=control\nNAME=x\nVERSION_ID=3\n"),
        ("tabs.efi", "\tID=control\t\nNAME=x\n VERSION_ID=4 \n"),
        ("behind-the-end.efi", "ID=control\nNAME=x\nVERSION_ID=5\n\0\nVERSION_ID=0\n"),
        ("QUOTED_Name.EFI", "ID='quoted'\nNAME=\"x\"\nVERSION_ID=\"1.0\"\n"),
        ("counted_1+3.efi", "ID=counted\nNAME=x\nVERSION_ID=1\n"),
        ("counted_1+3-0.efi", "ID=counted\nNAME=x\nVERSION_ID=1\n"),
        ("counted_1+2-1.efi", "ID=counted\nNAME=x\nVERSION_ID=1\n"),
        ("counted_1.efi", "ID=counted\nNAME=x\nVERSION_ID=1\n"),
        ("counted_2+1-2.efi", "ID=counted\nNAME=x\nVERSION_ID=2\n"),
        ("counted_3+0-3.efi", "ID=counted\nNAME=x\nVERSION_ID=3\n"),
        ("counted_4+0.efi", "ID=counted\nNAME=x\nVERSION_ID=4\n"),
        ("counted_5+x.efi", "ID=counted\nNAME=x\nVERSION_ID=5\n"),
        ("aaa_9+0-1.efi", "ID=aaa\nNAME=x\nVERSION_ID=9\n"),
        // Not shown by the boot loader.
        (".hidden.efi", "ID=aaa\nNAME=x\nVERSION_ID=9\n"),
        ("auto-own.efi", "ID=aaa\nNAME=x\nVERSION_ID=9\n"),
        ("bascule-0123.tmp", "ID=aaa\nNAME=x\nVERSION_ID=9\n"),
    ] {
        add(name.to_owned(), os_release);
    }
    files.push(("text.efi".to_owned(), b"no program".to_vec()));
    files.push(("nothing.efi".to_owned(), Vec::new()));
    files.push(("headless.efi".to_owned(), boot_image(&[(".linux", b"no kernel")])));
    // Cut short: behind the os-release, in the middle of it, before it. Only the last is not shown.
    let whole = image("ID=cut\nNAME=x\nVERSION_ID=12\n");
    for (name, length) in
        [("cut_1.efi", whole.len() - 1), ("cut_2.efi", 1024), ("cut_3.efi", 512 + 26), ("cut_4.efi", 512)]
    {
        files.push((name.to_owned(), whole.iter().copied().take(length).collect()));
    }
    // Each profile is an entry, named by number or by name, and sorted by an os-release of its own where it has one.
    files.push((
        "profiles.efi".to_owned(),
        boot_image(&[
            (".osrel", b"ID=profiles\nNAME=x\nVERSION_ID=1\n"),
            (".cmdline", b"quiet"),
            (".linux", b"no kernel"),
            (".profile", b"ID=main\n"),
            (".profile", b"ID=second\n"),
            (".profile", b"TITLE=Third\n"),
            (".profile", b"ID=newer\n"),
            (".osrel", b"ID=profiles\nNAME=x\nVERSION_ID=2\n"),
        ]),
    ));
    let mut fakes: Vec<Fake> = files
        .into_iter()
        .enumerate()
        .map(|(number, (name, bytes))| {
            let partition = if number % 2 == 0 { BootPartition::Esp } else { BootPartition::Xbootldr };
            Fake { partition, name, bytes }
        })
        .collect();
    // One name on both.
    for partition in [BootPartition::Esp, BootPartition::Xbootldr] {
        let bytes = image("ID=twice\nNAME=x\nVERSION_ID=1\n");
        fakes.push(Fake { partition, name: "twice_1.efi".to_owned(), bytes });
    }
    fakes
}

/// What entries of type #1 name, on both partitions.
const PROGRAM: &str = "EFI/acme/linux";

/// Entries of type #1: their names and what is in them.
const TEXTS: [(&str, &str); 20] = [
    ("text-a.conf", "sort-key acme\nversion 1.0\nlinux /EFI/acme/linux\n"),
    ("text-b.conf", "sort-key acme\nversion 1.05\nefi /EFI/acme/linux\n"),
    ("text-backslash.conf", "sort-key acme\nversion 2.1\nlinux \\EFI\\acme\\linux\n"),
    ("machine-b.conf", "sort-key acme\nmachine-id bbbb\nversion 9\nlinux /EFI/acme/linux\n"),
    ("machine-a.conf", "sort-key acme\nmachine-id aaaa\nversion 3\nlinux /EFI/acme/linux\n"),
    ("text-no-key.conf", "version 99\nlinux /EFI/acme/linux\n"),
    ("text-nothing-but.conf", "linux /EFI/acme/linux\n"),
    ("Text-Upper.CONF", "sort-key Upper\nlinux /efi/ACME/linux\n"),
    ("text-quoted.conf", "  sort-key \t\"quoted\"  \nversion \"1.5\"\r\nlinux /EFI/acme/linux\n"),
    ("text-last-wins.conf", "sort-key a\nsort-key lastly\nversion 1\nversion 2\nlinux /none\nlinux /EFI/acme/linux\n"),
    ("text-comment.conf", "#sort-key aaa\n # sort-key aaa\nsort-key comment\nlinux /EFI/acme/linux"),
    ("text_1+3-0.conf", "sort-key texts\nversion 1\nlinux /EFI/acme/linux\n"),
    ("text_2+0-3.conf", "sort-key aaa\nversion 2\nlinux /EFI/acme/linux\n"),
    ("text_3+2.conf", "sort-key texts\nversion 1\nlinux /EFI/acme/linux\n"),
    // Passed over from systemd 258 on, which also knows `uki`: the boot loader of the reference OS is older.
    ("text-two.conf", "sort-key aaa\nlinux /EFI/acme/linux\nefi /EFI/acme/linux\n"),
    // Not shown by the boot loader.
    ("text-gone.conf", "sort-key aaa\nlinux /EFI/acme/none\n"),
    ("text-empty.conf", "sort-key aaa\ntitle Empty\n"),
    ("text-other.conf", "sort-key aaa\narchitecture aa64\nlinux /EFI/acme/linux\n"),
    ("auto-text.conf", "sort-key aaa\nlinux /EFI/acme/linux\n"),
    ("text.cfg", "sort-key aaa\nlinux /EFI/acme/linux\n"),
];

/// The files that entries of type #1 need, on one of the partitions: each second entry is there.
fn text_files(partition: BootPartition) -> Vec<(String, Vec<u8>)> {
    let own = |number: usize| number.is_multiple_of(2) == (partition == BootPartition::Esp);
    let texts = TEXTS.iter().enumerate().filter(|(number, _)| own(*number));
    let texts = texts.map(|(_, (name, text))| (format!("loader/entries/{name}"), text.as_bytes().to_vec()));
    std::iter::once((PROGRAM.to_owned(), b"no kernel".to_vec())).chain(texts).collect()
}

/// What the agent reads of them, from a folder that stands for the mounted partition. FAT knows no case.
fn texts_seen(partition: BootPartition) -> anyhow::Result<Vec<TextEntry>> {
    let folder = tempfile::tempdir()?;
    for (path, bytes) in text_files(partition) {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().context("a path with a folder")?)?;
        std::fs::write(path, bytes)?;
    }
    std::fs::create_dir_all(folder.path().join("efi/ACME"))?;
    std::fs::write(folder.path().join("efi/ACME/linux"), b"no kernel")?;
    Ok(text_entries(&MountedEsp::known(folder.path().to_owned()), partition))
}

/// A file as the agent sees it.
fn seen(fake: &Fake) -> anyhow::Result<BootFile> {
    let content = uki::read(&fake.bytes).with_context(|| format!("reading {}", fake.name))?;
    let (name, size) = (fake.name.clone(), fake.bytes.len() as u64);
    Ok(BootFile { partition: fake.partition, name, size, content, digest: None, start: None })
}

/// Boots a machine with all these files on two partitions, and compares the orders.
///
/// # Errors
/// They differ, or the machine does not boot what `loader.conf` pins.
pub async fn run(lab: &Lab) -> anyhow::Result<()> {
    let old = lab.release(Edition::OLD)?;
    let mut fakes = fakes();
    let on = |fakes: &[Fake], wanted: BootPartition| -> Vec<(String, Vec<u8>)> {
        let files = fakes.iter().filter(|fake| fake.partition == wanted);
        let files = files.map(|fake| (format!("{}/{}", offline::ENTRIES, fake.name), fake.bytes.clone()));
        files.chain(text_files(wanted)).collect()
    };
    let mut files = on(&fakes, BootPartition::Esp);
    // Only one of them is a system.
    files.push(("loader/loader.conf".to_owned(), format!("timeout 0\ndefault {}\n", old.entry()).into_bytes()));
    let setup = Setup { boot: Boot { xbootldr: true, files }, ..Setup::default() };
    let mut machine = lab.host_of("order", &old, &[], &[], &setup)?;
    offline::write_files(machine.disk().path(), XBOOTLDR, &on(&fakes, BootPartition::Xbootldr))?;
    machine.power_on()?;
    machine.wait_until_up(0, BOOT).await?;
    let command_line = machine.run("cat /proc/cmdline", BOOT).await?;
    ensure!(command_line.contains(&old.root_hash.to_string()), "another system runs: {command_line}");
    let dump = machine.run(&format!("od -An -v -tx1 {LISTED}"), BOOT).await?;
    let theirs = entries(&dump)?;

    let bytes = std::fs::read(&old.uki).with_context(|| format!("reading {}", old.uki.display()))?;
    // It was installed first. Equal entries are in the order in which the loader read them.
    fakes.insert(0, Fake { partition: BootPartition::Xbootldr, name: old.entry(), bytes });
    let mut files = fakes.iter().map(seen).collect::<anyhow::Result<Vec<_>>>()?;
    files.sort_by_key(|file| file.partition);
    let mut texts = texts_seen(BootPartition::Esp)?;
    texts.extend(texts_seen(BootPartition::Xbootldr)?);
    let ours = loader_order(&files, &texts);
    crate::say(&format!("order: systemd-boot lists {} entries", theirs.len()));
    ensure!(theirs.len() > 75, "systemd-boot lists only {theirs:?}");
    let difference = theirs.iter().zip(&ours).position(|(their, own)| their != own);
    ensure!(
        ours == theirs,
        "the orders differ at place {difference:?}\nsystemd-boot: {}\nours:         {}",
        theirs.join(" "),
        ours.join(" ")
    );
    machine.shut_down(BOOT).await?;
    machine.discard();
    Ok(())
}

/// The names in a dump of the variable: its attributes in four bytes, then UTF-16 with a NUL behind each name.
fn entries(dump: &str) -> anyhow::Result<Vec<String>> {
    let bytes = dump.split_whitespace().map(|byte| u8::from_str_radix(byte, 16));
    let bytes = bytes.collect::<Result<Vec<u8>, _>>().with_context(|| format!("od said {dump}"))?;
    let (units, _) = bytes.get(4..).context("an empty variable")?.as_chunks::<2>();
    let units: Vec<u16> = units.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
    let names = units.split(|unit| *unit == 0).map(String::from_utf16_lossy);
    // The boot loader adds entries of its own, such as the firmware's set-up.
    Ok(names.filter(|name| !name.is_empty() && !name.starts_with("auto-")).collect())
}
