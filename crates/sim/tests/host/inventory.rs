//! Boot partitions as they really are: with files of other people, files that can't be read, leftovers and doubles. Over all
//! of them, nothing that the agent did not place is touched, the image that runs stays, the guard never takes a trial for
//! none, and a trial that is good is committed. With any one safeguard left out, some of them go wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bascule_agent::core::boot::{BootPartition, PlacedImage, Safeguard};
use bascule_agent::core::{JOURNAL_FILE, Journal};
use bascule_agent::host::StateStore as _;
use bascule_api::NodeError;
use bascule_image::digest::Sha256;
use bascule_sim::disk::Disk;
use bascule_sim::esp::Esp;
use bascule_sim::firmware::BootLoader::SystemdBoot;
use bascule_sim::firmware::boot_image::Fault;
use bascule_sim::host::releases::reference;
use bascule_sim::host::{Failing, SimReleases, SimState};
use bascule_sim::layout::{ESP, Sizes, Table, XBOOTLDR};
use bascule_sim::tiny::{TinyRelease, boot_image};
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::operator::{Operator, Verdict};
use crate::power_cuts::world;
use crate::support::{installed, installed_on, release};
use crate::world::{OneNode, Wrong};

const WORLDS: u64 = 250;
const EIO: i32 = 5;
const ENOMEM: i32 = 12;

fn esp(disk: &Disk) -> Esp {
    boot_partition(disk, ESP)
}

fn boot_partition(disk: &Disk, number: u32) -> Esp {
    Esp::new(Table::read(disk).unwrap().part(number).unwrap())
}

/// An image of somebody else's.
fn foreign(sort_key: &str, version: &str, command_line: &str) -> Vec<u8> {
    let os_release = format!("ID={sort_key}\nIMAGE_ID={sort_key}\nIMAGE_VERSION={version}\nPRETTY_NAME=x\n");
    boot_image(&[(".osrel", os_release.as_bytes()), (".cmdline", command_line.as_bytes()), (".linux", &[7; 900])])
}

/// The same with two profiles.
fn with_profiles(sort_key: &str, version: &str) -> Vec<u8> {
    let os_release = format!("IMAGE_ID={sort_key}\nIMAGE_VERSION={version}\n");
    let profile = (".profile", &b"TITLE=x\n"[..]);
    boot_image(&[(".osrel", os_release.as_bytes()), (".linux", &[7; 900]), profile, profile])
}

/// A host on which 1.0 runs and 1.1 is wanted, with boot partitions that many hands were at.
struct Node {
    world: OneNode,
    /// What is none of the agent's business: the partition, path and content.
    foreign: Vec<(u32, String, Vec<u8>)>,
    /// What a file system check left of an image that the agent was removing: the partition and path.
    leftover: Option<(u32, String)>,
    /// Something decides about the next boot that makes arming useless, or may, as far as the agent can see.
    held: bool,
}

/// Files that others put there, by their paths.
fn of_others(old: &TinyRelease) -> Vec<(&'static str, Vec<u8>)> {
    let debug = foreign("acme-os", "1.0", &format!("roothash={} ro debug systemd.log_level=debug", old.root_hash));
    let rescue = b"sort-key acme-os\nversion 0.1\nuki /EFI/Linux/acme-os_recovery.efi\n".to_vec();
    vec![
        // Case 19: the same root hash with another command line, and a recovery image without any.
        ("EFI/Linux/acme-os-1.0-debug.efi", debug),
        ("EFI/Linux/acme-os_recovery.efi", foreign("acme-os", "0.1", "rescue")),
        ("EFI/Linux/other.efi", foreign("other-os", "77", "quiet")),
        ("EFI/Linux/acme-os_0.9.efi", foreign("acme-os", "0.9", &format!("roothash={}", Sha256::of(b"long gone")))),
        ("EFI/Linux/acme-os_5.efi", b"MZ, and no image at all".repeat(40)),
        ("EFI/Linux/memtest.efi", vec![0x4d; 700]),
        ("EFI/Linux/caf\u{fffd}.efi", foreign("zulu", "1", "quiet")),
        ("EFI/Linux/notes.txt", b"do not touch".to_vec()),
        // Of type #1, behind what runs.
        ("loader/entries/rescue.conf", rescue),
        ("loader/entries/no-program.conf", b"sort-key aaa\nlinux /EFI/none\n".to_vec()),
    ]
}

fn node(seed: u64, without: Option<Safeguard>) -> Node {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let old = release("1.0");
    let known = Arc::new(vec![old.clone(), release("1.1")]);
    let fetched = Arc::new(AtomicUsize::new(0));
    let counter = fetched.clone();
    let releases = SimReleases::of(known.iter()).noting(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    // Half of them have their entries on an XBOOTLDR.
    let two = random.random_bool(0.5);
    let sizes = Sizes { xbootldr: if two { 1200 << 10 } else { 0 }, ..Sizes::tiny() };
    let operator = Operator::new(reference(&known[1]).unwrap(), Verdict::Commit);
    let disk = installed_on(sizes, SystemdBoot, &old);
    let mut world = OneNode::new(SystemdBoot, disk, operator, known, Arc::new(releases));
    world.fetched = fetched;
    world.config.without = without;
    world.ask_guard = true;
    let mut home = if two { XBOOTLDR } else { ESP };
    let partitions: &[u32] = if two { &[ESP, XBOOTLDR] } else { &[ESP] };
    let on = |number: u32| boot_partition(&world.hardware.disk, number);
    for number in partitions {
        on(*number).create_directory("loader/entries").unwrap();
    }
    let mut others: Vec<(u32, String, Vec<u8>)> = Vec::new();
    for (path, content) in of_others(&old) {
        if random.random_bool(0.4) {
            others.push((*partitions.choose(&mut random).unwrap(), path.to_owned(), content));
        }
    }
    for (number, path, content) in &others {
        on(*number).write(path, content).unwrap();
    }
    let own = "EFI/Linux/acme-os-1.0.efi";
    let mirrored = two && random.random_bool(0.3);
    if mirrored {
        // Of two that are equal the boot loader takes the ESP's, and what was installed is the mirror.
        home = ESP;
        on(ESP).write(own, &old.uki).unwrap();
        others.push((XBOOTLDR, own.to_owned(), old.uki.clone()));
    } else if random.random_bool(0.1) && !others.iter().any(|(_, path, _)| path.contains("-debug")) {
        // Power loss tore the long name. (Of the same version, the name decides: the debug image would be booted.)
        on(home).rename(own, "EFI/Linux/ACME-O~7.EFI").unwrap();
    }
    // What an agent leaves that power loss stopped.
    for (name, content) in [
        ("bascule-0123456789abcdef.tmp", vec![1; 3000]),
        ("bascule-fedcba9876543210.part", vec![2; 800]),
        ("acme-os-1.0_2.efi", old.uki.clone()),
    ] {
        if random.random_bool(0.2) {
            on(home).write(&format!("EFI/Linux/{name}"), &content).unwrap();
        }
    }
    let pinned = random.random_bool(0.15);
    if pinned {
        let pin = *["default acme-os-1.0*", "default @saved", "preferred acme-os-1.0.efi"].choose(&mut random).unwrap();
        on(ESP).write("loader/loader.conf", format!("timeout 0\n{pin}\n").as_bytes()).unwrap();
    }
    for number in partitions {
        on(*number).sync().unwrap();
    }
    // What can't be read, once or more often; files of others also for ever.
    let mut names: Vec<&str> = vec!["acme-os-1.0.efi", "acme-os-1.0+", "acme-os_1.1", "bascule-", "loader.conf"];
    names.extend(["LoaderFeatures", "LoaderBootCountPath", "LoaderEntrySelected", "LoaderDevicePartUUID"]);
    let name_of = |path: &'static str| path.rsplit('/').next().unwrap_or(path);
    let foreign_names: Vec<&str> = of_others(&old).into_iter().map(|(path, _)| name_of(path)).collect();
    names.extend(&foreign_names);
    for name in names {
        if random.random_bool(0.25) {
            let is_other = foreign_names.contains(&name);
            let times = if is_other && random.random_bool(0.3) { u64::MAX } else { random.random_range(1..5) };
            let error = if random.random_bool(0.5) { EIO } else { ENOMEM };
            let skip = random.random_range(0..12);
            world.unreadable.fail(name, Failing { skip, times, error });
        }
    }
    // Longer than the agent reads: it may boot anything, and nothing is armed beside it.
    let beyond = random.random_bool(0.05);
    if beyond {
        let (path, content) = ("EFI/Linux/zulu_9.efi", foreign("zulu", "9", &"x".repeat(3000)));
        boot_partition(&world.hardware.disk, ESP).write(path, &content).unwrap();
        boot_partition(&world.hardware.disk, ESP).sync().unwrap();
        others.push((ESP, path.to_owned(), content));
    }
    // What is cut short, and further profiles of what is whole: entries like any other, here behind both releases.
    let cut = |sort_key, version| {
        let whole = foreign(sort_key, version, "quiet");
        whole[..whole.len() - 700].to_vec()
    };
    for (path, content) in [
        ("EFI/Linux/acme-os_0.5.efi", cut("acme-os", "0.5")),
        ("EFI/Linux/zulu_2.efi", cut("zulu", "2")),
        ("EFI/Linux/profiles.efi", with_profiles("zulu", "3")),
    ] {
        if random.random_bool(0.3) {
            let number = *partitions.choose(&mut random).unwrap();
            boot_partition(&world.hardware.disk, number).write(path, &content).unwrap();
            boot_partition(&world.hardware.disk, number).sync().unwrap();
            others.push((number, path.to_owned(), content));
        }
    }
    let leftover = if random.random_bool(0.4) {
        let path = "EFI/Linux/acme-os_0.7.efi";
        let (root_hash, is_own) = (Sha256::of(b"gone as well"), random.random_bool(0.5));
        let placed = foreign("acme-os", "0.7", &format!("roothash={root_hash}"));
        let record = PlacedImage {
            root_hash: root_hash.into(),
            partition: Some(if home == ESP { BootPartition::Esp } else { BootPartition::Xbootldr }),
            base: "acme-os_0.7".to_owned(),
            size: placed.len() as u64,
            digest: None,
            start: Some(Sha256::of(&placed[..512]).into()),
        };
        let journal = Journal { placed: vec![record], ..Journal::default() };
        let state = SimState::new(world.hardware.disk.clone());
        state.write(JOURNAL_FILE, &journal.to_bytes().unwrap()).unwrap();
        let mut content = if is_own { placed } else { foreign("acme-os", "0.7", "rescue") };
        content.truncate(1100);
        boot_partition(&world.hardware.disk, home).write(path, &content).unwrap();
        boot_partition(&world.hardware.disk, home).sync().unwrap();
        if !is_own {
            others.push((home, path.to_owned(), content));
        }
        is_own.then(|| (home, path.to_owned()))
    } else {
        None
    };
    Node { world, foreign: others, leftover, held: pinned || beyond }
}

impl Node {
    fn judge(&mut self) -> Result<(), Wrong> {
        let mut system = self.world.settle()?;
        // What passes may take longer than a world waits for what never does.
        for _ in 0..4 {
            if system.version == "1.1" {
                break;
            }
            system = self.world.resume()?;
        }
        let boots = self.world.hardware.starts;
        if self.held && boots > 1 {
            return Err(format!(
                "the node was rebooted {} times although the boot loader would, or might, not have followed",
                boots - 1
            ));
        }
        // Reading may fail for ever; then it is said, and nothing is armed.
        let may_stay = self.held || self.world.unreadable.is_permanent();
        if system.version != "1.1" && !may_stay {
            let files = esp(&self.world.hardware.disk).list("EFI/Linux").map_err(|error| error.to_string())?;
            return Err(format!("{} runs at the end: {:?}; {files:?}", system.version, self.world.last_error));
        }
        let next = self.world.next_start()?;
        if (&next.version, next.trial) != (&system.version, false) {
            return Err(format!("{} runs, {} boots next (trial: {})", system.version, next.version, next.trial));
        }
        for (number, name, content) in &self.foreign {
            let found = boot_partition(&self.world.hardware.disk, *number).read(name, 1 << 20);
            if found.as_ref().ok() != Some(content) {
                return Err(format!(
                    "{name} on partition {number} is not the agent's, and was touched: {:?}",
                    found.map(|bytes| bytes.len())
                ));
            }
        }
        if let Some((number, name)) = &self.leftover
            && system.version == "1.1"
            && boot_partition(&self.world.hardware.disk, *number).exists(name).map_err(|error| error.to_string())?
        {
            return Err(format!("{name} on partition {number} is left of the agent's own removal, and stays"));
        }
        // What was read back once is not fetched again because a file can't be read for a moment.
        let fetched = self.world.fetched.load(Ordering::SeqCst);
        if self.world.fetched_when_staged.is_some_and(|before| before != fetched) {
            return Err(format!("{fetched} downloads, {:?} when it was staged", self.world.fetched_when_staged));
        }
        for number in self.partitions() {
            let damage =
                boot_partition(&self.world.hardware.disk, number).check().map_err(|error| error.to_string())?;
            if !damage.is_empty() {
                return Err(format!("boot partition {number} is damaged: {damage:?}"));
            }
        }
        Ok(())
    }

    fn partitions(&self) -> Vec<u32> {
        let table = Table::read(&self.world.hardware.disk).unwrap();
        [ESP, XBOOTLDR].into_iter().filter(|number| table.part(*number).is_ok()).collect()
    }
}

#[test]
fn whatever_lies_on_the_boot_partition_nothing_of_others_is_touched_and_the_node_stays_whole() {
    let mut updated = 0;
    for seed in 0..WORLDS {
        let mut node = node(seed, None);
        node.judge().unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}\n  {}", node.world.told()));
        updated += u64::from(node.world.running().is_some_and(|system| system.version == "1.1"));
    }
    println!("{updated} of {WORLDS} nodes run the new release");
    assert!(updated > WORLDS / 2, "only {updated} nodes were updated: this proves little");
}

#[test]
fn each_safeguard_is_missed_when_it_is_left_out() {
    for without in [
        Safeguard::UnreadIsNotAbsent,
        Safeguard::ForeignIsLeftAlone,
        Safeguard::WayBackBeforeArming,
        Safeguard::LeftoverBeginsAlike,
    ] {
        let found = (0..WORLDS).find(|seed| node(*seed, Some(without)).judge().is_err());
        assert!(found.is_some(), "nothing noticed that {without:?} was left out");
    }
}

/// 1.1 runs, and 1.0 is asked for, whose kernel panics. For that 1.1 is set aside; with the tries of 1.0 used up both are bad, and the
/// boot loader takes whatever else it shows. The error says how it ended.
fn going_back_beside(content: Option<Vec<u8>>, without: Option<Safeguard>) -> (OneNode, Result<(), Wrong>) {
    let broken = TinyRelease::new("acme-os", "1.0", 48 << 10, &[Fault::Panic]).unwrap();
    let known = Arc::new(vec![release("1.1"), broken]);
    let operator = Operator::new(reference(&known[1]).unwrap(), Verdict::Commit);
    let (disk, releases) = (installed(SystemdBoot, &known[0]), SimReleases::of(known.iter()));
    let mut world = OneNode::new(SystemdBoot, disk, operator, known, Arc::new(releases));
    world.config.without = without;
    if let Some(content) = content {
        esp(&world.hardware.disk).write("EFI/Linux/zulu.efi", &content).unwrap();
        esp(&world.hardware.disk).sync().unwrap();
    }
    let ended = world.settle().map(|_| ());
    (world, ended)
}

#[test]
fn a_node_is_not_sent_back_past_an_image_that_is_cut_short() {
    let whole = foreign("zulu", "1", "quiet");
    let cut = || Some(whole[..whole.len() - 700].to_vec());
    let (world, ended) = going_back_beside(cut(), None);
    assert_eq!((ended, world.hardware.starts), (Ok(()), 1), "{}", world.told());
    assert_eq!(world.running().unwrap().version, "1.1");
    // So it would end, and so it ends without that file.
    let (world, ended) = going_back_beside(cut(), Some(Safeguard::WayBackBeforeArming));
    assert!(ended.is_err_and(|wrong| wrong.contains("nothing boots")), "{}", world.told());
    let (mut world, ended) = going_back_beside(None, None);
    assert!(ended.is_err() && world.hardware.starts > 1, "{}", world.told());
    assert_eq!(world.hardware.power_on().system.unwrap().version, "1.1");
}

/// Case 38: neither a partition table that can't be repaired nor a boot partition without room for a copy costs a good
/// trial its commit.
fn repairs_that_fail(without: Option<Safeguard>) -> Result<(), Wrong> {
    use bascule_sim::disk::{Access, Cache, Effect, FaultRule, Part};
    let mut world = world(SystemdBoot, installed(SystemdBoot, &release("1.0")), "1.1", Verdict::Silence);
    let trial = world.settle()?;
    assert!(trial.trial, "{}", world.told());
    // The backup table breaks and can't be written, an entry is doubled, and the boot partition is full.
    let disk = world.hardware.disk.clone();
    Part::whole(&disk).write_all(disk.length() - 512, &[0xaa; 512]).unwrap();
    let esp = esp(&disk);
    let new = release("1.1");
    esp.write("EFI/Linux/bascule-copy1.part", &new.uki).unwrap();
    let free = usize::try_from(esp.free().unwrap()).unwrap();
    esp.write("EFI/filler.bin", &vec![1; free.saturating_sub(1024)]).unwrap();
    esp.sync().unwrap();
    world.faults = vec![FaultRule::always(Access::Write, Some(Cache::WHOLE), Effect::Eio)];
    world.config.without = without;
    world.operator.verdict = Verdict::Commit;
    let system = world.resume()?;
    let entries = esp.list("EFI/Linux").unwrap();
    let committed = entries.iter().any(|file| file.name == "acme-os_1.1.efi");
    let wrong = || format!("{} runs, entries {entries:?}\n  {}", system.version, world.told());
    if !committed {
        return Err(wrong());
    }
    let said = world.last_error.as_ref().map(|error| error.category);
    if said == Some(NodeError::Storage) {
        Ok(())
    } else {
        Err(format!("the failed repair is not said: {said:?}; {}", wrong()))
    }
}

#[test]
fn a_good_trial_is_committed_before_anything_is_repaired() {
    repairs_that_fail(None).unwrap();
    let wrong = repairs_that_fail(Some(Safeguard::CommitBeforeRepair));
    assert!(wrong.is_err(), "nothing noticed that repairs went first");
}
