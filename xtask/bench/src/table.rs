//! The results as the tables of docs/benchmarks.md.

use std::fmt::Write;

use crate::measure::Usage;
use crate::results::{Results, Timed};
use crate::tools::{self, describe};

/// Markdown: sizes for each pair, then building, then applying.
pub(crate) fn markdown(results: &Results) -> String {
    let mut text = String::new();
    for (pair, described) in &results.pairs {
        let size = |tool: &str| results.sizes.get(&format!("{pair} {tool}"));
        let whole = size("zstd-15").map(|whole| whole.bytes as f64);
        let (meaning, image, (changed, all)) = (&described.meaning, megabytes(described.image), described.packages);
        let _ = writeln!(text, "\n### ({pair}) {meaning}: {changed} of {all} packages, image of {image:.1} MB\n");
        let _ = writeln!(
            text,
            "| way | MB to move | of whole | processor s | wall s | others | peak MiB |\n|---|---|---|---|---|---|---|"
        );
        for tool in tools::ALL.iter().chain(&["full", "delta-fast", "delta"]) {
            let Some(found) = size(tool) else { continue };
            let share = whole.map_or_else(|| "-".to_owned(), |whole| format!("{:.3}", found.bytes as f64 / whole));
            let (usage, bytes) = (found.usage, megabytes(found.bytes));
            let peak = usage.peak_kib / 1024;
            let name = describe(tool);
            let _ = writeln!(
                text,
                "| {name} | {bytes:.2} | {share} | {:.0} | {:.0} | {:.2} | {peak} |",
                usage.processor, usage.wall, usage.others
            );
        }
        let _ = writeln!(
            text,
            "\n| step | wall s | processor s | raw MB/s | peak MiB | others |\n|---|---|---|---|---|---|"
        );
        for (name, Timed { usage, .. }) in &results.steps {
            let Some(step) = name.strip_prefix(&format!("{pair} ")) else { continue };
            let speed = image / usage.wall;
            let peak = usage.peak_kib as f64 / 1024.0;
            let Usage { wall, processor, others, .. } = usage;
            let _ = writeln!(text, "| {step} | {wall:.2} | {processor:.2} | {speed:.0} | {peak:.1} | {others:.2} |");
        }
    }
    text
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
