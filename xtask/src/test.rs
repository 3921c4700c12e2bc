//! `cargo xtask test`: every check and every test, in the order in which they fail cheapest. CI runs exactly this.
//!
//! All tests are compiled once. Then two lanes run side by side, because they want different things: what has a control plane waits most
//! of its time for watches, leases and reboots; worlds, disks and parsers want a processor and nothing else, as does the build of what
//! the virtual machines run. The machines come last and alone.

use crate::{prerequisites, workspace_root};
use anyhow::{Context as _, bail};
use cargo_metadata::{MetadataCommand, TargetKind};
use clap::Args;
use std::{
    collections::BTreeSet,
    fs::{self, File},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// Which part to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only the steps whose name contains this text: format, dependencies, fuzz lock, lints, compile, cluster, worlds, boot programs,
    /// images, boot; and fuzz targets, a step only where it is named.
    #[arg(long)]
    only: Option<String>,
    /// Passed to the tests themselves, e.g. a part of their names: `cargo xtask test --only worlds -- power_cuts`.
    #[arg(last = true)]
    filter: Vec<String>,
}

/// The test programs that start a control plane of their own and mostly wait for it.
const WITH_A_CONTROL_PLANE: [&str; 11] = [
    "admission",
    "attackers",
    "cluster",
    "control_plane",
    "flow",
    "install",
    "kubelet",
    "kwok",
    "oncall",
    "sandbox",
    "typed",
];
/// What is made of the shipped programs, and so waits until they are built for the machines.
const OF_SHIPPED_PROGRAMS: &str = "images";
/// What is asked for before a run on a fresh clone: `target/` holds 11 GiB after it (measured), and the caches of cargo and Go, which
/// mostly lie on the same disk, may be empty.
const ROOM_MIB: u64 = 16 << 10;
/// That the lock file of the fuzz targets fits what it is made of.
const FUZZ_LOCK: [&str; 4] = ["fetch", "--locked", "--manifest-path", "fuzz/Cargo.toml"];
/// That they fit what they call. They are a workspace of their own, whose dependencies are compiled once more for it: some minutes
/// of two processors, so it is a step for who asks for it.
const WHEN_ASKED_FOR: &str = "fuzz targets";
/// See [`WHEN_ASKED_FOR`].
const FUZZ_TARGETS: [&str; 6] =
    ["check", "--locked", "--manifest-path", "fuzz/Cargo.toml", "--target-dir", "target/fuzz"];
/// What lane of processor work is run with, so that it takes what the waiting lane leaves (setpriority(2)).
const NICE: i32 = 5;

/// How long each step took, in the order in which they ended.
#[derive(Debug, Default)]
struct Times(Mutex<Vec<(&'static str, u64)>>);

impl Times {
    fn add(&self, step: &'static str, seconds: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((step, seconds));
    }

    /// A line for each, as they go into a table.
    fn lines(&self) -> String {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.iter().map(|(step, seconds)| format!("{step:16} {seconds:6} s\n")).collect()
    }
}

/// One command of a step.
struct Step {
    name: &'static str,
    /// What cargo is told.
    cargo: Vec<String>,
}

impl Step {
    fn new(name: &'static str, cargo: &[&str]) -> Self {
        Self { name, cargo: cargo.iter().map(|&word| word.to_owned()).collect() }
    }

    fn tests(name: &'static str, targets: impl IntoIterator<Item = String>, filter: &[String]) -> Self {
        let mut cargo: Vec<String> = ["test", "--workspace", "--no-fail-fast"].map(str::to_owned).into();
        cargo.extend(targets);
        if !filter.is_empty() {
            cargo.push("--".to_owned());
            cargo.extend(filter.iter().cloned());
        }
        Self { name, cargo }
    }

    fn command(&self) -> Command {
        let mut command = bascule_os_image::cargo();
        command.args(&self.cargo).current_dir(workspace_root()).stdin(Stdio::null());
        command
    }

    fn line(&self) -> String {
        format!("cargo {}", self.cargo.join(" "))
    }

    /// Runs it with its output on the terminal.
    fn run(&self, times: &Times) -> anyhow::Result<()> {
        println!("==> {}: {}", self.name, self.line());
        let started = Instant::now();
        let status = self.command().status().context("starting cargo")?;
        self.ended(status, started, times)
    }

    fn ended(&self, status: std::process::ExitStatus, started: Instant, times: &Times) -> anyhow::Result<()> {
        if !status.success() {
            bail!("{} failed ({status}); repeat it with: {}", self.name, self.line());
        }
        let seconds = started.elapsed().as_secs();
        println!("<== {} took {seconds} s", self.name);
        times.add(self.name, seconds);
        Ok(())
    }

    /// Runs it beside another, with its output in a file that is shown as a whole at the end.
    fn run_aside(&self, times: &Times) -> anyhow::Result<()> {
        println!("==> {} (beside; its output follows when it ends): {}", self.name, self.line());
        let started = Instant::now();
        let folder = workspace_root().join("target/test-output");
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let path = folder.join(format!("{}.log", self.name.replace(' ', "-")));
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        let both = file.try_clone().context("sharing the output's file")?;
        let mut child = self.command().stdout(file).stderr(both).spawn().context("starting cargo")?;
        if let Some(id) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            // A machine that does not allow it is only a little slower.
            let _ = rustix::process::setpriority_process(Some(id), NICE);
        }
        let status = child.wait().context("waiting for cargo")?;
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        println!("--- {}:\n{}---", self.name, String::from_utf8_lossy(&text));
        self.ended(status, started, times)
    }
}

/// What the members test, by name: the test programs below `tests/`, and the programs that have tests of their own.
/// (`--bins` would build empty test programs of the others too.)
fn test_programs() -> anyhow::Result<(BTreeSet<String>, BTreeSet<String>)> {
    let manifest = workspace_root().join("Cargo.toml");
    let metadata =
        MetadataCommand::new().manifest_path(manifest).no_deps().exec().context("asking cargo for its members")?;
    let of = |kind: TargetKind| {
        let targets = metadata.packages.iter().flat_map(|package| &package.targets);
        targets.filter(|target| target.test && target.kind.contains(&kind)).map(|target| target.name.clone()).collect()
    };
    Ok((of(TargetKind::Test), of(TargetKind::Bin)))
}

fn named(option: &str, programs: impl IntoIterator<Item = String>) -> impl Iterator<Item = String> {
    programs.into_iter().flat_map(move |name| [option.to_owned(), name])
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let target = workspace_root().join("target");
    prerequisites::writable(&target)?;
    prerequisites::room(&target, ROOM_MIB)?;
    prerequisites::require("go", "install Go 1.26 or newer (the control plane of the tests is built from Go modules)")?;
    prerequisites::ensure(prerequisites::TEST_TOOLS)?;
    let (tests, own) = test_programs()?;
    let (cluster, mut rest): (BTreeSet<_>, BTreeSet<_>) =
        tests.into_iter().partition(|name| WITH_A_CONTROL_PLANE.contains(&name.as_str()));
    let images = rest.take(OF_SHIPPED_PROGRAMS);
    let own = std::iter::once("--lib".to_owned()).chain(named("--bin", own));
    let before = [
        Step::new("format", &["fmt", "--all", "--check"]),
        Step::new("dependencies", &["xtask", "deny"]),
        Step::new("fuzz lock", &FUZZ_LOCK),
        Step::new("lints", &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]),
        Step::new("compile", &["test", "--workspace", "--lib", "--tests", "--no-run"]),
    ];
    let waiting = [Step::tests("cluster", named("--test", cluster), &options.filter)];
    let working = [
        Step::tests("worlds", own.chain(named("--test", rest)), &options.filter),
        // To run them takes a nightly compiler, to check them does not.
        Step::new(WHEN_ASKED_FOR, &FUZZ_TARGETS),
        // What the machines are made of is compiled before they start, so that nothing competes with them for the processors.
        Step::new("boot programs", &["xtask", "boot", "build"]),
        Step::tests("images", named("--test", images), &options.filter),
    ];
    let last = [Step::new("boot", &["xtask", "boot"])];

    let wanted = |step: &&Step| match options.only.as_deref() {
        Some(text) => step.name.contains(text),
        None => step.name != WHEN_ASKED_FOR,
    };
    let steps = || before.iter().chain(&waiting).chain(&working).chain(&last);
    if steps().filter(wanted).count() == 0 {
        let names: Vec<_> = steps().map(|step| step.name).collect();
        bail!("no step has that name; there are: {}", names.join(", "));
    }
    if steps().filter(wanted).any(|step| step.name == WHEN_ASKED_FOR) {
        prerequisites::ensure(prerequisites::FUZZ_TOOLS)?;
    }
    let (begin, times) = (Instant::now(), Times::default());
    let run = |step: &Step| step.run(&times);
    before.iter().filter(wanted).try_for_each(run)?;
    let aside: Vec<_> = working.iter().filter(wanted).collect();
    let beside: Vec<_> = waiting.iter().filter(wanted).collect();
    if beside.is_empty() || aside.is_empty() {
        aside.into_iter().chain(beside).try_for_each(run)?;
    } else {
        std::thread::scope(|scope| {
            let aside = scope.spawn(|| aside.into_iter().try_for_each(|step| step.run_aside(&times)));
            let beside = beside.into_iter().try_for_each(run);
            let aside = aside.join().unwrap_or_else(|_| bail!("the lane of processor work broke off"));
            beside.and(aside)
        })?;
    }
    last.iter().filter(wanted).try_for_each(run)?;
    println!("{}every step passed in {} s", times.lines(), begin.elapsed().as_secs());
    Ok(())
}
