//! Printing: tables for people, JSON and YAML for programs, progress bars on a terminal only.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use crate::plain;
use anyhow::{Context as _, bail};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use clap::ValueEnum;
use serde::Serialize;

/// What a command prints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For people, with more columns and every node.
    Wide,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// Writes text for people to stdout. A reader that went away (`| head`) is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    write(&plain::shown(text))
}

/// Writes a document as it is.
fn write(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("can't write to stdout"),
    }
}

/// Says something to the person at the terminal, apart from the output.
pub(crate) fn say(text: &str) {
    // Nobody can be told when stderr is gone.
    let _ = writeln!(io::stderr().lock(), "{}", plain::shown(text));
}

/// Asks on the terminal. Without one there is nobody to ask: then it takes `--yes`.
pub(crate) fn confirmed(question: &str, yes: bool) -> anyhow::Result<bool> {
    if yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        bail!("{question}: there is no terminal to ask on, say --yes to go on");
    }
    say_without_end(&format!("{question}? [y/N] "));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("can't read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Asks on the terminal to type a word: for what is gone for good. Without a terminal there is nobody to ask: then it takes `--yes`.
pub(crate) fn typed(question: &str, word: &str, yes: bool) -> anyhow::Result<bool> {
    if yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        bail!("{question}: there is no terminal to ask on, say --yes to go on");
    }
    say_without_end(&format!("{question}? Type {word} to go on: "));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("can't read the answer")?;
    Ok(answer.trim() == word)
}

fn say_without_end(text: &str) {
    let _ = write!(io::stderr().lock(), "{}", plain::shown(text));
}

/// Prints `value` as asked, where `table` makes the form for people.
pub(crate) fn show<T: Serialize>(format: Format, value: &T, table: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
    match format {
        Format::Table | Format::Wide => print(&table(value)),
        Format::Json => write(&(serde_json::to_string_pretty(value).context("can't make JSON of it")? + "\n")),
        Format::Yaml => write(&serde_saphyr::to_string(value).context("can't make YAML of it")?),
    }
}

/// Lines up columns with two spaces between them. The first row is the heading. A cell is one line, whatever it holds.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let one_line = |cell: &String| cell.replace(['\n', '\r', '\t'], " ");
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(one_line).collect()).collect();
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| console::measure_text_width(cell)).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&console::pad_str(cell, *width, console::Alignment::Left, None));
            line.push_str("  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A time as tables of `release` show it: UTC, whole seconds.
pub(crate) fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// How long it is until then: days, below two days hours.
pub(crate) fn left(until: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let left = until - now;
    match left.num_hours() {
        hours if left <= TimeDelta::zero() => format!("{} ago", count(-hours)),
        hours => count(hours),
    }
}

fn count(hours: i64) -> String {
    if hours.abs() < 48 { format!("{hours} h") } else { format!("{} d", hours / 24) }
}

/// Bytes as people read them, with decimal units.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)];
    for (unit, size) in UNITS {
        if count >= size {
            return format!("{:.1} {unit}", count as f64 / size as f64);
        }
    }
    format!("{count} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let rows = [["A", "LONG"], ["wide cell", "x"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(columns(&rows), "A          LONG\nwide cell  x\n");
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!([999, 1_500, 748_600_000].map(bytes), ["999 B", "1.5 kB", "748.6 MB"]);
    }
}
