//! The safetensors files of a model: one, or several that an index lists.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use safetensors::{Dtype, SafeTensors, tensor::Metadata};
use serde::Deserialize;

use super::{MAX_DESCRIPTION_BYTES, map};
use crate::{
    ModelError,
    gguf::{GgmlType, MappedFile, TensorInfo},
};

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The most files of one model; those in use have some dozens.
const MAX_SHARDS: usize = 1_024;
/// The bytes that say how long a container's header is.
const LENGTH_BYTES: usize = 8;

/// One file of weights.
#[derive(Debug)]
pub(super) struct Shard {
    file: MappedFile,
    /// Where the data begin.
    begin: usize,
    names: Vec<String>,
    metadata: Metadata,
}

/// What `model.safetensors.index.json` says: the file of each tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Shard {
    fn open(directory: &Path, name: &str) -> Result<Self, ModelError> {
        let file = map(directory, name)?;
        let (header, metadata) = SafeTensors::read_metadata(file.bytes()).map_err(|error| ModelError::Malformed {
            file: file.path().to_path_buf(),
            what: "the safetensors header".to_owned(),
            at: 0,
            problem: error.to_string(),
        })?;
        let names = metadata.offset_keys();
        Ok(Self { file, begin: LENGTH_BYTES + header, names, metadata })
    }

    pub(super) fn file(&self) -> &MappedFile {
        &self.file
    }

    /// The tensors but those that `is_ignored` knows.
    pub(super) fn infos<'a>(
        &'a self,
        is_ignored: &dyn Fn(&str) -> bool,
    ) -> impl Iterator<Item = Result<TensorInfo<'a>, ModelError>> {
        let names = self.names.iter().filter(move |name| !is_ignored(name));
        names.filter_map(|name| self.metadata.info(name).map(|info| (name, info))).map(|(name, info)| {
            let kind = match info.dtype {
                Dtype::F32 => GgmlType::F32,
                Dtype::F16 => GgmlType::F16,
                Dtype::BF16 => GgmlType::Bf16,
                other => {
                    let what = format!("the type {other} of the tensor {name:?}");
                    return Err(ModelError::unsupported(self.file.path(), what, "F32, F16, BF16"));
                }
            };
            // The container checked that the data lie within the file and are as long as type and shape ask for.
            let (begin, end) = info.data_offsets;
            let data = &self.file.bytes()[self.begin + begin..self.begin + end];
            Ok(TensorInfo { name, shape: info.shape.iter().rev().copied().collect(), kind, data })
        })
    }
}

/// Maps all files of weights in `directory`, in the order of their names.
pub(super) fn open(directory: &Path) -> Result<Vec<Shard>, ModelError> {
    if directory.join(WHOLE).exists() {
        return Ok(vec![Shard::open(directory, WHOLE)?]);
    }
    let path = directory.join(INDEX);
    if !path.exists() {
        let problem = format!("it has neither {WHOLE:?} nor {INDEX:?}");
        return Err(ModelError::inconsistent(directory, problem));
    }
    let index = read_index(directory, &path)?;
    let files: BTreeSet<&String> = index.weight_map.values().collect();
    if files.len() > MAX_SHARDS {
        let problem = format!("{} files are more than the {MAX_SHARDS} allowed", files.len());
        return Err(ModelError::inconsistent(&path, problem));
    }
    if let Some(name) = files.iter().find(|name| !is_plain(name)) {
        let problem = format!("it names the file {name:?}, which is not one beside it");
        return Err(ModelError::inconsistent(&path, problem));
    }
    let shards = files.into_iter().map(|name| Shard::open(directory, name)).collect::<Result<Vec<_>, _>>()?;
    check_index(&path, &index, &shards)?;
    Ok(shards)
}

fn read_index(directory: &Path, path: &Path) -> Result<Index, ModelError> {
    let file = map(directory, INDEX)?;
    if file.bytes().len() > MAX_DESCRIPTION_BYTES {
        return Err(ModelError::inconsistent(path, format!("it is longer than {MAX_DESCRIPTION_BYTES} bytes")));
    }
    serde_json::from_slice(file.bytes()).map_err(|source| ModelError::Json { file: path.to_path_buf(), source })
}

/// Whether `name` can only be a file of the same directory.
pub(crate) fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!(parts.next(), Some(std::path::Component::Normal(part)) if part == name) && parts.next().is_none()
}

/// Every tensor must lie where the index says.
fn check_index(path: &Path, index: &Index, shards: &[Shard]) -> Result<(), ModelError> {
    let by_file: BTreeMap<_, _> = shards.iter().map(|shard| (shard.file.path().file_name(), shard)).collect();
    for (tensor, file) in &index.weight_map {
        let shard = by_file.get(&Some(std::ffi::OsStr::new(file)));
        if shard.is_none_or(|shard| shard.metadata.info(tensor).is_none()) {
            let problem = format!("the tensor {tensor:?} is not in {file:?}, where the index says");
            return Err(ModelError::inconsistent(path, problem));
        }
    }
    Ok(())
}
