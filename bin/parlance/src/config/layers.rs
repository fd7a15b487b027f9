//! Where settings come from: the file, over it the environment, over that the command line. Every value remembers its origin, so
//! that a wrong one can be found.

use std::{collections::BTreeMap, fmt, path::Path};

use super::{
    DEFAULT_MODEL,
    schema::{self, Kind},
};
use crate::models;

/// The prefix of the environment variables that set keys: `PARLANCE_KEY` and `PARLANCE_SECTION__KEY`.
const PREFIX: &str = "PARLANCE_";

/// Configuration files past this are not read: no real one comes near it.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Variables with the prefix that are not keys, so no near miss of a key is suspected in them.
const OTHER_VARIABLES: &[&str] =
    &["PARLANCE_CONFIG", "PARLANCE_LOG", "PARLANCE_SERVER", "PARLANCE_API_KEY_FILE", "PARLANCE_CA_CERT"];

/// Variables without a section that read this much like a key are taken for a slip; an orchestrator that sets variables of its own
/// with our prefix (`PARLANCE_PORT`, `PARLANCE_SERVICE_HOST`) is left alone.
const SLIP_DISTANCE: usize = 2;

/// Where a value was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    Default,
    File(String),
    Environment(String),
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => f.write_str(path),
            Origin::Environment(name) => f.write_str(name),
            Origin::Flag(name) => f.write_str(name),
        }
    }
}

/// A value before it is checked against what its key may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Raw {
    Text(String),
    Integer(i64),
    Flag(bool),
    List(Vec<String>),
}

/// One value and where it was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) raw: Raw,
    pub(super) origin: Origin,
}

/// All values that were set, the strongest origin of each, and what was wrong with their form.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub(super) settings: BTreeMap<Vec<String>, Setting>,
    pub(super) problems: Vec<String>,
}

impl Layers {
    /// Reads the configuration file.
    pub(super) fn add_file(&mut self, path: &Path) {
        match read_table(path) {
            Ok(table) => self.add_table(&path.display().to_string(), &mut Vec::new(), table),
            Err(problem) => self.problems.push(problem),
        }
    }

    fn add_table(&mut self, file: &str, above: &mut Vec<String>, table: toml::Table) {
        for (name, value) in table {
            above.push(name);
            match (schema::kind_of(above), value) {
                (Some(kind), value) => self.add_value(file, above, kind, value),
                (None, toml::Value::Table(below)) if below.is_empty() && is_model(above) => self.add_model(file, above),
                (None, toml::Value::Table(below)) if schema::is_section(above) => self.add_table(file, above, below),
                (None, _) if schema::is_section(above) => {
                    self.problems.push(format!(
                        "{file}: `{0}` is a section, not a value. Write it as [{0}] with its keys below",
                        above.join(".")
                    ));
                }
                (None, toml::Value::Table(_)) => {
                    let (unknown, nearest) = (above.join("."), schema::nearest_section(above));
                    self.problems.push(format!("{file}: there is no section [{unknown}]. Did you mean [{nearest}]?"));
                }
                (None, _) => self.unknown(file, above),
            }
            above.pop();
        }
    }

    /// An empty section `[models.NAME]` is the model of that name.
    fn add_model(&mut self, file: &str, section: &[String]) {
        let named = section.last().filter(|name| *name != DEFAULT_MODEL);
        let source = named.map_or(models::DEFAULT_NAME, String::as_str).to_owned();
        let key = section.iter().cloned().chain(["source".to_owned()]).collect();
        self.set(key, Raw::Text(source), Origin::File(file.to_owned()));
    }

    fn add_value(&mut self, file: &str, path: &[String], kind: Kind, value: toml::Value) {
        let found = value.type_str();
        match from_toml(kind, value) {
            Some(raw) => self.set(path.to_vec(), raw, Origin::File(file.to_owned())),
            None => self.problems.push(format!(
                "{file}: `{}` must be {}, not {} {found}. Correct the value",
                path.join("."),
                kind.describe(),
                if found.starts_with(['a', 'i']) { "an" } else { "a" },
            )),
        }
    }

    fn unknown(&mut self, origin: &str, path: &[String]) {
        let (unknown, nearest) = (path.join("."), schema::nearest(path));
        self.problems.push(format!("{origin}: there is no key `{unknown}`. Did you mean `{nearest}`?"));
    }

    /// Reads the environment variables that name keys.
    pub(super) fn add_environment(&mut self, variables: impl Iterator<Item = (String, String)>) {
        let ours = variables.filter(|(name, _)| name.starts_with(PREFIX) && !OTHER_VARIABLES.contains(&name.as_str()));
        for (variable, value) in ours {
            let path: Vec<String> =
                variable[PREFIX.len()..].to_ascii_lowercase().split("__").map(str::to_owned).collect();
            match schema::kind_of(&path) {
                Some(kind) => match from_text(kind, &value) {
                    Some(raw) => self.set(path, raw, Origin::Environment(variable)),
                    None => {
                        self.problems.push(format!("{variable} must be {}, not `{value}`. Correct it", kind.describe()))
                    }
                },
                None if path.len() > 1 || is_slip(&path[0]) => {
                    let nearest = schema::nearest(&path);
                    let meant = format!("{PREFIX}{}", nearest.replace('.', "__").to_ascii_uppercase());
                    self.problems.push(format!("{variable} names no key. Did you mean {meant}?"));
                }
                None => {}
            }
        }
    }

    /// Sets a key from the command line: a text, or a list with commas between its items.
    pub(super) fn add_flag(&mut self, flag: &'static str, path: &str, value: Option<String>) {
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        let raw = value.zip(schema::kind_of(&path)).and_then(|(value, kind)| from_text(kind, &value));
        if let Some(raw) = raw {
            self.set(path, raw, Origin::Flag(flag));
        }
    }

    fn set(&mut self, path: Vec<String>, raw: Raw, origin: Origin) {
        self.settings.insert(path, Setting { raw, origin });
    }
}

fn is_model(section: &[String]) -> bool {
    matches!(section, [models, _] if models == "models")
}

fn is_slip(name: &str) -> bool {
    schema::KEYS.iter().any(|(key, _)| !key.contains('.') && strsim::damerau_levenshtein(key, name) <= SLIP_DISTANCE)
}

fn read_table(path: &Path) -> Result<toml::Table, String> {
    let shown = path.display();
    let size = std::fs::metadata(path).map(|meta| meta.len());
    if size.is_ok_and(|bytes| bytes > MAX_FILE_BYTES) {
        return Err(format!("{shown} is larger than {MAX_FILE_BYTES} bytes. Name a configuration file with --config"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| {
        format!("cannot read the configuration {shown}: {error}. Name a readable file with --config")
    })?;
    text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
        format!("{shown}, line {line}: {}. Correct the TOML", crate::failure::one_line(error.message()))
    })
}

fn from_toml(kind: Kind, value: toml::Value) -> Option<Raw> {
    match (kind, value) {
        (Kind::Text, toml::Value::String(text)) => Some(Raw::Text(text)),
        (Kind::Integer, toml::Value::Integer(number)) => Some(Raw::Integer(number)),
        (Kind::Flag, toml::Value::Boolean(flag)) => Some(Raw::Flag(flag)),
        (Kind::List, toml::Value::Array(items)) => {
            items.into_iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>().map(Raw::List)
        }
        _ => None,
    }
}

fn from_text(kind: Kind, text: &str) -> Option<Raw> {
    match kind {
        Kind::Text => Some(Raw::Text(text.to_owned())),
        Kind::Integer => text.trim().parse().ok().map(Raw::Integer),
        Kind::Flag => text.trim().parse().ok().map(Raw::Flag),
        Kind::List => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(Raw::List(items.map(str::to_owned).collect()))
        }
    }
}
