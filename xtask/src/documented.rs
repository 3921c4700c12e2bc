//! Each `cargo xtask …` that a page shows is a command line that this program takes.

use crate::{Arguments, workspace_root};
use clap::{Parser as _, error::ErrorKind};
use std::path::PathBuf;

fn pages() -> Vec<PathBuf> {
    let root = workspace_root();
    let mut pages: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/debian/README.md", "examples/mkosi/README.md"]
            .iter()
            .map(|page| root.join(page))
            .collect();
    for folder in ["docs", "docs/runbooks", "docs/decisions"] {
        pages.extend(std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path()));
    }
    pages.retain(|page| page.extension().is_some_and(|ending| ending == "md"));
    pages
}

/// The command lines of a page, and whether each stands in a block, to be typed as it is; else it may be a part of one.
fn shown(text: &str) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    let mut push = |line: &str, whole: bool| {
        let line = line.strip_prefix("$ ").unwrap_or(line);
        if let Some(line) = line.strip_prefix("cargo xtask") {
            // Behind it stands what it does.
            let line = line.split(" #").next().unwrap_or_default();
            found.push((format!("xtask{}", line.replace('…', "x")), whole));
        }
    };
    for (index, part) in text.split("```").enumerate() {
        if index % 2 == 1 {
            part.lines().for_each(|line| push(line.trim(), true));
        } else {
            part.split('`').skip(1).step_by(2).for_each(|span| push(span.trim(), false));
        }
    }
    found
}

fn wrong(line: &str, whole: bool) -> Option<String> {
    let error = Arguments::try_parse_from(line.split_whitespace()).err()?;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => None,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        | ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
            if !whole =>
        {
            None
        }
        // The name of an option.
        ErrorKind::InvalidValue if !whole && error.to_string().contains("a value is required") => None,
        _ => Some(error.to_string()),
    }
}

#[test]
fn each_task_of_the_docs_is_one() {
    let mut all = 0;
    for page in pages() {
        for (line, whole) in shown(&std::fs::read_to_string(&page).unwrap()) {
            all += 1;
            if let Some(error) = wrong(&line, whole) {
                panic!("{}: {line}\n{error}", page.display());
            }
        }
    }
    assert!(all > 40, "{all}");
    for (line, whole) in [("xtask sandbox --nope", false), ("xtask nope", false), ("xtask bench", true)] {
        assert!(wrong(line, whole).is_some(), "{line}");
    }
}
