//! parlance-inference-model
