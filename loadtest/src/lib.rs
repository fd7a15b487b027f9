//! parlance-loadtest
