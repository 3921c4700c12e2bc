//! A removal of a boot image that power loss broke off, and that `fsck.vfat` mended at the next boot: under the image's name lies its
//! beginning, or nothing (docs/decisions/0053-what-a-check-cuts-is-known-by-its-beginning.md).

use bascule_agent::core::Config;
use bascule_agent::core::boot::Safeguard;
use bascule_api::Goal;
use bascule_sim::esp::Esp;
use bascule_sim::firmware::BootLoader::{self, Gptprio, SystemdBoot};
use bascule_sim::firmware::gptprio::Attributes;
use bascule_sim::layout::{Slot, Table};
use bascule_sim::tiny::TinyRelease;

use crate::machine::{AgentHost, problem, release};

/// A machine that runs 1.2, with 1.1 in the other slot and 1.3 offered.
struct Updated {
    machine: AgentHost,
    esp: Esp,
    /// The boot image of 1.1.
    path: &'static str,
    first: TinyRelease,
    next: TinyRelease,
}

fn updated(boot: BootLoader) -> Updated {
    let (old, first) = (release("1.0", &[]), release("1.1", &[]));
    let (second, next) = (release("1.2", &[]), release("1.3", &[]));
    let mut machine = AgentHost::new(boot, &old, &[&first, &second, &next]);
    machine.update(&first, 1);
    machine.update(&second, 2);
    let esp = Table::read(&machine.hardware.disk).unwrap().esp().unwrap();
    let path = match boot {
        SystemdBoot => "EFI/Linux/acme-os_1.1.efi",
        Gptprio => "EFI/bascule/slot-b.efi",
    };
    assert_eq!(esp.read(path, 1 << 20).unwrap(), first.uki, "{boot:?}");
    Updated { machine, esp, path, first, next }
}

fn put(esp: &Esp, path: &str, content: &[u8]) {
    esp.write(path, content).unwrap();
    esp.sync().unwrap();
}

#[test]
fn what_a_check_cut_of_the_agents_own_removal_goes_with_its_slot() {
    for boot in [SystemdBoot, Gptprio] {
        for length in [0, 600, 1100] {
            let Updated { mut machine, esp, path, first, next } = updated(boot);
            put(&esp, path, &first.uki[..length]);
            machine.agent();
            assert!(
                esp.exists(path).unwrap(),
                "its slot holds the release still, and somebody may be putting the image back"
            );
            machine.update(&next, 3);
            let found = esp.exists(path).unwrap().then(|| esp.read(path, 1 << 20).unwrap());
            // By GPT attributes the next image of the slot has its name.
            let expected = (boot == Gptprio).then(|| next.uki.clone());
            assert!(found == expected, "{boot:?}, {length}: {:?}", found.map(|bytes| bytes.len()));
        }
    }
}

/// Also where the release that was being removed is wanted again: its image gets its old name.
#[test]
fn what_a_check_cut_makes_room_for_the_same_image() {
    for boot in [SystemdBoot, Gptprio] {
        let Updated { mut machine, esp, path, first, .. } = updated(boot);
        // The bits of a slot go before its image (`plan::retire`).
        let mut table = Table::read(&machine.hardware.disk).unwrap();
        let none = Attributes { priority: 0, tries: 0, successful: false };
        table.set_attributes(Slot::B.data(), none.merged_into(table.attributes(Slot::B.data()))).unwrap();
        put(&esp, path, &first.uki[..1100]);
        machine.update(&first, 3);
        assert_eq!(esp.read(path, 1 << 20).unwrap(), first.uki, "{boot:?}");
    }
}

#[test]
fn what_begins_otherwise_under_the_name_of_the_agents_image_is_left_alone() {
    // A broken copy of somebody's, as long as what a check would leave, and one that is too short to be told.
    for content in [[b"MZ, a rescue system's".as_slice(), &[7; 700]].concat(), b"MZ".to_vec()] {
        let Updated { mut machine, esp, path, next, .. } = updated(SystemdBoot);
        put(&esp, path, &content);
        machine.update(&next, 3);
        assert_eq!(esp.read(path, 1 << 20).unwrap(), content);

        let Updated { mut machine, esp, path, next, .. } = updated(Gptprio);
        put(&esp, path, &content);
        let mut agent = machine.agent();
        agent.handle(machine.word(Goal::Staged, &next, None)).unwrap();
        let status = agent.published().unwrap();
        assert!(problem(status).is_some(), "it was written over: {status:?}");
        assert_eq!(esp.read(path, 1 << 20).unwrap(), content);
    }
}

/// The test of the test above.
#[test]
fn by_its_name_alone_a_file_of_somebody_elses_would_be_removed() {
    let Updated { mut machine, esp, path, next, .. } = updated(SystemdBoot);
    put(&esp, path, &[b"MZ, a rescue system's".as_slice(), &[7; 700]].concat());
    let mut agent = machine.agent_with(Config { without: Some(Safeguard::LeftoverBeginsAlike), ..Config::default() });
    agent.handle(machine.word(Goal::Staged, &next, None)).unwrap();
    assert!(!esp.exists(path).unwrap());
}
