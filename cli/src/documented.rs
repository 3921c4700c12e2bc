//! Each `bascule …` that a page of the docs shows is a command line that this program takes.

use crate::args::Arguments;
use clap::{CommandFactory as _, Parser as _, error::ErrorKind};
use std::path::{Path, PathBuf};

/// A command line of a page.
#[derive(Debug)]
struct Shown {
    page: PathBuf,
    line: String,
    /// In a block of its own, to be typed as it is; else a name within a sentence.
    whole: bool,
}

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut pages: Vec<PathBuf> =
        ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"].iter().map(|page| root.join(page)).collect();
    for folder in ["docs", "docs/runbooks", "docs/decisions"] {
        pages.extend(std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path()));
    }
    pages.retain(|page| page.extension().is_some_and(|ending| ending == "md"));
    pages.sort();
    pages
}

fn shown(page: &Path) -> Vec<Shown> {
    let text = std::fs::read_to_string(page).unwrap();
    let mut found = Vec::new();
    let mut push = |line: &str, whole: bool| {
        let line = line.strip_prefix("$ ").unwrap_or(line);
        let line = line.strip_prefix("kubectl ").unwrap_or(line);
        if line.starts_with("bascule ") || line == "bascule" {
            found.push(Shown { page: page.to_owned(), line: line.to_owned(), whole });
        }
    };
    for (index, part) in text.split("```").enumerate() {
        if index % 2 == 1 {
            let lines: Vec<&str> = part.lines().map(str::trim).collect();
            let joined = lines.join("\n").replace("\\\n", "");
            joined.lines().for_each(|line| push(line.trim(), true));
        } else {
            part.split('`').skip(1).step_by(2).for_each(|span| push(span.trim(), false));
        }
    }
    found
}

/// Words as a shell makes them, up to a pipe, a redirection or a comment.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut some) = (Vec::new(), String::new(), None, false);
    for letter in line.chars() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (Some(_), _) => word.push(letter),
            (None, '"' | '\'') => (quote, some) = (Some(letter), true),
            (None, ' ') => {
                if some || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                some = false;
            }
            (None, _) => word.push(letter),
        }
    }
    words.push(word);
    let end = words.iter().position(|word| matches!(word.as_str(), "|" | "||" | "&&" | ">" | "<" | "#"));
    words.truncate(end.unwrap_or(words.len()));
    words.retain(|word| !word.is_empty());
    words
}

/// What stands for a value that has a form.
fn value(word: &str) -> &str {
    match word {
        "DURATION" => "1h",
        "VERSION" => "1.0",
        "WHEN" => "14d",
        "$(date -u -d +5 days +%Y-%m-%dT%H:%M:%SZ)" | "$(date -u -d '+5 days' +%Y-%m-%dT%H:%M:%SZ)" => {
            "2027-03-01T12:00:00Z"
        }
        other => other,
    }
}

fn check(shown: &Shown) -> Result<(), String> {
    // The README has what it does behind it.
    let line = shown.line.split("  ").next().unwrap_or_default();
    // `[--wait DURATION]` may be there: then it has to be right.
    let elided = line.contains('…') || line.contains("...");
    let line = line.replace(['[', ']', '…'], " ");
    let words = words(&line);
    let words: Vec<&str> = words.iter().map(|word| value(word.split('|').next().unwrap_or(word))).collect();
    match Arguments::try_parse_from(words) {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(()),
            // The program's or a group's own name, in a sentence.
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand if !shown.whole => Ok(()),
            ErrorKind::MissingRequiredArgument | ErrorKind::MissingSubcommand if !shown.whole || elided => Ok(()),
            ErrorKind::InvalidValue if elided && error.to_string().contains("a value is required") => Ok(()),
            _ => Err(format!("{}: {}\n{error}", shown.page.display(), shown.line)),
        },
    }
}

#[test]
fn every_command_of_the_docs_is_one() {
    let all: Vec<Shown> = pages().iter().flat_map(|page| shown(page)).collect();
    let typed: Vec<&Shown> = all
        .iter()
        // A place for any of them, what the sandbox prints, and the tasks of the checkout.
        .filter(|one| !["COMMAND", "<step>", "bascule sandbox"].iter().any(|part| one.line.contains(part)))
        .collect();
    assert!(typed.iter().filter(|one| one.whole).count() > 50 && typed.len() > 100, "{}", typed.len());
    let wrong: Vec<String> = typed.iter().filter_map(|one| check(one).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_command_is_in_the_docs() {
    let page = include_str!("../../docs/cli.md");
    for command in Arguments::command().get_subcommands().filter(|command| command.get_name() != "help") {
        let name = command.get_name();
        let said = [format!("`{name}"), format!("bascule {name}")].iter().any(|part| page.contains(part.as_str()));
        assert!(said, "docs/cli.md does not tell of `bascule {name}`");
    }
}

/// The help of a command and of all below it.
fn helps(command: &mut clap::Command) -> Vec<String> {
    let own = command.render_long_help().to_string();
    let below: Vec<String> = command.get_subcommands_mut().flat_map(helps).collect();
    std::iter::once(own).chain(below).collect()
}

#[test]
fn no_help_says_a_word_that_changed() {
    let helps = helps(&mut Arguments::command());
    assert!(helps.len() > 20, "{}", helps.len());
    for help in helps {
        let said = bascule_tests::words::outdated(&help);
        assert!(said.is_empty(), "docs/glossary.md has other words for {said:?}:\n{help}");
    }
}
