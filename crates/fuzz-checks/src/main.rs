//! Between the corpora in the repository and the folders of files that libFuzzer wants, one for each target.
//!
//! `bascule-fuzz-seeds unpack fuzz/corpus` lays seeds and corpora out; `bascule-fuzz-seeds pack fuzz/corpus` takes what lies
//! there (after `-merge=1` has chosen what is worth keeping) into the repository.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use bascule_fuzz_checks::{TARGETS, Target, corpus};

fn main() -> io::Result<()> {
    let mut arguments = env::args().skip(1);
    let (Some(what), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err(io::Error::other("what is wanted is: bascule-fuzz-seeds unpack|pack FOLDER"));
    };
    let folder = PathBuf::from(folder);
    for target in TARGETS {
        match what.as_str() {
            "unpack" => unpack(target, &folder.join(target.name))?,
            "pack" => pack(target, &folder.join(target.name))?,
            other => return Err(io::Error::other(format!("there is no command {other}: unpack and pack"))),
        }
    }
    Ok(())
}

/// Where a target's corpus lies in the repository.
fn kept(target: Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name).with_extension("zst")
}

fn unpack(target: Target, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let inputs = if kept(target).exists() { corpus::unpack(&fs::read(kept(target))?)? } else { Vec::new() };
    for (number, input) in (target.seeds)().iter().chain(&inputs).enumerate() {
        fs::write(folder.join(format!("kept-{number}")), input)?;
    }
    Ok(())
}

fn pack(target: Target, folder: &Path) -> io::Result<()> {
    let inputs = match fs::read_dir(folder) {
        Ok(files) => files.map(|file| fs::read(file?.path())).collect::<io::Result<Vec<_>>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if inputs.is_empty() {
        return Err(io::Error::other(format!("{} is empty: what is kept would be lost", folder.display())));
    }
    if let Some(parent) = kept(target).parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(kept(target), corpus::pack(inputs)?)
}
