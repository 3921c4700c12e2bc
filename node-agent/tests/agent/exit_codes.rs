//! How each command ends, by the numbers that docs/agent.md promises: the program itself, on a host that is a folder.

use std::path::Path;
use std::process::{Command, Output};

use bascule_agent::host::StateStore as _;
use bascule_agent::linux::StateFolder;

/// A folder with what the program needs to begin: boot partition, disk and settings.
pub(crate) fn host() -> tempfile::TempDir {
    let host = tempfile::tempdir().unwrap();
    let root = host.path();
    std::fs::create_dir_all(root.join("efi/EFI/Linux")).unwrap();
    std::fs::write(root.join("disk.img"), vec![0; 1 << 20]).unwrap();
    let place = |name: &str| root.join(name).display().to_string();
    let settings = format!(
        "[boot]\npartition = \"{}\"\n[slots]\ndisk = \"{}\"\n[state]\ndirectory = \"{}\"\n\
         [kubernetes]\nkubeconfig = \"{}\"\n[server]\nlisten = \"unix:{}\"\n",
        place("efi"),
        place("disk.img"),
        place("state"),
        place("kubeconfig"),
        place("agent.sock"),
    );
    std::fs::write(root.join("agent.toml"), settings).unwrap();
    host
}

fn agent(host: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bascule-agent"));
    command.arg("--settings").arg(host.join("agent.toml")).args(arguments);
    // Only the file above counts, whoever runs this.
    command.env_clear().output().unwrap()
}

/// The code, and all that was said.
fn end(host: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = agent(host, arguments);
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap());
    (output.status.code(), said.concat())
}

#[test]
fn what_can_be_said_without_a_host_ends_with_0() {
    let host = host();
    let (code, said) = end(host.path(), &["status", "--origins"]);
    assert_eq!(code, Some(0), "{said}");
    let origin = format!("{}:2", host.path().join("agent.toml").display());
    let line = said.lines().find(|line| line.starts_with("boot.partition")).unwrap();
    assert!(line.ends_with(&origin), "{line}");
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    let (code, said) = end(host().path(), &["stage", "--release", "1.1"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--repository"), "{said}");
}

/// Every command but the guard, which goes by what is left of the settings, and the service, which tells the API server.
#[test]
fn settings_that_can_not_be_used_end_a_command_with_3_and_name_file_and_line() {
    let host = host();
    let file = host.path().join("agent.toml");
    std::fs::write(&file, "[boot]\ntries = 3\ncolour = \"blue\"\n").unwrap();
    for command in ["status", "commit", "revert"] {
        let (code, said) = end(host.path(), &[command]);
        assert_eq!(code, Some(3), "{command}: {said}");
        assert!(said.contains(&format!("{}:3", file.display())) && said.contains("colour"), "{command}: {said}");
    }
}

#[test]
fn a_host_without_a_disk_ends_with_4() {
    let host = host();
    std::fs::remove_file(host.path().join("disk.img")).unwrap();
    // The service runs on: it has an API server to tell.
    for command in ["status", "commit", "revert"] {
        let (code, said) = end(host.path(), &[command]);
        assert_eq!(code, Some(4), "{command}: {said}");
        assert!(said.contains("disk.img"), "{command}: {said}");
    }
    std::fs::remove_dir_all(host.path().join("state")).unwrap();
    std::fs::write(host.path().join("state"), "no folder").unwrap();
    let (code, said) = end(host.path(), &["run"]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("state folder"), "{said}");
}

#[test]
fn where_another_agent_holds_the_lock_it_ends_with_5() {
    let host = host();
    let _lock = StateFolder::create(&host.path().join("state")).unwrap().lock().unwrap();
    for command in ["run", "commit", "revert"] {
        let (code, said) = end(host.path(), &[command]);
        assert_eq!(code, Some(5), "{command}: {said}");
        assert!(said.contains("another agent works on this host"), "{command}: {said}");
    }
}

#[test]
fn a_refused_command_ends_with_6_and_the_reason() {
    // A disk without a partition table.
    for command in ["commit", "revert"] {
        let (code, said) = end(host().path(), &[command]);
        assert_eq!(code, Some(6), "{command}: {said}");
        assert!(said.starts_with("not done: "), "{command}: {said}");
    }
}
