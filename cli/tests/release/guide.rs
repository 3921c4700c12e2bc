//! docs/publishing.md, run as it stands: every block of shell in its order, and the jobs that keep a repository fresh over 400
//! days of a given clock. And the disks of docs/os-image.md.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use bascule_tests::https::HttpsServer;
use chrono::{DateTime, Datelike as _, TimeDelta, Timelike as _, Utc};

use super::workshop::Workshop;

const GUIDE: &str = include_str!("../../../docs/publishing.md");
const OS_IMAGE: &str = include_str!("../../../docs/os-image.md");

/// The blocks of a language, with the line at which each begins.
fn blocks(page: &str, language: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in page.lines().enumerate() {
        match &mut open {
            None if line == format!("```{language}") => open = Some((number + 2, String::new())),
            Some(_) if line == "```" => found.extend(open.take()),
            Some((_, text)) => {
                text.push_str(line);
                text.push('\n');
            }
            None => {}
        }
    }
    found
}

/// A shell whose `bascule` is the program under test.
fn shell(workshop: &Workshop, script: &str, variables: &BTreeMap<&str, String>) -> Output {
    let tools = workshop.path(".tools");
    fs::create_dir_all(&tools).unwrap();
    let program = tools.join("bascule");
    // `AT` is the clock that the program is given.
    let text = format!("#!/bin/sh\nexec {} ${{AT:+--at \"$AT\"}} \"$@\"\n", env!("CARGO_BIN_EXE_bascule"));
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command.args(["-eu", "-c", script]).current_dir(workshop.path("")).env("PATH", path).envs(variables);
    command.env_remove("SOURCE_DATE_EPOCH").env_remove("BASCULE_TRUST_ROOT").env_remove("BASCULE_LOG");
    command.output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_block_of_the_guide_runs_as_it_stands() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let workshop = Workshop::new();
    for version in ["1.0", "1.1", "1.2"] {
        workshop.tree(&format!("tree-{version}"), version, |number| number);
    }
    workshop.arm64();
    fs::rename(workshop.path("stub-arm64"), workshop.path("linuxaa64.efi.stub")).unwrap();
    fs::copy(workshop.path("initrd"), workshop.path("initrd.img")).unwrap();
    fs::create_dir(workshop.path("web")).unwrap();
    let server = HttpsServer::start(workshop.path("web")).await.unwrap();
    fs::write(workshop.path("ca.pem"), server.ca_pem()).unwrap();
    let mut variables = BTreeMap::from([
        ("WEB_ROOT", workshop.path("web").display().to_string()),
        ("REPOSITORY_URL", server.url()),
        ("CA", "ca.pem".to_owned()),
        ("CMDLINE", String::new()),
    ]);
    let blocks = blocks(GUIDE, "sh");
    assert!(blocks.len() >= 20, "{}", blocks.len());
    for (line, block) in blocks {
        // What one block sets, the next ones know.
        if let Some(value) = block.lines().find_map(|line| line.strip_prefix("CMDLINE=")) {
            variables.insert("CMDLINE", value.trim_matches('"').to_owned());
        }
        let (output, text) = {
            let output = shell(&workshop, &block, &variables);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            (output, text)
        };
        assert!(output.status.success(), "docs/publishing.md:{line}: {block}\n{text}");
    }
    // The story's end: what the guide says of the state that it leaves.
    let status = workshop.step("status repository");
    assert!(status.contains("nothing waits for signatures") && status.contains("nodes can update until"), "{status}");
    for channel in ["edge", "kms", "nightly", "stable", "test"] {
        assert!(workshop.step("inspect repository").contains(channel), "{channel}");
    }
}

/// What goes into the tree first, as the page says, and then a release of it becomes the disks.
#[test]
fn every_disk_of_the_page_about_images_is_made_as_it_stands() {
    let workshop = Workshop::new();
    workshop.tree("tree-1.0", "1.0", |number| number);
    fs::create_dir(workshop.path("first-files")).unwrap();
    fs::write(workshop.path("first-files/hello"), "of the first boot").unwrap();
    fs::write(workshop.path("ca.pem"), "an authority").unwrap();
    let of_disks = blocks(OS_IMAGE, "sh").into_iter().filter(|(_, block)| block.contains("bascule disk "));
    let (of_trees, of_releases): (Vec<_>, Vec<_>) = of_disks.partition(|(_, block)| block.contains("--definitions"));
    assert!(!of_trees.is_empty() && !of_releases.is_empty(), "{of_trees:?} {of_releases:?}");
    let run = |(line, block): &(usize, String)| {
        let output = shell(&workshop, block, &BTreeMap::new());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "docs/os-image.md:{line}: {block}\n{text}");
    };
    of_trees.iter().for_each(run);
    let table = fs::read_to_string(workshop.path("tree-1.0/etc/fstab")).unwrap();
    assert!(table.contains("x-systemd.growfs"), "{table}");
    workshop.build("build-1.0", "1.0", "tree-1.0", "");
    of_releases.iter().for_each(run);
    for disk in ["acme-os-1.0.raw", "acme-os-1.0.qcow2", "node7.raw"] {
        assert!(workshop.path(disk).exists(), "{disk}");
    }
}

/// A line of a crontab: minute, hour, day of month, month, day of week, command. Only numbers and stars.
fn is_due(fields: &[&str], time: DateTime<Utc>) -> bool {
    let now = [time.minute(), time.hour(), time.day(), time.month(), time.weekday().num_days_from_sunday()];
    fields.iter().zip(now).all(|(field, now)| *field == "*" || field.parse() == Ok(now))
}

#[test]
fn the_documented_jobs_keep_the_fleet_safe_for_400_days() {
    let workshop = Workshop::new();
    let keys = "keygen keys/root-1 keys/root-2 keys/targets keys/snapshot keys/timestamp";
    let start: DateTime<Utc> = "2027-01-04T00:00:00Z".parse().unwrap();
    let at = |time: DateTime<Utc>, script: &str| {
        let output = shell(&workshop, script, &BTreeMap::from([("AT", time.to_rfc3339())]));
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), text)
    };
    workshop.step(keys);
    let init = "bascule release init repository --root keys/root-1.pem --root keys/root-2.pem --root-threshold 2 \
                --targets keys/targets.pem --snapshot keys/snapshot.pem --timestamp keys/timestamp.pem";
    assert_eq!(at(start, init).0, 0);
    let crontab = blocks(GUIDE, "cron").remove(0).1;
    let jobs: Vec<(Vec<&str>, String)> = crontab
        .lines()
        .filter(|line| line.starts_with(|first: char| first.is_ascii_digit()))
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words[..5].to_vec(), words[5..].join(" "))
        })
        .collect();
    assert_eq!(jobs.len(), 4, "{crontab}");
    let (mut asked, mut renewed) = (None, 0);
    for day in 0..400 {
        let today = start + TimeDelta::days(day);
        for minute in [17, 27, 37, 47] {
            let time = today + TimeDelta::hours(3) + TimeDelta::minutes(minute);
            for (fields, job) in jobs.iter().filter(|(fields, _)| is_due(fields, time)) {
                // What runs daily is run every sixth day: five failures in a row do no harm.
                let days = if job.contains("refresh") { 6 } else { 30 };
                if fields[2..] == ["*", "*", "*"] && day % days != 0 {
                    continue;
                }
                let (code, text) = at(time, job);
                if job.contains("refresh") {
                    assert_eq!(code, 0, "day {day}: {job}: {text}");
                } else if code != 0 {
                    // People are asked for the root, and come days later.
                    assert!(
                        text.contains("the root expires in") && text.contains("2 of root-1 ("),
                        "day {day}: {text}"
                    );
                    asked = asked.or(Some(day));
                }
            }
        }
        if asked.is_some_and(|asked| day - asked >= 3) {
            let rotate = "bascule release rotate repository --key keys/root-1.pem --key keys/root-2.pem --key keys/timestamp.pem";
            let (code, text) = at(today + TimeDelta::hours(9), rotate);
            assert_eq!(code, 0, "{text}");
            (asked, renewed) = (None, renewed + 1);
        }
        if day % 40 == 5 {
            let (code, text) = at(today + TimeDelta::hours(12), "bascule release status repository");
            assert_eq!(code, 0, "day {day}: {text}");
        }
    }
    assert_eq!(renewed, 1, "the root is renewed once a year");
}

#[test]
fn the_documented_units_are_units() {
    let units = blocks(GUIDE, "ini");
    assert_eq!(units.len(), 2);
    let folder = tempfile::tempdir().unwrap();
    let mut commands = Vec::new();
    for (line, text) in &units {
        let first = text.lines().next().unwrap();
        let name = first.rsplit_once('/').unwrap().1.replace('@', "@timestamp");
        // The program is installed under another path here, and the folders are not there.
        let text = text.replace("/usr/bin/bascule", "/bin/true").replace("WorkingDirectory=/srv/releases\n", "");
        fs::write(folder.path().join(&name), &text).unwrap();
        commands.extend(text.lines().filter_map(|line| line.strip_prefix("ExecStart=")).map(str::to_owned));
        let calendar = text.lines().find_map(|line| line.strip_prefix("OnCalendar="));
        for calendar in
            calendar.into_iter().chain(["Mon *-*-* 03:27", "*-*-01 03:37"].into_iter().filter(|_| calendar.is_some()))
        {
            let output =
                Command::new("systemd-analyze").args(["calendar", calendar]).output().expect("install systemd");
            assert!(output.status.success(), "docs/publishing.md:{line}: {calendar}");
            assert!(text.contains(calendar));
        }
    }
    assert_eq!(commands, ["/bin/true release refresh repository $KEYS"]);
    let mut files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let output = Command::new("systemd-analyze").arg("verify").args(&files).output().expect("install systemd");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("Unknown") && !text.contains("Failed to parse"), "{text}");
}
