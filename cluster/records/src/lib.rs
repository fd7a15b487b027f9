//! parlance-cluster-records
