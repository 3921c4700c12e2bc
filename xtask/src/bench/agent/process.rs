//! What `/proc` says of a running process: memory, and how often it woke.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::sleep;

/// How finely waking is seen: two wake-ups within one sample count as one moment.
const SAMPLE: Duration = Duration::from_millis(500);

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

/// A process that was watched for a while.
#[derive(Debug)]
pub(super) struct Sampled {
    /// How often its threads went to sleep, and so woke.
    wakes: u64,
    /// When it was seen to have woken, from the start of watching.
    moments: Vec<Duration>,
    /// Processor time in milliseconds.
    pub(super) processor_ms: u64,
    /// Its threads by name.
    pub(super) threads: Vec<String>,
}

impl Sampled {
    /// Watches it without touching it.
    pub(super) async fn watch(pid: u32, time: Duration) -> anyhow::Result<Self> {
        let (first, began) = (switches(pid)?, tokio::time::Instant::now());
        let processor = processor_ms(pid)?;
        let (mut last, mut moments) = (first, Vec::new());
        while began.elapsed() < time {
            sleep(SAMPLE).await;
            let now = switches(pid)?;
            if now != last {
                moments.push(began.elapsed());
                last = now;
            }
        }
        let mut threads = BTreeSet::new();
        for task in tasks(pid)? {
            threads.insert(fs::read_to_string(task.join("comm"))?.trim().to_owned());
        }
        Ok(Self {
            wakes: last.saturating_sub(first),
            moments,
            processor_ms: processor_ms(pid)?.saturating_sub(processor),
            threads: threads.into_iter().collect(),
        })
    }

    /// For the table.
    pub(super) fn told(&self, seconds: u64) -> String {
        let moments = self.moments.len() as u64;
        let every = seconds.checked_div(moments).map_or_else(|| "never".to_owned(), |every| format!("every {every} s"));
        let at: Vec<String> = self.moments.iter().map(|at| at.as_secs().to_string()).collect();
        format!("{moments} moments ({every}; {} thread switches; at second {})", self.wakes, at.join(", "))
    }
}

fn tasks(pid: u32) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).context("the agent is gone")?;
    Ok(entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
}

/// How often all threads gave the processor up by themselves: each of that was a wake-up before.
fn switches(pid: u32) -> anyhow::Result<u64> {
    let mut sum = 0;
    for task in tasks(pid)? {
        let text = fs::read_to_string(task.join("status")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sum += line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}

/// Processor time of all threads (proc(5), `schedstat`: nanoseconds on the processor first).
fn processor_ms(pid: u32) -> anyhow::Result<u64> {
    let mut sum = 0;
    for task in tasks(pid)? {
        let text = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
        sum += text.split_whitespace().next().and_then(|first| first.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum / 1_000_000)
}
