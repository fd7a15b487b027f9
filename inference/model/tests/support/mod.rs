//! Finds and loads the model that the tests compare with reference values.

use std::{env, path::PathBuf};

use parlance_inference_model::{DeviceChoice, LoadOptions, LoadedModel, Precision, load};

/// SmolLM2-135M-Instruct with so many lanes and so much context, on the processor.
pub(crate) fn model(lanes: usize, context_tokens: u32, precision: Precision) -> LoadedModel {
    model_on(DeviceChoice::Cpu, lanes, context_tokens, precision)
}

/// The same on another device.
pub(crate) fn model_on(device: DeviceChoice, lanes: usize, context_tokens: u32, precision: Precision) -> LoadedModel {
    let options = LoadOptions { device, lanes, context_tokens, precision, ..LoadOptions::new("smollm2-135m-instruct") };
    load(&path(), &options, &|_| {}).expect("the model loads")
}

/// Where the model lies.
///
/// # Panics
///
/// If it is not there: the tests do not skip what they cannot check.
pub(crate) fn path() -> PathBuf {
    let default = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/smollm2-135m-instruct.gguf"));
    let path = env::var_os("PARLANCE_TEST_MODEL").map_or_else(default, PathBuf::from);
    assert!(
        path.is_file(),
        "the model is not at {}: fetch it with `make services` or `parlance model fetch`, or set PARLANCE_TEST_MODEL",
        path.display()
    );
    path
}
