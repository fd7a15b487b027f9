//! A strict reader of GGUF files: header, metadata and tensor infos.
//!
//! The format is described in ggml's `docs/gguf.md`. Nothing that the file says is trusted: every count, length and offset is
//! checked against the file's own length before it is used, and what is kept in memory borrows from the mapped file, so that a
//! hostile file can cost no more memory than a small multiple of its size.

mod config;
mod cursor;
mod file;
mod metadata;
mod quantised;
mod tensors;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod writer;

pub(crate) use file::{Gguf, MappedFile};
pub(crate) use metadata::Metadata;
pub(crate) use quantised::{dequantise, four_bits};
pub(crate) use tensors::{GgmlType, TensorInfo};
