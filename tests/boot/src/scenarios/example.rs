//! examples/debian/README.md word for word, by a newcomer with a shell: Debian packages become a release, a repository and a disk, a
//! machine that boots from it joins a cluster with containerd and a real kubelet, and is updated. Catches an example that no longer
//! works, and whatever the tests' own way of making releases and disks hides of the shipped one.
//!
//! What stands in: `cargo xtask example` is this program, which cargo would build.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bascule_os_image::{Archive, Distribution, sources_here, unmount_below};
use bascule_tests::page::Page;
use bascule_tests::supervise::Supervised;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::example::{self, NODE};
use crate::{example_os, say};

const PAGE: &str = "examples/debian/README.md";
/// What the page's blocks for developers' tasks begin with.
const TASK: &str = "cargo xtask example ";
/// Longer than any block takes: the last one waits for an hour itself.
const PATIENCE: Duration = Duration::from_secs(2 * 3600);
/// How much of a machine's console is shown when something failed.
const CONSOLE_LINES: usize = 40;

/// Runs it below `folder`, which is emptied first, with packages kept in `downloads`.
///
/// # Errors
/// When a command of the page fails, or the machine is not what the page says at its end.
pub async fn run(workspace: &Path, folder: &Path, downloads: &Path) -> anyhow::Result<()> {
    let newcomer = Newcomer::arrive(folder, downloads)?;
    newcomer.task("programs")?;
    let (workspace, place) = (workspace.to_owned(), newcomer.place());
    tokio::task::spawn_blocking(move || example::programs(&workspace, &place)).await??;
    for block in ["repository", "root", "release", "publish"] {
        newcomer.types(block, Archive::Release).await?;
    }
    let mut cluster = newcomer.starts_cluster().await?;
    newcomer.types("disk", Archive::Release).await?;
    let mut machine = newcomer.starts_machine()?;
    if let Err(error) = newcomer.lives_with_it().await {
        let console = machine.log_tail(CONSOLE_LINES);
        return Err(error.context(format!("the console of {NODE} ended with:\n{console}")));
    }
    machine.kill()?;
    cluster.kill().await.context("ending the cluster")?;
    // Logs stay; roots, builds and the disk take gigabytes.
    fs::remove_dir_all(newcomer.place()).with_context(|| format!("emptying {}", newcomer.place().display()))
}

/// Somebody with a clone of this tree and a shell.
#[derive(Debug)]
struct Newcomer {
    page: Page,
    home: PathBuf,
    downloads: PathBuf,
}

impl Newcomer {
    /// In `folder` the tree's examples are where they are in a clone.
    fn arrive(folder: &Path, downloads: &Path) -> anyhow::Result<Self> {
        if folder.exists() {
            unmount_below(folder)?;
            fs::remove_dir_all(folder).with_context(|| format!("emptying {}", folder.display()))?;
        }
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let examples = example_os::workspace().join("examples");
        let examples = examples.canonicalize().with_context(|| format!("finding {}", examples.display()))?;
        std::os::unix::fs::symlink(examples, folder.join("examples"))?;
        let newcomer = Self { page: Page::of(PAGE), home: folder.to_owned(), downloads: downloads.to_owned() };
        fs::create_dir_all(newcomer.place())?;
        for archive in [Archive::Release, Archive::Updates] {
            fs::write(newcomer.sources(archive), sources_here(Distribution::Trixie, archive)?)?;
        }
        Ok(newcomer)
    }

    /// The folder of the example, as the page's first block has it.
    fn place(&self) -> PathBuf {
        self.home.join("target/example")
    }

    /// How far the packages of a root are patched: an update without a newer package is none that is worth a machine.
    fn sources(&self, archive: Archive) -> PathBuf {
        self.home.join(match archive {
            Archive::Release => "release.sources",
            Archive::Updates => "updates.sources",
        })
    }

    /// A block as it is typed, in a shell that has entered the folder.
    fn script(&self, block: &str) -> String {
        format!("{}{}", self.page.block("enter"), self.page.block(block))
    }

    /// Looks whether a block is the one task.
    fn task(&self, name: &str) -> anyhow::Result<()> {
        let block = self.page.block(name);
        ensure!(block.trim() == format!("{TASK}{name}"), "{PAGE} says {block:?} where it should start a task");
        Ok(())
    }

    /// Types a block, and tells what it said.
    async fn types(&self, block: &str, archive: Archive) -> anyhow::Result<String> {
        let began = Instant::now();
        let mut shell = Command::new("sh");
        shell
            .args(["-eu", "-c", &self.script(block)])
            .current_dir(&self.home)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        shell.env("DEBIAN_SOURCES", self.sources(archive)).env("DEBIAN_DOWNLOADS", &self.downloads);
        let output = tokio::time::timeout(PATIENCE, shell.kill_on_drop(true).output()).await;
        let output = output.with_context(|| format!("the block `{block}` did not end"))??;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the block `{block}` failed: {said}{complaint}");
        let prompt = self.page.block(block).lines().map(|line| format!("$ {line}\n")).collect::<String>();
        say(&format!("after {} s:\n{prompt}{said}{complaint}", began.elapsed().as_secs()));
        Ok(said)
    }

    /// Starts the cluster as another process, and waits until it says that it runs. It ends when it is dropped.
    async fn starts_cluster(&self) -> anyhow::Result<Child> {
        self.task("cluster")?;
        let log = self.home.join("cluster.log");
        let complaints = fs::File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let own = std::env::current_exe().context("finding this program")?;
        let mut cluster = Command::new(own)
            .args(["example", "cluster"])
            .current_dir(self.place())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(complaints)
            .kill_on_drop(true)
            .spawn()
            .context("starting the cluster")?;
        let stdout = cluster.stdout.take().context("the cluster has no standard output")?;
        let line = tokio::time::timeout(PATIENCE, BufReader::new(stdout).lines().next_line()).await;
        let line = line.context("the cluster did not start")??.unwrap_or_default();
        let complaints = || fs::read_to_string(&log).unwrap_or_default();
        ensure!(line.starts_with("export KUBECONFIG="), "the cluster did not start: {}", complaints());
        Ok(cluster)
    }

    /// Starts the machine, as the page does, with its console in a file.
    fn starts_machine(&self) -> anyhow::Result<Supervised> {
        let script = self.script("machine");
        // The shell becomes the machine, so that one end is both.
        let (entered, command) = script.trim_end().rsplit_once('\n').context("the block `machine` has no line")?;
        let script = format!("cd '{}'\n{entered}\nexec {command}\n", self.home.display());
        say(&format!("$ {command}"));
        Ok(Supervised::start(Path::new("sh"), ["-eu", "-c", &script], &[], &self.home.join("console.log"))?)
    }

    /// Everything from the first boot to the end of the page.
    async fn lives_with_it(&self) -> anyhow::Result<()> {
        self.types("join", Archive::Release).await?;
        self.is_on("1.0").await?;
        self.types("policy", Archive::Release).await?;
        self.types("update", Archive::Updates).await?;
        self.types("watch", Archive::Updates).await?;
        self.is_on("1.1").await
    }

    /// Looks whether the node is Ready with containerd under this release, and whether Bascule, once it was asked, says the same.
    async fn is_on(&self, version: &str) -> anyhow::Result<()> {
        let node = self.asks(&["get", "node", NODE]).await?;
        let text = |pointer: &str| node.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let image = text("/status/nodeInfo/osImage");
        ensure!(image.ends_with(&format!(" {version}")), "{NODE} runs {image} and not {version}");
        let runtime = text("/status/nodeInfo/containerRuntimeVersion");
        ensure!(runtime.starts_with("containerd://"), "{NODE} runs containers by {runtime:?}");
        ensure!(node.pointer("/spec/unschedulable") != Some(&Value::Bool(true)), "{NODE} is cordoned");
        let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
        let ready = |condition: &Value| {
            condition.pointer("/type") == Some(&"Ready".into()) && condition.pointer("/status") == Some(&"True".into())
        };
        ensure!(
            conditions.is_some_and(|conditions| conditions.iter().any(ready)),
            "{NODE} is not Ready: {conditions:?}"
        );
        let hello = self.asks(&["get", "daemonset", "hello"]).await?;
        let pods = hello.pointer("/status/numberReady").and_then(Value::as_u64);
        ensure!(pods == Some(1), "one container should run and be Ready, and {pods:?} do");
        if version == "1.1" {
            let update = self.asks(&["get", "nodeupdate", NODE]).await?;
            let booted = update.pointer("/status/booted/version").and_then(Value::as_str);
            ensure!(booted == Some(version), "the agent says that it runs {booted:?}");
            let trial = update.pointer("/status/trial");
            ensure!(trial.is_none_or(Value::is_null), "{version} is on trial still: {trial:?}");
        }
        Ok(())
    }

    /// What `kubectl` tells the admin.
    async fn asks(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut kubectl = Command::new(self.place().join("programs/kubectl"));
        kubectl.args(arguments).args(["--output", "json"]).env("KUBECONFIG", self.place().join(example::KUBECONFIG));
        let output = kubectl.kill_on_drop(true).output().await.context("starting kubectl")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {}: {complaint}", arguments.join(" "));
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}
