//! Each command of cargo that a page shows is one: `cargo xtask …` is a command line that this program takes, and what else cargo is
//! told to run is there.

use crate::{Arguments, workspace_root};
use cargo_metadata::{Metadata, MetadataCommand, Target, TargetKind};
use clap::{Parser as _, error::ErrorKind};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

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

/// What a page shows as code: the lines of its blocks, to be typed as they are, and what stands in a sentence, which may be a part of a
/// command.
fn code(text: &str) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    let mut push = |line: &str, whole: bool| {
        let line = line.strip_prefix("$ ").unwrap_or(line);
        // Behind it stands what it does.
        found.push((line.split(" #").next().unwrap_or_default().to_owned(), whole));
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

/// The tasks of this program among it.
fn shown(text: &str) -> Vec<(String, bool)> {
    let task = |(line, whole): (String, bool)| {
        let line = line.strip_prefix("cargo xtask")?.replace('…', "x");
        Some((format!("xtask{line}"), whole))
    };
    code(text).into_iter().filter_map(task).collect()
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

/// A part of `cargo xtask test` that a line names, and there is none of that name.
fn no_such_step(line: &str) -> Option<&str> {
    let name = line.strip_prefix("xtask test --only ")?.split(' ').next()?;
    (!include_str!("test.rs").contains(&format!("\"{name}"))).then_some(name)
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
            assert_eq!(no_such_step(&line), None, "{}: {line}", page.display());
        }
    }
    assert!(all > 40, "{all}");
    for (line, whole) in [("xtask sandbox --nope", false), ("xtask nope", false), ("xtask bench", true)] {
        assert!(wrong(line, whole).is_some(), "{line}");
    }
    assert_eq!(no_such_step("xtask test --only nothing -- x"), Some("nothing"));
}

/// What cargo is told to run of this workspace.
#[derive(Debug, Default)]
struct Run<'a> {
    package: Option<&'a str>,
    target: Option<(TargetKind, &'a str)>,
    library: bool,
    /// Parts of the names of tests.
    names: Vec<&'a str>,
}

/// `None` where it is told something else.
fn run_of(line: &str) -> Result<Option<Run<'_>>, String> {
    // What is set for it alone stands before it.
    let mut words = line.split_whitespace().skip_while(|word| word.contains('='));
    let (Some("cargo"), Some(verb @ ("test" | "bench" | "run" | "build"))) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let (mut run, mut behind) = (Run::default(), false);
    while let Some(word) = words.next() {
        let kind = match word {
            "--test" => TargetKind::Test,
            "--bench" => TargetKind::Bench,
            "--example" => TargetKind::Example,
            "--bin" => TargetKind::Bin,
            "-p" | "--package" => {
                run.package = Some(words.next().ok_or("no package behind it")?);
                continue;
            }
            _ => {
                match word {
                    "--" => behind = true,
                    "--lib" => run.library = true,
                    "--workspace" => {}
                    // The program's own.
                    _ if behind && (verb != "test" || word.starts_with('-')) => {}
                    _ if verb == "test" && !word.starts_with('-') => run.names.push(word),
                    _ => return Err(format!("{word} is nothing that this test knows")),
                }
                continue;
            }
        };
        run.target = Some((kind, words.next().ok_or("no target behind it")?));
    }
    Ok(Some(run))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// The files of a target: the folder of a `main.rs` or `lib.rs`, else its file and the folder of the same name.
fn files(target: &Target) -> Vec<PathBuf> {
    let file = target.src_path.as_std_path();
    let whole = matches!(file.file_name().and_then(OsStr::to_str), Some("main.rs" | "lib.rs"));
    let folder = if whole { file.parent().map(Path::to_owned) } else { Some(file.with_extension("")) };
    let mut found = vec![file.to_owned()];
    if let Some(folder) = folder.filter(|folder| folder.is_dir()) {
        sources(&folder, &mut found);
    }
    found
}

/// Whether the path of some test in a file has this part.
fn has_test(file: &Path, part: &str) -> bool {
    let text = std::fs::read_to_string(file).unwrap();
    let mut names = text.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
    let module = file.strip_prefix(workspace_root()).unwrap_or(file).display().to_string();
    text.contains("test") && (module.contains(part) || names.any(|name| name.contains(part)))
}

/// Whether a line is for cargo.
fn is_there(metadata: &Metadata, line: &str) -> Result<bool, String> {
    if let Some(fuzz) = line.strip_prefix("cargo +nightly fuzz ") {
        let target = fuzz.split_whitespace().nth(1).unwrap_or_default();
        let file = workspace_root().join(format!("fuzz/fuzz_targets/{target}.rs"));
        return if file.is_file() { Ok(true) } else { Err("there is no such fuzz target".to_owned()) };
    }
    let Some(run) = run_of(line)? else { return Ok(false) };
    let packages = metadata.packages.iter();
    let packages: Vec<_> =
        packages.filter(|package| run.package.is_none_or(|name| package.name.as_str() == name)).collect();
    if packages.is_empty() {
        return Err("there is no such package".to_owned());
    }
    let wanted = |target: &&Target| match &run.target {
        Some((kind, name)) => target.kind.contains(kind) && target.name == *name,
        None => !run.library || target.kind.contains(&TargetKind::Lib),
    };
    let targets: Vec<_> = packages.iter().flat_map(|package| &package.targets).filter(wanted).collect();
    if targets.is_empty() {
        return Err("there is no such target".to_owned());
    }
    let files: Vec<PathBuf> = targets.into_iter().flat_map(files).collect();
    match run.names.iter().find(|part| !files.iter().any(|file| has_test(file, part))) {
        Some(part) => Err(format!("no test there has {part} in its name")),
        None => Ok(true),
    }
}

#[test]
fn what_the_docs_have_cargo_run_is_there() {
    let manifest = workspace_root().join("Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap();
    let mut all = 0;
    for page in pages() {
        for (line, _) in code(&std::fs::read_to_string(&page).unwrap()) {
            match is_there(&metadata, &line) {
                Ok(is_one) => all += usize::from(is_one),
                Err(error) => panic!("{}: {line}: {error}", page.display()),
            }
        }
    }
    assert!(all > 80, "{all}");
    for line in [
        "cargo test -p bascule-nobody",
        "cargo test -p bascule-planner --test nothing",
        "cargo test -p bascule-planner --lib -- no_test_is_called_so",
        "cargo bench -p",
        "cargo run --nope",
        "A=b cargo test --workspace --test nothing",
        "cargo +nightly fuzz run nothing",
    ] {
        assert!(is_there(&metadata, line).is_err(), "{line}");
    }
}
