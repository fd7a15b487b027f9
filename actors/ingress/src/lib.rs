//! parlance-actors-ingress
