//! Reading the sources: files in a fixed order, drop-ins after them, the environment last.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::keys::{KEYS, Key};

/// Longest settings file in bytes.
const MAX_FILE: u64 = 256 << 10;
/// Most drop-ins of a folder.
const MAX_DROP_INS: usize = 64;
/// What every variable of ours begins with.
const PREFIX: &str = "BASCULE_";
/// Variables with that beginning that are no settings.
const NOT_SETTINGS: &[&str] = &["BASCULE_SIM_MACHINE", "BASCULE_SETTINGS"];

/// Where settings come from. Later ones win.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Files; one that is missing is skipped. `<file>.d/*.toml` are read after each, sorted by name.
    pub files: Vec<PathBuf>,
    /// Files that must be there.
    pub required: Vec<PathBuf>,
    /// The environment.
    pub environment: Vec<(OsString, OsString)>,
}

impl Sources {
    /// The usual places: the OS image, the node, the environment; or only `file`, where one is named.
    pub fn usual(file: Option<PathBuf>, environment: Vec<(OsString, OsString)>) -> Self {
        match file {
            Some(file) => Self { files: Vec::new(), required: vec![file], environment },
            None => Self {
                files: vec!["/usr/lib/bascule/agent.toml".into(), "/etc/bascule/agent.toml".into()],
                required: Vec::new(),
                environment,
            },
        }
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave one.
    Default,
    /// A line of a file, from 1.
    File(PathBuf, usize),
    /// A variable of the environment.
    Environment(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "${name}"),
        }
    }
}

/// Why settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file can't be read.
    #[error("the settings file {} can't be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is no TOML.
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A key that does not exist.
    #[error("{origin}: there is no setting '{key}'{hint}")]
    Unknown {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
        /// A key that may have been meant.
        hint: String,
    },
    /// A value that can't be used.
    #[error("{origin}: {key} {message}")]
    Value {
        /// Where.
        origin: Origin,
        /// The key.
        key: &'static str,
        /// What is wrong and what would be accepted.
        message: String,
    },
}

/// A value as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text, also for numbers and flags: what they mean depends on the key.
    Text(String),
    /// A list.
    List(Vec<String>),
}

pub(super) type Found = BTreeMap<&'static str, (Value, Origin)>;

pub(super) fn read(sources: &Sources) -> Result<Found, SettingsError> {
    let mut found = Found::new();
    for path in &sources.files {
        read_file(path, false, &mut found)?;
        for drop_in in drop_ins(path)? {
            read_file(&drop_in, true, &mut found)?;
        }
    }
    for path in &sources.required {
        read_file(path, true, &mut found)?;
        for drop_in in drop_ins(path)? {
            read_file(&drop_in, true, &mut found)?;
        }
    }
    for (name, value) in &sources.environment {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        // Kubernetes puts variables for a Service of ours into every pod of its namespace.
        let from_service = ["_SERVICE_", "_PORT"].iter().any(|part| name.contains(part));
        if NOT_SETTINGS.contains(&name) || from_service {
            continue;
        }
        let origin = Origin::Environment(name.to_owned());
        let Some(key) = KEYS.iter().find(|key| key.variable() == name) else {
            let hint = nearest(name, KEYS.iter().map(Key::variable));
            return Err(SettingsError::Unknown { origin, key: name.to_owned(), hint });
        };
        let Some(text) = value.to_str() else {
            let message = "is not UTF-8".to_owned();
            return Err(SettingsError::Value { origin, key: key.name, message });
        };
        let value = match key.kind {
            super::Kind::List => {
                Value::List(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
            }
            _ => Value::Text(text.to_owned()),
        };
        found.insert(key.name, (value, origin));
    }
    Ok(found)
}

fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, SettingsError> {
    let mut folder = path.as_os_str().to_owned();
    folder.push(".d");
    let folder = PathBuf::from(folder);
    let failed = |source| SettingsError::Read { path: folder.clone(), source };
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries.take(MAX_DROP_INS) {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|ending| ending == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path, required: bool, found: &mut Found) -> Result<(), SettingsError> {
    use io::Read as _;
    let failed = |source| SettingsError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !required => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    parse(path, &text, found)
}

pub(super) fn parse(path: &Path, text: &str, found: &mut Found) -> Result<(), SettingsError> {
    let line_of = |offset: usize| text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
    let table = DeTable::parse(text).map_err(|error| SettingsError::Syntax {
        path: path.to_owned(),
        line: line_of(error.span().map_or(0, |span| span.start)),
        message: error.message().to_owned(),
    })?;
    for (section, content) in table.get_ref() {
        let DeValue::Table(keys) = content.get_ref() else {
            let origin = Origin::File(path.to_owned(), line_of(section.span().start));
            let key = section.get_ref().to_string();
            return Err(SettingsError::Unknown { origin, key, hint: ": settings stand in sections".to_owned() });
        };
        for (name, value) in keys {
            let origin = Origin::File(path.to_owned(), line_of(name.span().start));
            let full = format!("{}.{}", section.get_ref(), name.get_ref());
            let Some(key) = KEYS.iter().find(|key| key.name == full) else {
                let hint = nearest(&full, KEYS.iter().map(|key| key.name.to_owned()));
                return Err(SettingsError::Unknown { origin, key: full, hint });
            };
            let value = value_of(value.get_ref()).ok_or_else(|| SettingsError::Value {
                origin: origin.clone(),
                key: key.name,
                message: format!("can't be a {}", value.get_ref().type_str()),
            })?;
            found.insert(key.name, (value, origin));
        }
    }
    Ok(())
}

fn value_of(value: &DeValue<'_>) -> Option<Value> {
    let text = match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.as_str().replace('_', ""),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Array(items) => {
            let texts = items.iter().map(|item| item.get_ref().as_str().map(str::to_owned));
            return Some(Value::List(texts.collect::<Option<_>>()?));
        }
        _ => return None,
    };
    Some(Value::Text(text))
}

/// A name that may have been meant: the one with the fewest letters that differ.
fn nearest(wrong: &str, names: impl Iterator<Item = String>) -> String {
    let distance = |name: &str| {
        let same = name.bytes().zip(wrong.bytes()).filter(|(a, b)| a == b).count();
        name.len().max(wrong.len()) - same
    };
    match names.min_by_key(|name| distance(name)) {
        Some(name) if distance(&name) <= 3 => format!("; did you mean '{name}'?"),
        _ => "; docs/agent.md lists them".to_owned(),
    }
}
