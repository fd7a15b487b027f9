//! What the benchmarks of the real model share.

use std::path::PathBuf;

use parlance_inference_model::{LoadOptions, LoadedModel, load};

/// The default model, as it is served, with so many lanes.
pub(crate) fn load_default_model(lanes: usize) -> LoadedModel {
    let models = std::env::var("PARLANCE_MODEL_DIR")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../models").to_owned());
    let path = PathBuf::from(models).join("smollm2-135m-instruct.gguf");
    load(&path, &LoadOptions { lanes, ..LoadOptions::new("bench") }, &|_| ()).expect("the default model")
}
