//! Why a model cannot be loaded, each time with the file, the place and the remedy.

use std::{
    io,
    path::{Path, PathBuf},
};

use parlance_inference_engine::EngineError;
use thiserror::Error;

use crate::DeviceChoice;

/// Why a model cannot be loaded.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The file cannot be opened or mapped.
    #[error("cannot read the model file {}: check the path and its permissions", file.display())]
    Io {
        /// The model file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is not a GGUF file: {found}; give the path of a .gguf file", file.display())]
    NotGguf {
        /// The model file.
        file: PathBuf,
        /// What it begins with.
        found: String,
    },
    /// The file ends too early.
    #[error(
        "{} is truncated: {what} at byte {at} needs {needs} bytes, but the file ends after {length}; fetch the file again",
        file.display()
    )]
    Truncated {
        /// The model file.
        file: PathBuf,
        /// What was being read.
        what: String,
        /// Where it begins.
        at: u64,
        /// How many bytes it needs.
        needs: u64,
        /// The length of the file.
        length: u64,
    },
    /// The file breaks the rules of its format.
    #[error("{} is damaged: {what} at byte {at}: {problem}; fetch the file again", file.display())]
    Malformed {
        /// The model file.
        file: PathBuf,
        /// What was being read.
        what: String,
        /// Where it begins.
        at: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// The file describes a model that does not fit together: missing or contradictory metadata or tensors.
    #[error("{} does not describe a whole model: {problem}; convert or fetch the file again", file.display())]
    Inconsistent {
        /// The model file.
        file: PathBuf,
        /// What is missing or contradictory.
        problem: String,
    },
    /// The file is sound, but this build cannot run it.
    #[error("{}: {what} is not supported; supported: {supported}", file.display())]
    Unsupported {
        /// The model file.
        file: PathBuf,
        /// What is not supported.
        what: String,
        /// What would be.
        supported: String,
    },
    /// The file is not JSON, or not of the kind that belongs there.
    #[error("{} is not the JSON that it should be; fetch the file again", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// The lanes and context asked for cannot be had.
    #[error("{problem}; ask for fewer lanes or a shorter context")]
    Capacity {
        /// What does not fit.
        problem: String,
    },
    /// What is to compute is not there, or cannot compute this.
    #[error("the device {device} cannot be used: {problem}")]
    Device {
        /// The device asked for.
        device: DeviceChoice,
        /// Why not, and what to do.
        problem: String,
    },
    /// The model was loaded, but its first steps failed.
    #[error("the model failed in its warm-up")]
    WarmUp(#[source] EngineError),
}

impl ModelError {
    /// Metadata or tensors of `file` contradict each other.
    pub(crate) fn inconsistent(file: &Path, problem: impl Into<String>) -> Self {
        Self::Inconsistent { file: file.to_path_buf(), problem: problem.into() }
    }

    /// `file` is sound, but this build cannot run it.
    pub(crate) fn unsupported(file: &Path, what: impl Into<String>, supported: impl Into<String>) -> Self {
        Self::Unsupported { file: file.to_path_buf(), what: what.into(), supported: supported.into() }
    }
}
