//! The stored shapes of this crate's rows (Protocol Buffers). Field numbers are for ever.
//!
//! What a log record holds already is embedded as such a record, with the record's own format version.

mod rows;
mod state;

use parlance_cluster_protocol::{TurnId, WireError};

pub(crate) use state::{decode_state, encode_state};

/// The newest format of this crate's rows that this build writes and reads.
pub const FORMAT_VERSION: u32 = 1;

fn check_format(what: &'static str, found: u32) -> Result<(), WireError> {
    match found {
        0 => Err(malformed(what, "no format version")),
        1..=FORMAT_VERSION => Ok(()),
        _ => Err(WireError::Newer { what, found, supported: FORMAT_VERSION }),
    }
}

fn malformed(what: &'static str, reason: impl ToString) -> WireError {
    WireError::Malformed { what, reason: reason.to_string() }
}

fn fixed<const N: usize>(what: &'static str, bytes: &[u8]) -> Result<[u8; N], WireError> {
    bytes.try_into().map_err(|_| malformed(what, "an id or hash has the wrong length"))
}

fn turn_id(what: &'static str, bytes: &[u8]) -> Result<TurnId, WireError> {
    Ok(TurnId(u128::from_be_bytes(fixed(what, bytes)?)))
}

fn turn_bytes(turn: TurnId) -> Vec<u8> {
    turn.0.to_be_bytes().to_vec()
}
