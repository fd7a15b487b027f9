//! The metadata of a GGUF file: named scalars, strings and flat arrays, borrowed from the file.

use std::{collections::HashMap, path::Path};

use super::cursor::Cursor;
use crate::ModelError;

/// The most metadata entries; models in practice have a few dozen.
const MAX_ENTRIES: u64 = 4_096;
/// The most elements of an array; the largest vocabularies have some 260,000 tokens.
const MAX_ELEMENTS: u64 = 4 << 20;

/// The type numbers of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ValueType {
    /// An integer or a boolean of so many bytes.
    Integer {
        bytes: u8,
        signed: bool,
    },
    Bool,
    F32,
    F64,
    String,
    Array,
}

impl ValueType {
    fn from_number(number: u32) -> Option<Self> {
        let integer = |bytes, signed| Self::Integer { bytes, signed };
        Some(match number {
            0 => integer(1, false),
            1 => integer(1, true),
            2 => integer(2, false),
            3 => integer(2, true),
            4 => integer(4, false),
            5 => integer(4, true),
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            9 => Self::Array,
            10 => integer(8, false),
            11 => integer(8, true),
            12 => Self::F64,
            _ => return None,
        })
    }
}

/// One value. Numbers keep their kind, not their width.
#[derive(Debug, Clone, PartialEq)]
enum Value<'a> {
    Integer(i128),
    Bool(bool),
    Float(f64),
    String(&'a str),
    Strings(Vec<&'a str>),
    Integers(Vec<i128>),
    Floats(Vec<f64>),
    Bools(Vec<bool>),
}

impl Value<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Self::Integer(_) => "an integer",
            Self::Bool(_) => "a boolean",
            Self::Float(_) => "a float",
            Self::String(_) => "a string",
            Self::Strings(_) => "an array of strings",
            Self::Integers(_) => "an array of integers",
            Self::Floats(_) => "an array of floats",
            Self::Bools(_) => "an array of booleans",
        }
    }
}

/// The metadata of one file, by key.
#[derive(Debug)]
pub(crate) struct Metadata<'a> {
    file: &'a Path,
    entries: HashMap<&'a str, Value<'a>>,
}

impl<'a> Metadata<'a> {
    /// Reads `count` entries.
    pub(super) fn read(file: &'a Path, cursor: &mut Cursor<'a>, count: u64) -> Result<Self, ModelError> {
        if count > MAX_ENTRIES {
            let problem = format!("{count} entries are more than the {MAX_ENTRIES} allowed");
            return Err(cursor.malformed_at(16, "the count of metadata entries", problem));
        }
        let mut entries = HashMap::new();
        for _ in 0..count {
            let begin = cursor.position();
            let key = cursor.string("a metadata key")?;
            let value = read_value(cursor, key)?;
            if entries.insert(key, value).is_some() {
                return Err(cursor.malformed_at(begin, &entry_name(key), "the key appears twice"));
            }
        }
        Ok(Self { file, entries })
    }

    /// The file that all this comes from.
    pub(crate) fn file(&self) -> &'a Path {
        self.file
    }

    /// The names of all entries.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.entries.keys().copied()
    }

    /// A string that must be there.
    pub(crate) fn string(&self, key: &str) -> Result<&'a str, ModelError> {
        self.string_or_none(key)?.ok_or_else(|| self.missing(key))
    }

    /// A string, if it is there.
    pub(crate) fn string_or_none(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_kind(key, other, "a string")),
        }
    }

    /// An integer from 0 to 2³²−1 that must be there.
    pub(crate) fn u32(&self, key: &str) -> Result<u32, ModelError> {
        self.u32_or_none(key)?.ok_or_else(|| self.missing(key))
    }

    /// An integer from 0 to 2³²−1, if it is there.
    pub(crate) fn u32_or_none(&self, key: &str) -> Result<Option<u32>, ModelError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Integer(number)) => match u32::try_from(*number) {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(self.inconsistent(format!("the metadata entry {key:?} is {number}, out of range"))),
            },
            Some(other) => Err(self.wrong_kind(key, other, "an integer")),
        }
    }

    /// A finite float, if it is there.
    pub(crate) fn f32_or_none(&self, key: &str) -> Result<Option<f32>, ModelError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) if number.is_finite() => Ok(Some(*number as f32)),
            Some(Value::Float(number)) => {
                Err(self.inconsistent(format!("the metadata entry {key:?} is {number}, not a finite number")))
            }
            Some(other) => Err(self.wrong_kind(key, other, "a float")),
        }
    }

    /// A finite float that must be there.
    pub(crate) fn f32(&self, key: &str) -> Result<f32, ModelError> {
        self.f32_or_none(key)?.ok_or_else(|| self.missing(key))
    }

    /// A boolean, if it is there.
    pub(crate) fn bool_or_none(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong_kind(key, other, "a boolean")),
        }
    }

    /// An array of strings that must be there.
    pub(crate) fn strings(&self, key: &str) -> Result<&[&'a str], ModelError> {
        match self.entries.get(key) {
            None => Err(self.missing(key)),
            Some(Value::Strings(strings)) => Ok(strings),
            Some(other) => Err(self.wrong_kind(key, other, "an array of strings")),
        }
    }

    /// An array of integers that must be there.
    pub(crate) fn integers(&self, key: &str) -> Result<&[i128], ModelError> {
        match self.entries.get(key) {
            None => Err(self.missing(key)),
            Some(Value::Integers(integers)) => Ok(integers),
            Some(other) => Err(self.wrong_kind(key, other, "an array of integers")),
        }
    }

    /// An array of floats that must be there.
    pub(crate) fn floats(&self, key: &str) -> Result<&[f64], ModelError> {
        match self.entries.get(key) {
            None => Err(self.missing(key)),
            Some(Value::Floats(floats)) => Ok(floats),
            Some(other) => Err(self.wrong_kind(key, other, "an array of floats")),
        }
    }

    /// The error for metadata or tensors that contradict each other.
    pub(crate) fn inconsistent(&self, problem: impl Into<String>) -> ModelError {
        ModelError::inconsistent(self.file, problem)
    }

    /// The error for a sound file that this build cannot run.
    pub(crate) fn unsupported(&self, what: impl Into<String>, supported: impl Into<String>) -> ModelError {
        ModelError::unsupported(self.file, what, supported)
    }

    fn missing(&self, key: &str) -> ModelError {
        self.inconsistent(format!("the metadata entry {key:?} is missing"))
    }

    fn wrong_kind(&self, key: &str, found: &Value<'_>, expected: &str) -> ModelError {
        self.inconsistent(format!("the metadata entry {key:?} is {}, not {expected}", found.kind()))
    }
}

fn entry_name(key: &str) -> String {
    format!("the metadata entry {key:?}")
}

fn read_type(cursor: &mut Cursor<'_>, what: &str) -> Result<ValueType, ModelError> {
    let begin = cursor.position();
    let number = cursor.u32(what)?;
    ValueType::from_number(number)
        .ok_or_else(|| cursor.malformed_at(begin, what, format!("{number} is not a type of the format")))
}

fn read_value<'a>(cursor: &mut Cursor<'a>, key: &str) -> Result<Value<'a>, ModelError> {
    let what = entry_name(key);
    Ok(match read_type(cursor, &what)? {
        ValueType::Integer { bytes, signed } => Value::Integer(read_integer(cursor, bytes, signed, &what)?),
        ValueType::Bool => Value::Bool(read_bool(cursor, &what)?),
        ValueType::F32 => Value::Float(f64::from(f32::from_bits(cursor.u32(&what)?))),
        ValueType::F64 => Value::Float(f64::from_bits(cursor.u64(&what)?)),
        ValueType::String => Value::String(cursor.string(&what)?),
        ValueType::Array => read_array(cursor, &what)?,
    })
}

/// Arrays grow as elements are read, so that a large count at the end of a short file allocates little.
fn read_array<'a>(cursor: &mut Cursor<'a>, what: &str) -> Result<Value<'a>, ModelError> {
    let begin = cursor.position();
    let element = read_type(cursor, what)?;
    let count = cursor.u64(what)?;
    if count > MAX_ELEMENTS {
        let problem = format!("an array of {count} elements is longer than the {MAX_ELEMENTS} allowed");
        return Err(cursor.malformed_at(begin, what, problem));
    }
    let elements = 0..count;
    Ok(match element {
        ValueType::Integer { bytes, signed } => {
            Value::Integers(elements.map(|_| read_integer(cursor, bytes, signed, what)).collect::<Result<_, _>>()?)
        }
        ValueType::Bool => Value::Bools(elements.map(|_| read_bool(cursor, what)).collect::<Result<_, _>>()?),
        ValueType::F32 => Value::Floats(
            elements.map(|_| Ok(f64::from(f32::from_bits(cursor.u32(what)?)))).collect::<Result<_, ModelError>>()?,
        ),
        ValueType::F64 => {
            Value::Floats(elements.map(|_| Ok(f64::from_bits(cursor.u64(what)?))).collect::<Result<_, ModelError>>()?)
        }
        ValueType::String => Value::Strings(elements.map(|_| cursor.string(what)).collect::<Result<_, _>>()?),
        ValueType::Array => return Err(cursor.malformed_at(begin, what, "arrays of arrays have no use in a model")),
    })
}

fn read_integer(cursor: &mut Cursor<'_>, bytes: u8, signed: bool, what: &str) -> Result<i128, ModelError> {
    let taken = cursor.take(u64::from(bytes), what)?;
    let negative = signed && taken.last().is_some_and(|last| last & 0x80 != 0);
    let mut wide = if negative { [0xff; 16] } else { [0; 16] };
    wide[..taken.len()].copy_from_slice(taken);
    Ok(i128::from_le_bytes(wide))
}

fn read_bool(cursor: &mut Cursor<'_>, what: &str) -> Result<bool, ModelError> {
    let begin = cursor.position();
    match cursor.take(1, what)? {
        [0] => Ok(false),
        [1] => Ok(true),
        other => Err(cursor.malformed_at(begin, what, format!("{} is not a boolean", other[0]))),
    }
}
