//! The client side of the public API, for the commands that talk to a node.

mod api;
mod regenerate;
mod sse;
mod turn;

pub(crate) use api::{Api, ApiFailure, Remote};
pub(crate) use turn::{Answer, TurnEnd, Watcher, answer, regenerate};

use crate::{
    failure::{Failure, chain},
    tls,
};

/// A runtime for one command: a client needs no more than one thread.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start the client: {}", chain(&error)), "Try again"))
}

/// An HTTP client that trusts what this machine trusts.
pub(crate) fn builder() -> reqwest::ClientBuilder {
    tls::install_provider();
    reqwest::Client::builder().user_agent(concat!("parlance/", env!("CARGO_PKG_VERSION")))
}
