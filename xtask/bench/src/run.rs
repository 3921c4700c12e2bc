//! The order of a run. Every figure is kept as soon as it is measured, so a run that was stopped goes on, and one after a change
//! measures what the change touches.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::measure::{Usage, measured};
use crate::results::{Code, Results, Sized, Timed};
use crate::roots::{self, Pair};
use crate::{ours, table, tools};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Where trees, images and results lie; some 10 GB.
    #[arg(long, default_value = "target/bench/release")]
    work: PathBuf,
    /// Which pairs.
    #[arg(long, value_delimiter = ',', default_value = "a,b,c", value_parser = roots::PAIRS)]
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
    /// Measure what is chosen although its figures are known and nothing has changed.
    #[arg(long)]
    again: bool,
}

pub(crate) fn release(options: &Options) -> Result<()> {
    roots::check_tools()?;
    fs::create_dir_all(&options.work)?;
    let work = options.work.canonicalize()?;
    let lock = File::create(work.join("lock"))?;
    ensure!(lock.try_lock().is_ok(), "another run works in {}; give this one another --work", work.display());
    let mut results = Results::load(&work.join("results.json"))?;
    let code = Code::now()?;
    for name in &options.pairs {
        let pair = roots::pair(&work, name)?;
        results.describe(&pair)?;
        let images = format!("{} {}", ours::noted_root_hash(&pair.base)?, ours::noted_root_hash(&pair.image)?);
        let mut sizes: Vec<(&String, String)> = Vec::new();
        sizes.extend(options.packs.iter().map(|kind| (kind, format!("{images} {}", code.packs))));
        sizes.extend(options.tools.iter().map(|tool| (tool, format!("{images} {}", tools::describe(tool)))));
        for (way, of) in sizes {
            let key = format!("{name} {way}");
            if options.again || !results.has_size(&key, &of) {
                let (bytes, usage) = if options.packs.contains(way) {
                    build(&work, &pair, way)?
                } else {
                    tools::run(&work, &pair, way)?
                };
                eprintln!("{key}: {:.2} MB in {:.0} s", bytes as f64 / 1e6, usage.wall);
                results.keep_size(key, Sized { of, bytes, usage })?;
            }
        }
        let of = format!("{images} {}", code.all);
        let known = results.has_steps(name, &of) && !options.again;
        if options.rounds > 0 && !known {
            apply(&work, &pair, options.rounds, &of, &mut results)?;
        }
    }
    println!("{}", table::markdown(&results));
    Ok(())
}

fn pack_path(work: &Path, pair: &Pair, kind: &str) -> PathBuf {
    work.join(format!("{}-{kind}.pack", pair.name))
}

fn build(work: &Path, pair: &Pair, kind: &str) -> Result<(u64, Usage)> {
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
    Ok((fs::metadata(pack)?.len(), usage))
}

/// Applies full and delta pack and lets curl and zstd do the same, in turn, into files on a tmpfs.
fn apply(work: &Path, pair: &Pair, rounds: u32, of: &str, results: &mut Results) -> Result<()> {
    let whole = tools::whole(work, pair);
    for needed in [&whole, &pack_path(work, pair, "full"), &pack_path(work, pair, "delta")] {
        ensure!(needed.exists(), "{} is not there; measure full, delta and zstd-15 first", needed.display());
    }
    let server = Server::start(work)?;
    let program = std::env::current_exe()?;
    let slot = Slot(format!("/dev/shm/bascule-bench-{}", std::process::id()));
    let name = &slot.0;
    let base = pair.base.display();
    let ours = |kind: &str, more: &str| {
        let pack = pack_path(work, pair, kind);
        format!("{} apply {} {} {name} {more}", program.display(), server.port, pack.display())
    };
    let whole_name = whole.file_name().and_then(|name| name.to_str()).context("no name")?.to_owned();
    let curl =
        format!("curl -sf http://127.0.0.1:{}/{whole_name} | zstd -q -d > {name}; sha256sum {name}", server.port);
    let read_back = format!("{} read-back {name}", program.display());
    let steps = [
        ("curl | zstd -d; sha256sum", curl),
        ("apply full", ours("full", "")),
        ("apply delta", ours("delta", &format!("--base {base}"))),
        ("read back", read_back),
    ];
    let mut best: BTreeMap<String, Usage> = BTreeMap::new();
    for round in 1..=rounds {
        for (step, line) in &steps {
            let usage = measured(work, line)?;
            eprintln!("{} {step}, round {round}: {:.2} s", pair.name, usage.wall);
            let best = best.entry(format!("{} {step}", pair.name)).or_insert(usage);
            let peak_kib = best.peak_kib.max(usage.peak_kib);
            if usage.wall < best.wall {
                *best = usage;
            }
            best.peak_kib = peak_kib;
        }
    }
    let timed = |(step, usage)| (step, Timed { of: of.to_owned(), usage });
    results.keep_steps(best.into_iter().map(timed))
}

/// The file on the tmpfs that is written to; gone when it is dropped, for it takes memory.
struct Slot(String);

impl Drop for Slot {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
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
