//! parlance-cluster-log
