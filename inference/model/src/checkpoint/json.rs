//! JSON files and their entries, with the key of each in every error.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{ModelError, gguf::MappedFile};

/// A file that holds one object.
#[derive(Debug)]
pub(crate) struct JsonFile {
    file: MappedFile,
    entries: Map<String, Value>,
}

impl JsonFile {
    /// Parses `file`, which may have `most` bytes.
    pub(crate) fn read(file: MappedFile, most: usize) -> Result<Self, ModelError> {
        if file.bytes().len() > most {
            let problem = format!("it is longer than the {most} bytes that such a file may have");
            return Err(ModelError::inconsistent(file.path(), problem));
        }
        let entries = serde_json::from_slice(file.bytes())
            .map_err(|source| ModelError::Json { file: file.path().to_path_buf(), source })?;
        Ok(Self { file, entries })
    }

    pub(crate) fn file(&self) -> &MappedFile {
        &self.file
    }

    pub(crate) fn entries(&self) -> &Map<String, Value> {
        &self.entries
    }

    /// The file, without its entries.
    pub(crate) fn into_file(self) -> MappedFile {
        self.file
    }

    /// The entries of the file.
    pub(crate) fn object(&self) -> Object<'_> {
        Object { file: self.file.path(), within: "", entries: &self.entries }
    }
}

/// The entries of an object. `null` is the same as no entry, as transformers writes it for what a model lacks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Object<'a> {
    file: &'a Path,
    /// The key of the object itself and a dot; nothing for the file's own.
    within: &'a str,
    entries: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    pub(crate) fn file(&self) -> &'a Path {
        self.file
    }

    /// Whether there is an entry, be it `null`.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// An entry of any kind, if it is there.
    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.entries.get(key).filter(|value| !value.is_null())
    }

    /// An entry that `read` takes, if it is there.
    fn read<T>(&self, key: &str, kind: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let wrong = || self.inconsistent(format!("the entry {} is not {kind}", self.shown(key)));
        read(value).map(Some).ok_or_else(wrong)
    }

    pub(crate) fn u32_or_none(&self, key: &str) -> Result<Option<u32>, ModelError> {
        self.read(key, "an integer from 0 to 4294967295", |value| u32::try_from(value.as_u64()?).ok())
    }

    pub(crate) fn f32_or_none(&self, key: &str) -> Result<Option<f32>, ModelError> {
        let read = |value: &Value| value.as_f64().map(|number| number as f32).filter(|number| number.is_finite());
        self.read(key, "a finite number", read)
    }

    pub(crate) fn f32(&self, key: &str) -> Result<f32, ModelError> {
        self.f32_or_none(key)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn bool(&self, key: &str) -> Result<bool, ModelError> {
        Ok(self.read(key, "a boolean", Value::as_bool)?.unwrap_or(false))
    }

    pub(crate) fn string_or_none(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.read(key, "a string", Value::as_str)
    }

    pub(crate) fn string(&self, key: &str) -> Result<&'a str, ModelError> {
        self.string_or_none(key)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn array_or_none(&self, key: &str) -> Result<Option<&'a [Value]>, ModelError> {
        self.read(key, "an array", |value| value.as_array().map(Vec::as_slice))
    }

    /// The object at `key`, whose entries errors call `within` and their own key.
    pub(crate) fn object_or_none(&self, key: &str, within: &'a str) -> Result<Option<Object<'a>>, ModelError> {
        let entries = self.read(key, "an object", Value::as_object)?;
        Ok(entries.map(|entries| Object { file: self.file, within, entries }))
    }

    /// An integer from 1 to `most`, if it is there.
    pub(crate) fn bounded_or_none(&self, key: &str, most: u32) -> Result<Option<usize>, ModelError> {
        match self.u32_or_none(key)? {
            Some(value) if (1..=most).contains(&value) => Ok(Some(value as usize)),
            Some(value) => {
                Err(self.inconsistent(format!("the entry {} is {value}, not from 1 to {most}", self.shown(key))))
            }
            None => Ok(None),
        }
    }

    /// An integer from 1 to `most` that must be there.
    pub(crate) fn bounded(&self, key: &str, most: u32) -> Result<usize, ModelError> {
        self.bounded_or_none(key, most)?.ok_or_else(|| self.missing(key))
    }

    /// The key as errors show it.
    pub(crate) fn shown(&self, key: &str) -> String {
        format!("\"{}{key}\"", self.within)
    }

    pub(crate) fn missing(&self, key: &str) -> ModelError {
        self.inconsistent(format!("the entry {} is missing", self.shown(key)))
    }

    pub(crate) fn inconsistent(&self, problem: impl Into<String>) -> ModelError {
        ModelError::inconsistent(self.file, problem)
    }

    pub(crate) fn unsupported(&self, what: impl Into<String>, supported: impl Into<String>) -> ModelError {
        ModelError::unsupported(self.file, what, supported)
    }
}
