//! What travels between the front actors of two nodes: one envelope for everything, in prost.
//!
//! Numbers of fields are never used again for something else. A node sends nothing that the version agreed on does not have.

use bytes::Bytes;

/// One message between two nodes.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Frame {
    /// What the receiver told the sender in its hello: it names the link, and nobody else knows it.
    #[prost(fixed64, tag = "1")]
    pub(super) token: u64,
    /// How many bytes of payload the sender has taken in on this link so far: room for as many more.
    #[prost(uint64, tag = "2")]
    pub(super) taken: u64,
    /// What it says. Nothing: a heartbeat.
    #[prost(oneof = "Body", tags = "3, 4, 5, 6")]
    pub(super) body: Option<Body>,
}

/// What a frame says.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Body {
    /// A message that nobody answers.
    #[prost(message, tag = "3")]
    Cast(Cast),
    /// A question.
    #[prost(message, tag = "4")]
    Call(Call),
    /// The answer to one.
    #[prost(message, tag = "5")]
    Reply(Reply),
    /// Why there is none.
    #[prost(message, tag = "6")]
    Failed(Failed),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Cast {
    /// What the payload is; see [`Handler`](super::Handler).
    #[prost(uint32, tag = "1")]
    pub(super) kind: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) payload: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Call {
    /// The caller's number for it, on this link.
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(uint32, tag = "2")]
    pub(super) kind: u32,
    /// How long the caller still waits, in milliseconds.
    #[prost(uint32, tag = "3")]
    pub(super) within_ms: u32,
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) payload: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Reply {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) payload: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Failed {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    /// The handler's own code; 0: the node is busy and has not begun.
    #[prost(uint32, tag = "2")]
    pub(super) code: u32,
    #[prost(string, tag = "3")]
    pub(super) reason: String,
}

impl Body {
    /// Bytes that count against the receiver's room.
    pub(super) fn weight(&self) -> u64 {
        let payload = match self {
            Self::Cast(cast) => cast.payload.len(),
            Self::Call(call) => call.payload.len(),
            Self::Reply(reply) => reply.payload.len(),
            Self::Failed(failed) => failed.reason.len(),
        };
        (payload + OVERHEAD) as u64
    }
}

/// What a message takes besides its payload, roughly: so that many small ones count too.
const OVERHEAD: usize = 64;
