//! The steps, and what each of them answered.

use std::io;

use bascule_agent::host::{BOOT_LOADER_VENDOR, Disk, Esp, Extent, Firmware, StateStore};
use bascule_image::digest::Sha256;

/// Where the contract's files lie.
pub(crate) const FOLDER: &str = "EFI/Linux";
/// A boot image that is there from the beginning.
pub(crate) const OLD: &str = "EFI/Linux/old.efi";
pub(crate) const PART: &str = "EFI/Linux/bascule-new.part";
pub(crate) const NEW: &str = "EFI/Linux/acme-os_1.1+3-0.efi";
/// A file of the state folder, and what it holds one after the other.
pub(crate) const JOURNAL: &str = "journal.json";
pub(crate) const JOURNALS: [(u8, usize); 2] = [(5, 700), (6, 300)];
/// The partition that is written.
pub(crate) const SLOT: (u32, Extent) = (2, Extent { start: 1 << 20, length: 1 << 20 });

/// Seeded bytes.
pub(crate) fn content(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed) ^ (at >> 8) as u8).collect()
}

/// A step and its answer: a text for what it gave, or the kind of its error. Nothing follows an error, as in the agent.
pub(crate) type Steps = Vec<(String, Result<String, io::ErrorKind>)>;

pub(crate) struct Walk(Steps);

impl Walk {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    fn step(&mut self, name: &str, run: impl FnOnce() -> io::Result<String>) -> &mut Self {
        if self.0.last().is_none_or(|(_, answer)| answer.is_ok()) {
            self.0.push((name.to_owned(), run().map_err(|error| error.kind())));
        }
        self
    }

    pub(crate) fn done(self) -> Steps {
        self.0
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::of(bytes).to_string()
}

fn whole(esp: &dyn Esp, path: &str) -> io::Result<String> {
    let file = esp.open(path)?;
    let mut bytes = vec![0; file.size()? as usize];
    file.read_at(&mut bytes, 0)?;
    Ok(digest(&bytes))
}

fn listed(esp: &dyn Esp) -> io::Result<String> {
    Ok(format!("{:?}", esp.list(FOLDER)?))
}

/// A step on a boot partition.
pub(crate) type EspStep = (&'static str, fn(&dyn Esp) -> io::Result<String>);

/// What staging, arming, clearing away and updating the boot loader do to a boot partition. `OLD` is there.
pub(crate) const ESP_STEPS: [EspStep; 20] = [
    ("measure", |esp| esp.space().map(|space| (space.total > 0 && space.free <= space.total).to_string())),
    ("read-only", |esp| esp.is_read_only().map(|read_only| read_only.to_string())),
    ("list", listed),
    ("open old", |esp| whole(esp, OLD)),
    ("read old", |esp| esp.read(OLD, 1 << 20).map(|bytes| digest(&bytes))),
    ("write", |esp| esp.write(PART, &mut content(7, 3000).as_slice()).map(|()| String::new())),
    ("sync written", synced),
    ("open written", |esp| whole(esp, PART)),
    ("rename", |esp| esp.rename(PART, NEW).map(|()| String::new())),
    ("sync renamed", synced),
    ("write start", |esp| esp.write_start(NEW, b"another start").map(|()| String::new())),
    ("sync start", synced),
    ("open new", |esp| whole(esp, NEW)),
    ("write another", |esp| esp.write(PART, &mut content(5, 2500).as_slice()).map(|()| String::new())),
    ("sync another", synced),
    ("replace", |esp| esp.replace(PART, NEW).map(|()| String::new())),
    ("open replaced", |esp| whole(esp, NEW)),
    ("remove old", |esp| esp.remove(OLD).map(|()| String::new())),
    ("sync removed", synced),
    ("list at the end", listed),
];

fn synced(esp: &dyn Esp) -> io::Result<String> {
    esp.sync().map(|()| String::new())
}

/// All of them, until one fails.
pub(crate) fn esp(esp: &dyn Esp) -> Steps {
    let mut walk = Walk::new();
    for (name, run) in ESP_STEPS {
        walk.step(name, || run(esp));
    }
    walk.done()
}

/// What writing a slot and its table entry does to a disk.
pub(crate) fn disk(disk: &dyn Disk) -> Steps {
    let (number, extent) = SLOT;
    let data = content(9, 64 << 10);
    let sector = content(3, 4096);
    let mut buffer = vec![0_u8; (64 << 10) + 4096];
    let aligned = buffer.as_ptr().align_offset(4096);
    let mut walk = Walk::new();
    walk.step("measure", || disk.geometry().map(|geometry| geometry.length.to_string()))
        .step("write table", || disk.write(4096, &sector).map(|()| String::new()))
        .step("flush table", || disk.flush().map(|()| String::new()))
        .step("read table", || {
            let mut read = vec![0; 8192];
            disk.read(0, &mut read).map(|()| digest(&read))
        })
        .step("write slot", || {
            let sink = disk.partition(number, extent)?;
            sink.write_at(&data, 4096)?;
            sink.write_zeros(4096 + 8192, 4096)?;
            sink.flush()?;
            sink.size().map(|size| size.to_string())
        })
        .step("read past the cache", || {
            let medium = disk.partition_direct(number, extent)?;
            let window = &mut buffer[aligned..aligned + (64 << 10)];
            medium.read_at(window, 4096)?;
            Ok(digest(window))
        })
        .step("read through the cache", || {
            let base = disk.partition_read(number, extent)?;
            let mut read = vec![0; 10_000];
            base.read_at(&mut read, 5000)?;
            Ok(digest(&read))
        });
    walk.done()
}

/// What looking at the boot loader does.
pub(crate) fn firmware(firmware: &dyn Firmware) -> Steps {
    let shown = |value: Option<Vec<u8>>| format!("{value:?}");
    let mut walk = Walk::new();
    walk.step("set", || firmware.variable("LoaderInfo").map(shown))
        .step("by vendor", || firmware.variable_of(BOOT_LOADER_VENDOR, "LoaderInfo").map(shown))
        .step("of another vendor", || firmware.variable_of(bascule_secure_boot::GLOBAL, "SecureBoot").map(shown))
        .step("not set", || firmware.variable("LoaderEntryDefault").map(shown));
    walk.done()
}

/// What the agent does with a file of its state folder.
pub(crate) fn state(state: &dyn StateStore) -> Steps {
    let [first, second] = JOURNALS.map(|(seed, length)| content(seed, length));
    let shown = |found: Option<Vec<u8>>| found.map_or_else(|| "none".to_owned(), |bytes| digest(&bytes));
    let read = || state.read(JOURNAL, 1 << 10).map(shown);
    let mut walk = Walk::new();
    walk.step("write", || state.write(JOURNAL, &first).map(|()| String::new()))
        .step("read written", read)
        .step("replace", || state.write(JOURNAL, &second).map(|()| String::new()))
        .step("read replaced", read)
        .step("remove", || state.remove(JOURNAL).map(|()| String::new()))
        .step("read removed", read);
    walk.done()
}

/// Holds what happened with a fault against what happens without.
pub(crate) fn hold(what: &str, good: &Steps, found: &Steps, kinds: &[io::ErrorKind]) -> bool {
    let told = format!("{what}:\n{found:#?}");
    for ((name, answer), (wanted, expected)) in found.iter().zip(good) {
        assert_eq!(name, wanted, "{told}");
        match answer {
            Ok(_) => assert_eq!(answer, expected, "another answer than without the fault, {told}"),
            Err(kind) => assert!(kinds.contains(kind), "the error says something else than what happened, {told}"),
        }
    }
    let failed = found.last().is_some_and(|(_, answer)| answer.is_err());
    assert!(failed || found.len() == good.len(), "{told}");
    failed
}
