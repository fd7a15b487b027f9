//! parlance-inference-gateway
