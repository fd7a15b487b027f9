//! parlance-actors-guard
