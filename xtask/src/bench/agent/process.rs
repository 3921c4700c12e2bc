//! What `/proc` says of a running process: memory, and how often it woke.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::sleep;

/// How finely waking is seen.
const SAMPLE: Duration = Duration::from_millis(250);
/// What happens within this time of the last activity belongs to the same wake-up: a server announces the end of a watch
/// with a bookmark some two seconds before.
const SAME: Duration = Duration::from_secs(3);
/// The target: no wake-up sooner than this after the one before.
const SLEEP: Duration = Duration::from_secs(30);

/// Memory of a process in KiB (proc(5), `/proc/<pid>/status`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    resident: u64,
    highest: u64,
    anonymous: u64,
    file: u64,
}

impl Memory {
    /// Reads it.
    pub(super) fn read(pid: u32) -> anyhow::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).context("the agent is gone")?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).with_context(|| format!("no {name}"))
        };
        Ok(Self {
            resident: field("VmRSS")?,
            highest: field("VmHWM")?,
            anonymous: field("RssAnon")?,
            file: field("RssFile")?,
        })
    }

    /// What is resident now.
    pub(super) fn now(&self) -> String {
        let Self { resident, anonymous, file, .. } = *self;
        format!(
            "{} ({} of its own, {} of the program's file)",
            mebibytes(resident),
            mebibytes(anonymous),
            mebibytes(file)
        )
    }

    /// The most since the last reset.
    pub(super) fn peak(&self) -> String {
        mebibytes(self.highest)
    }
}

#[allow(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
fn mebibytes(kibibytes: u64) -> String {
    format!("{:.1} MiB", kibibytes as f64 / 1024.0)
}

/// Forgets the highest memory (proc(5), `clear_refs`).
pub(super) fn reset_peak(pid: u32) -> anyhow::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("resetting the peak of memory")
}

/// One time that a process was awake, from the start of watching.
#[derive(Debug)]
struct Awake {
    from: Duration,
    until: Duration,
    /// The names of the threads that woke.
    threads: BTreeSet<String>,
}

/// A process that was watched for a while.
#[derive(Debug)]
pub(super) struct Sampled {
    /// When it was awake, in order.
    awake: Vec<Awake>,
    /// How often its threads went to sleep, and so woke.
    switches: u64,
    /// Processor time in milliseconds.
    pub(super) processor_ms: u64,
    /// Its threads by name.
    pub(super) threads: Vec<String>,
}

impl Sampled {
    /// Watches it without touching it.
    pub(super) async fn watch(pid: u32, time: Duration) -> anyhow::Result<Self> {
        let began = tokio::time::Instant::now();
        let mut last = threads(pid)?;
        let processor = processor_ms(&last);
        let (mut awake, mut switches) = (Vec::<Awake>::new(), 0);
        let mut names: BTreeSet<String> = last.values().map(|thread| thread.name.clone()).collect();
        while began.elapsed() < time {
            sleep(SAMPLE).await;
            let (now, at) = (threads(pid)?, began.elapsed());
            for (id, thread) in &now {
                names.insert(thread.name.clone());
                let before = last.get(id).map_or(0, |before| before.switches);
                if thread.switches == before && last.contains_key(id) {
                    continue;
                }
                switches += thread.switches.saturating_sub(before);
                match awake.last_mut().filter(|awake| at - awake.until <= SAME) {
                    Some(awake) => awake.until = at,
                    None => awake.push(Awake { from: at, until: at, threads: BTreeSet::new() }),
                }
                if let Some(awake) = awake.last_mut() {
                    awake.threads.insert(thread.name.clone());
                }
            }
            last = now;
        }
        let processor_ms = processor_ms(&last).saturating_sub(processor);
        Ok(Self { awake, switches, processor_ms, threads: names.into_iter().collect() })
    }

    /// How often, for the table.
    pub(super) fn often(&self, seconds: u64) -> String {
        let count = self.awake.len() as u64;
        let every = seconds.checked_div(count).map_or_else(|| "never".to_owned(), |every| format!("every {every} s"));
        let longest = self.awake.iter().map(|awake| awake.until - awake.from).max().unwrap_or_default();
        format!(
            "{count} ({every}; {} thread switches; awake for {:.1} s at most)",
            self.switches,
            longest.as_secs_f64()
        )
    }

    /// The times between the beginnings of two wake-ups, for the table: how many of which length, and each that is too short
    /// with what it belongs to.
    pub(super) fn gaps(&self) -> String {
        let gaps: Vec<(Duration, &Awake)> = self
            .awake
            .windows(2)
            .filter_map(|pair| Some((pair.last()?.from - pair.first()?.from, pair.last()?)))
            .collect();
        let mut lengths = BTreeMap::<u64, u64>::new();
        for (gap, _) in &gaps {
            *lengths.entry(gap.as_secs() / 15 * 15).or_default() += 1;
        }
        let lengths: Vec<String> =
            lengths.iter().map(|(from, count)| format!("{from} to {} s: {count}", from + 15)).collect();
        let short = gaps.iter().filter(|(gap, _)| *gap < SLEEP).map(|(gap, awake)| {
            let threads: Vec<&str> = awake.threads.iter().map(String::as_str).collect();
            format!("{:.1} s at second {} ({})", gap.as_secs_f64(), awake.from.as_secs(), threads.join(", "))
        });
        let short: Vec<String> = short.collect();
        let short = if short.is_empty() { "none".to_owned() } else { short.join("; ") };
        format!("{}; below {} s: {short}", lengths.join(", "), SLEEP.as_secs())
    }

    /// Which threads woke together, for the table.
    pub(super) fn by_threads(&self) -> String {
        let mut kinds = BTreeMap::<String, u64>::new();
        for awake in &self.awake {
            let threads: Vec<&str> = awake.threads.iter().map(String::as_str).collect();
            *kinds.entry(threads.join(" + ")).or_default() += 1;
        }
        let kinds: Vec<String> = kinds.iter().map(|(threads, count)| format!("{threads}: {count}")).collect();
        kinds.join("; ")
    }
}

/// A thread.
#[derive(Debug)]
struct Thread {
    name: String,
    /// How often it gave the processor up by itself: each of that was a wake-up before.
    switches: u64,
    /// Nanoseconds on the processor (proc(5), `schedstat`).
    processor: u64,
}

/// The threads of a process.
fn threads(pid: u32) -> anyhow::Result<BTreeMap<String, Thread>> {
    let mut found = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the agent is gone")? {
        let task = task?;
        // One that ended meanwhile has nothing to say.
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let status = read("status");
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let Some(switches) = line.and_then(|count| count.trim().parse().ok()) else { continue };
        let processor = read("schedstat").split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0);
        let name = read("comm").trim().to_owned();
        found.insert(task.file_name().to_string_lossy().into_owned(), Thread { name, switches, processor });
    }
    Ok(found)
}

/// Processor time of all threads in milliseconds.
fn processor_ms(threads: &BTreeMap<String, Thread>) -> u64 {
    threads.values().map(|thread| thread.processor).sum::<u64>() / 1_000_000
}
