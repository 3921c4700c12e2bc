//! The order of a run. Every figure is kept in `results.json` as soon as it is measured, so a run that was stopped goes on.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::measure::{Usage, measured};
use crate::roots::{self, Pair};
use crate::{ours, table, tools};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Where trees, images and results lie; some 10 GB.
    #[arg(long, default_value = "target/bench/release")]
    work: PathBuf,
    /// Which pairs.
    #[arg(long, value_delimiter = ',', default_value = "a,b,c")]
    pairs: Vec<String>,
    /// Which of the other tools; none when empty.
    #[arg(long, value_delimiter = ',', num_args = 0.., default_values_t = tools::ALL.map(str::to_owned), value_parser = tools::ALL)]
    tools: Vec<String>,
    /// Which packs of ours; none when empty.
    #[arg(long, value_delimiter = ',', num_args = 0.., default_value = "delta,delta-fast,full", value_parser = ["delta", "delta-fast", "full"])]
    packs: Vec<String>,
    /// How often applying is measured; the fastest round counts. 0 leaves it out.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
}

/// All that was measured.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    /// Bytes and what making them took, by pair and tool.
    pub(crate) sizes: BTreeMap<String, Sized>,
    /// The fastest round, by pair and step.
    pub(crate) steps: BTreeMap<String, Usage>,
    /// Image sizes by pair.
    pub(crate) images: BTreeMap<String, u64>,
    /// What changes in a pair.
    #[serde(default)]
    pub(crate) meanings: BTreeMap<String, String>,
}

/// Bytes to move and what making them took.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Sized {
    pub(crate) bytes: u64,
    pub(crate) usage: Usage,
}

pub(crate) fn release(options: &Options) -> Result<()> {
    roots::check_tools()?;
    fs::create_dir_all(&options.work)?;
    let work = options.work.canonicalize()?;
    let file = work.join("results.json");
    let mut results: Results =
        if file.exists() { serde_json::from_slice(&fs::read(&file)?)? } else { Results::default() };
    let keep = |results: &Results| -> Result<()> { Ok(fs::write(&file, serde_json::to_vec_pretty(results)?)?) };
    for pair in roots::pairs(&work)?.iter().filter(|pair| options.pairs.iter().any(|name| name == pair.name)) {
        results.images.insert(pair.name.to_owned(), fs::metadata(&pair.image)?.len());
        results.meanings.insert(pair.name.to_owned(), pair.meaning.to_owned());
        for kind in &options.packs {
            let key = format!("{} {kind}", pair.name);
            if let Entry::Vacant(open) = results.sizes.entry(key) {
                open.insert(build(&work, pair, kind)?);
                keep(&results)?;
            }
        }
        if options.rounds > 0 {
            apply(&work, pair, options.rounds, &mut results)?;
            keep(&results)?;
        }
        for tool in &options.tools {
            let key = format!("{} {tool}", pair.name);
            if let Entry::Vacant(open) = results.sizes.entry(key) {
                eprintln!("{} {tool}", pair.name);
                let (bytes, usage) = tools::run(&work, pair, tool)?;
                open.insert(Sized { bytes, usage });
                keep(&results)?;
            }
        }
    }
    println!("{}", table::markdown(&results));
    Ok(())
}

fn pack_path(work: &Path, pair: &Pair, kind: &str) -> PathBuf {
    work.join(format!("{}-{kind}.pack", pair.name))
}

fn build(work: &Path, pair: &Pair, kind: &str) -> Result<Sized> {
    eprintln!("{} {kind}", pair.name);
    ours::noted_root_hash(&pair.base)?;
    ours::noted_root_hash(&pair.image)?;
    let program = std::env::current_exe()?;
    let pack = pack_path(work, pair, kind);
    let mut line = format!("{} pack {} {}", program.display(), pair.image.display(), pack.display());
    if kind != "full" {
        line.push_str(&format!(" --base {}", pair.base.display()));
    }
    if kind == "delta-fast" {
        line.push_str(" --fast");
    }
    let usage = measured(work, &line)?;
    Ok(Sized { bytes: fs::metadata(pack)?.len(), usage })
}

/// Applies full and delta pack and lets curl and zstd do the same, in turn, into files on a tmpfs.
fn apply(work: &Path, pair: &Pair, rounds: u32, results: &mut Results) -> Result<()> {
    let whole = work.join(format!("{}-whole.zst", pair.name));
    if !whole.exists() {
        measured(work, &format!("zstd -q -15 {} -o {}", pair.image.display(), whole.display()))?;
    }
    let server = Server::start(work)?;
    let program = std::env::current_exe()?;
    let slot = format!("/dev/shm/bascule-bench-{}", std::process::id());
    let base = pair.base.display();
    let ours = |kind: &str, more: &str| {
        let pack = pack_path(work, pair, kind);
        format!("{} apply {} {} {slot} {more}", program.display(), server.port, pack.display())
    };
    let whole_name = whole.file_name().and_then(|name| name.to_str()).context("no name")?.to_owned();
    let curl = format!("curl -s http://127.0.0.1:{}/{whole_name} | zstd -q -d > {slot}; sha256sum {slot}", server.port);
    let read_back = format!("{} read-back {slot}", program.display());
    let steps = [
        ("curl | zstd -d; sha256sum", curl),
        ("apply full", ours("full", "")),
        ("apply delta", ours("delta", &format!("--base {base}"))),
        ("read back", read_back),
    ];
    for round in 0..rounds {
        for (name, line) in &steps {
            eprintln!("{} {name}, round {}", pair.name, round + 1);
            let usage = measured(work, line)?;
            let best = results.steps.entry(format!("{} {name}", pair.name)).or_insert(usage);
            best.wall = best.wall.min(usage.wall);
            best.processor = best.processor.min(usage.processor);
            best.peak_kib = best.peak_kib.max(usage.peak_kib);
        }
    }
    fs::remove_file(slot)?;
    Ok(())
}

struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start(folder: &Path) -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut process = Command::new(program).arg("serve").arg(folder).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().context("no output")?).read_line(&mut line)?;
        Ok(Self { process, port: line.trim().parse()? })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = (self.process.kill(), self.process.wait());
    }
}
