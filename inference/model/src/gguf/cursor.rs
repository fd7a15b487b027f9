//! Reads little-endian values from the mapped file, with the place of each in every error.

use std::path::Path;

use crate::ModelError;

/// The longest string. Chat templates, the longest in practice, have tens of kilobytes.
const MAX_STRING_BYTES: u64 = 4 << 20;

/// A position in a file. All reads are bounded by the file's length.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    file: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a Path, bytes: &'a [u8]) -> Self {
        Self { file, bytes, at: 0 }
    }

    /// Where the next read begins.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// The next `count` bytes.
    pub(super) fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], ModelError> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        let Some(taken) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            return Err(self.truncated(what, count));
        };
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ModelError> {
        let taken = self.take(N as u64, what)?;
        Ok(taken.try_into().expect("take returned N bytes"))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, ModelError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, ModelError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A string: its length in eight bytes, then UTF-8.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a str, ModelError> {
        let begin = self.at;
        let length = self.u64(what)?;
        if length > MAX_STRING_BYTES {
            let problem = format!("a string of {length} bytes is longer than the {MAX_STRING_BYTES} allowed");
            return Err(self.malformed_at(begin, what, problem));
        }
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| self.malformed_at(begin, what, "the string is not UTF-8"))
    }

    pub(super) fn malformed_at(&self, at: usize, what: &str, problem: impl Into<String>) -> ModelError {
        ModelError::Malformed {
            file: self.file.to_path_buf(),
            what: what.to_owned(),
            at: at as u64,
            problem: problem.into(),
        }
    }

    fn truncated(&self, what: &str, needs: u64) -> ModelError {
        self.truncated_at(self.at as u64, what, needs)
    }

    pub(super) fn truncated_at(&self, at: u64, what: &str, needs: u64) -> ModelError {
        ModelError::Truncated {
            file: self.file.to_path_buf(),
            what: what.to_owned(),
            at,
            needs,
            length: self.bytes.len() as u64,
        }
    }

    pub(super) fn unsupported(&self, what: impl Into<String>, supported: &str) -> ModelError {
        ModelError::Unsupported { file: self.file.to_path_buf(), what: what.into(), supported: supported.to_owned() }
    }

    /// A beginning that is not GGUF's.
    pub(super) fn not_gguf(&self) -> ModelError {
        let beginning = &self.bytes[..self.bytes.len().min(8)];
        let found = if beginning.is_empty() {
            "it is empty".to_owned()
        } else {
            format!("it begins with \"{}\"", beginning.escape_ascii())
        };
        ModelError::NotGguf { file: self.file.to_path_buf(), found }
    }
}
