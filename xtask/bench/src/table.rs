//! The results as the tables of docs/benchmarks.md.

use std::fmt::Write;

use crate::run::Results;
use crate::tools::{self, describe};

/// Markdown: sizes for each pair, then building, then applying.
pub(crate) fn markdown(results: &Results) -> String {
    let mut text = String::new();
    for (pair, image) in &results.images {
        let size = |tool: &str| results.sizes.get(&format!("{pair} {tool}"));
        let whole = size("zstd-15").map(|whole| whole.bytes as f64);
        let meaning = results.meanings.get(pair).map_or("", String::as_str);
        let _ = writeln!(text, "\n### ({pair}) {meaning}, image of {:.1} MB\n", megabytes(*image));
        let _ = writeln!(
            text,
            "| way | MB to move | of whole | processor s | wall s | peak MiB |\n|---|---|---|---|---|---|"
        );
        for tool in tools::ALL.iter().chain(&["full", "delta-fast", "delta"]) {
            let Some(found) = size(tool) else { continue };
            let share = whole.map_or_else(|| "-".to_owned(), |whole| format!("{:.3}", found.bytes as f64 / whole));
            let (usage, bytes) = (found.usage, megabytes(found.bytes));
            let peak = usage.peak_kib / 1024;
            let name = describe(tool);
            let _ = writeln!(
                text,
                "| {name} | {bytes:.2} | {share} | {:.0} | {:.0} | {peak} |",
                usage.processor, usage.wall
            );
        }
        let _ = writeln!(text, "\n| step | wall s | processor s | raw MB/s | peak MiB |\n|---|---|---|---|---|");
        for (name, usage) in &results.steps {
            let Some(step) = name.strip_prefix(&format!("{pair} ")) else { continue };
            let speed = megabytes(*image) / usage.wall;
            let peak = usage.peak_kib as f64 / 1024.0;
            let _ = writeln!(text, "| {step} | {:.2} | {:.2} | {speed:.0} | {peak:.1} |", usage.wall, usage.processor);
        }
    }
    text
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
