use std::{io, net::SocketAddr};

use thiserror::Error;

/// Why the public face cannot start or go on. Every variant names its remedy.
#[derive(Debug, Error)]
pub enum IngressError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {}", bind_remedy(source))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The API key file is not usable.
    #[error("API key file, line {line}: {reason}")]
    KeyFile {
        /// The line, from 1; 0 is the file as a whole.
        line: usize,
        /// What is wrong with it. Never the key itself.
        reason: String,
    },
    /// An allowed origin is not one.
    #[error("`{0}` is not an origin; expected for example https://chat.example.org")]
    Origin(String),
    /// The listening socket failed for good.
    #[error("the listening socket failed")]
    Accept(#[source] io::Error),
}

fn bind_remedy(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => "the port is in use; stop the other process or choose another with --listen".into(),
        io::ErrorKind::PermissionDenied => {
            "not permitted; ports below 1024 need privileges, choose another with --listen".into()
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine does not have that address; choose another with --listen".into()
        }
        _ => source.to_string(),
    }
}
