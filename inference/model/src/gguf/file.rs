//! The mapped file and its contents.

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
};

use memmap2::Mmap;

use super::{Metadata, TensorInfo, cursor::Cursor, tensors};
use crate::ModelError;

const MAGIC: &[u8] = b"GGUF";
const SUPPORTED_VERSIONS: &str = "GGUF versions 2 and 3, little-endian";

/// A model file, mapped into memory. It must not be changed while it is mapped.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let failed = |source| ModelError::Io { file: path.to_path_buf(), source };
        let file = File::open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(ModelError::NotGguf { file: path.to_path_buf(), found: "it is not a regular file".to_owned() });
        }
        // SAFETY: the map is read-only and private to this struct. A model file that somebody truncates during the load ends
        // the process with SIGBUS instead of an error; nothing is unsound about it, and model files are replaced, not edited.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        Ok(Self { path: path.to_path_buf(), map })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// What a GGUF file holds, borrowed from it.
#[derive(Debug)]
pub(crate) struct Gguf<'a> {
    pub(crate) metadata: Metadata<'a>,
    tensors: HashMap<&'a str, TensorInfo<'a>>,
}

impl<'a> Gguf<'a> {
    /// Reads header, metadata and tensor infos from `bytes`, the whole of the file `path`.
    pub(crate) fn parse(path: &'a Path, bytes: &'a [u8]) -> Result<Self, ModelError> {
        let mut cursor = Cursor::new(path, bytes);
        if !bytes.starts_with(MAGIC) {
            return Err(cursor.not_gguf());
        }
        cursor.take(MAGIC.len() as u64, "the header")?;
        let version = cursor.u32("the header")?;
        if !matches!(version, 2 | 3) {
            return Err(cursor.unsupported(format!("GGUF version {version}"), SUPPORTED_VERSIONS));
        }
        let tensor_count = cursor.u64("the header")?;
        let entry_count = cursor.u64("the header")?;
        let metadata = Metadata::read(path, &mut cursor, entry_count)?;
        let alignment = metadata.u32_or_none("general.alignment")?;
        let infos = tensors::read(&mut cursor, tensor_count, alignment, bytes)?;
        let mut tensors = HashMap::with_capacity(infos.len());
        for info in infos {
            let name = info.name;
            if tensors.insert(name, info).is_some() {
                return Err(metadata.inconsistent(format!("the tensor {name:?} appears twice")));
            }
        }
        Ok(Self { metadata, tensors })
    }

    /// A tensor, if it is there.
    pub(crate) fn tensor(&self, name: &str) -> Option<&TensorInfo<'a>> {
        self.tensors.get(name)
    }

    /// Whether the file spends hardly more than 8 bits on a value.
    pub(crate) fn is_quantised(&self) -> bool {
        let values: usize = self.tensors.values().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
        let bytes: usize = self.tensors.values().map(|tensor| tensor.data.len()).sum();
        bytes.saturating_mul(8) <= values.saturating_mul(9)
    }

    /// The names of all tensors.
    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = &'a str> {
        self.tensors.keys().copied()
    }
}
