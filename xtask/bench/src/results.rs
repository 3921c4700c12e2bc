//! What was measured, kept in a file with a note of what it was measured on, so that only what changed is measured again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bascule_image::digest::Sha256;
use serde::{Deserialize, Serialize};

use crate::measure::Usage;
use crate::roots::Pair;

/// All that was measured.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    #[serde(skip)]
    file: PathBuf,
    /// Bytes and what making them took, by pair and way.
    pub(crate) sizes: BTreeMap<String, Sized>,
    /// The fastest round, by pair and step.
    pub(crate) steps: BTreeMap<String, Timed>,
    /// The images, by pair.
    pub(crate) pairs: BTreeMap<String, Described>,
}

/// What a pair is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Described {
    /// What changes in it.
    pub(crate) meaning: String,
    /// Bytes of the newer image.
    pub(crate) image: u64,
    /// Packages in the newer image that the older one has not in this version, and packages in all.
    pub(crate) packages: (usize, usize),
}

/// Bytes to move and what making them took.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sized {
    /// What it was measured on.
    pub(crate) of: String,
    pub(crate) bytes: u64,
    pub(crate) usage: Usage,
}

/// What a step took.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Timed {
    /// What it was measured on.
    pub(crate) of: String,
    pub(crate) usage: Usage,
}

impl Results {
    /// What was measured before; nothing if the file is not there.
    pub(crate) fn load(file: &Path) -> Result<Self> {
        let mut results: Self = match fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("{} is broken", file.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => return Err(error).with_context(|| format!("can't read {}", file.display())),
        };
        file.clone_into(&mut results.file);
        Ok(results)
    }

    pub(crate) fn has_size(&self, key: &str, of: &str) -> bool {
        self.sizes.get(key).is_some_and(|known| known.of == of)
    }

    pub(crate) fn has_steps(&self, pair: &str, of: &str) -> bool {
        let mut steps = self.steps.iter().filter(|(step, _)| step.split(' ').next() == Some(pair)).peekable();
        steps.peek().is_some() && steps.all(|(_, known)| known.of == of)
    }

    pub(crate) fn describe(&mut self, pair: &Pair) -> Result<()> {
        let described = Described {
            meaning: pair.meaning.to_owned(),
            image: fs::metadata(&pair.image)?.len(),
            packages: pair.packages()?,
        };
        self.pairs.insert(pair.name.to_owned(), described);
        self.save()
    }

    pub(crate) fn keep_size(&mut self, key: String, size: Sized) -> Result<()> {
        self.sizes.insert(key, size);
        self.save()
    }

    pub(crate) fn keep_steps(&mut self, steps: impl Iterator<Item = (String, Timed)>) -> Result<()> {
        self.steps.extend(steps);
        self.save()
    }

    fn save(&self) -> Result<()> {
        let part = self.file.with_extension("part");
        fs::write(&part, serde_json::to_vec_pretty(self)?)?;
        Ok(fs::rename(part, &self.file)?)
    }
}

/// The state of the code that is measured, as digests over its source.
pub(crate) struct Code {
    /// Of what decides the bytes of a pack.
    pub(crate) packs: Sha256,
    /// Of the whole crate.
    pub(crate) all: Sha256,
}

impl Code {
    /// Reads the source.
    pub(crate) fn now() -> Result<Self> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/image/src");
        Ok(Self { packs: digest_of(&[source.join("build"), source.join("pack")])?, all: digest_of(&[source])? })
    }
}

fn digest_of(folders: &[PathBuf]) -> Result<Sha256> {
    let mut files = Vec::new();
    let mut open = folders.to_vec();
    while let Some(folder) = open.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("can't read {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            let is_test =
                path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with("tests.rs"));
            if path.is_dir() {
                open.push(path);
            } else if !is_test {
                files.push(path);
            }
        }
    }
    files.sort();
    let mut all = Vec::new();
    for file in files {
        all.extend(fs::read(file)?);
    }
    Ok(Sha256::of(&all))
}
