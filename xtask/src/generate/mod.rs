//! `cargo xtask generate`: everything in the tree that is made from code. A test fails when the tree differs.

mod api;
mod chart;
mod crds;
mod fields;
mod on_call;
mod reasons;
mod rights;

use crate::workspace_root;
use anyhow::{Context as _, bail};
use clap::Args;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What to do with the generated files.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Change nothing; fail if a file is not as it would be written.
    #[arg(long)]
    check: bool,
    /// Put what the sandbox wrote (on-call.md in its folder) into docs/on-call.md, and do nothing else.
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    on_call: Option<PathBuf>,
}

/// A generated file, relative to the root of the checkout.
struct Generated {
    path: String,
    content: String,
}

fn all() -> anyhow::Result<Vec<Generated>> {
    let mut files = crds::files()?;
    files.push(fields::file()?);
    files.push(reasons::file());
    files.push(api::file()?);
    files.push(rights::file()?);
    let chart = chart::files(&files)?;
    files.extend(chart);
    Ok(files)
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let root = workspace_root();
    if let Some(made) = &options.on_call {
        return on_call::put(made, &root);
    }
    let mut stale = Vec::new();
    for file in all()? {
        let path = root.join(&file.path);
        if fs::read_to_string(&path).ok().as_deref() == Some(&file.content) {
            continue;
        }
        if !options.check {
            write(&path, &file.content)?;
            println!("wrote {}", file.path);
        }
        stale.push(file.path);
    }
    if options.check && !stale.is_empty() {
        bail!("not up to date: {}; run `cargo xtask generate`", stale.join(", "));
    }
    Ok(())
}

fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    /// Otherwise a change of the API would need two runs.
    #[test]
    fn the_chart_is_made_of_the_definitions_that_are_about_to_be_written() {
        let new =
            super::Generated { path: "manifests/crds/freezes.yaml".to_owned(), content: "new: text\n".to_owned() };
        let chart = super::chart::files(&[new]).unwrap();
        let made = chart.iter().find(|file| file.path.ends_with("templates/crds-freezes.yaml")).unwrap();
        assert!(made.content.contains("new: text"), "{}", made.content);
    }

    #[test]
    fn the_tree_holds_what_the_code_says() {
        super::run(&super::Options { check: true, on_call: None }).unwrap();
    }
}
