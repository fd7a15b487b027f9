//! parlance-actors-runtime
