//! parlance-cluster-cache
