//! A node's data directory as a whole: moved into a cluster, backed up, restored. Nobody serves it meanwhile.

mod adopt;
mod backup;
mod copy;
mod manifest;
mod restore;
pub(crate) mod seal;

use std::path::Path;

pub(crate) use self::{
    adopt::{Adoption, adopt},
    backup::{BackedUp, back_up},
    restore::restore,
};
use crate::failure::Failure;

/// The embedded log's directory below a data directory.
const LOG: &str = "log";
/// The embedded records' directory below a data directory.
const RECORDS: &str = "records";

/// Nobody but us has the directory open.
///
/// # Errors
///
/// Exit code 2 if it is no data directory.
fn check_is_data(data: &Path) -> Result<(), Failure> {
    if data.join(LOG).join("meta").is_file() {
        return Ok(());
    }
    Err(Failure::usage(
        format!("{} is not the data directory of a node with an embedded log", data.display()),
        "Name the directory that the node was started with (--data)",
    ))
}
