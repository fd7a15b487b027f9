//! What two nodes say to each other before anything else: who they are, and whether they can work together.
//!
//! Each sends a [`Hello`], looks at the other's, and sends its [`Verdict`]; the link stands if both agree. A message is its length in two
//! bytes, big-endian, and prost. The fields never change their numbers: nodes of all versions must be able to refuse each other.

use std::{collections::BTreeMap, io, ops::RangeInclusive, time::Duration};

use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use crate::identity::{BootId, ClusterName, Incarnation, NodeName};

/// The longest message, in bytes.
const MAX_BYTES: usize = 2_048;
/// The longest reason that is read from a peer, in characters.
const MAX_REASON: usize = 300;

/// How a node presents itself.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Hello {
    #[prost(string, tag = "1")]
    pub(super) cluster: String,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(fixed64, tag = "3")]
    pub(super) boot: u64,
    /// The versions of what follows that it speaks.
    #[prost(uint32, tag = "4")]
    pub(super) oldest: u32,
    #[prost(uint32, tag = "5")]
    pub(super) newest: u32,
    /// What the peer's frames on this link must bear.
    #[prost(fixed64, tag = "6")]
    pub(super) token: u64,
}

/// What a node makes of the other's hello.
#[derive(Clone, PartialEq, prost::Message)]
struct Verdict {
    #[prost(bool, tag = "1")]
    agreed: bool,
    #[prost(string, tag = "2")]
    reason: String,
}

/// What both agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Agreed {
    /// The other node.
    pub(super) peer: Incarnation,
    /// The newest version that both speak.
    pub(super) version: u32,
    /// What our frames must bear.
    pub(super) token: u64,
}

/// Why two nodes do not link.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Refusal {
    /// It belongs to another cluster.
    #[error("this node belongs to the cluster {ours}, not to {theirs}: check `cluster.name` and the seeds")]
    Cluster {
        /// Ours.
        ours: String,
        /// The peer's.
        theirs: String,
    },
    /// Its name cannot be one.
    #[error("the peer's name is not a name of a node")]
    Name,
    /// Its certificate does not bear its name.
    #[error("the certificate shown does not bear the name {0}: make one for this node")]
    Certificate(NodeName),
    /// A node reached itself.
    #[error("a node does not link with itself")]
    Itself,
    /// Another node has our name.
    #[error("two nodes are named {0}: give each its own `node.name`")]
    NameTaken(NodeName),
    /// No version is spoken by both.
    #[error("this node speaks versions {ours:?} of the cluster's protocol, the other {theirs:?}: upgrade step by step")]
    Version {
        /// Ours.
        ours: RangeInclusive<u32>,
        /// The peer's.
        theirs: RangeInclusive<u32>,
    },
    /// A later start of that node was here.
    #[error("{0} was restarted: this start of it is over")]
    Superseded(NodeName),
    /// There is a link with it.
    #[error("{0} is linked already")]
    Linked(Incarnation),
    /// There are as many links as there may be.
    #[error("there are {0} links, the most that a node has")]
    Full(usize),
}

/// Why a hello led to no link.
#[derive(Debug, Error)]
pub(super) enum HelloError {
    /// The connection failed.
    #[error("the connection failed before both sides had agreed")]
    Io(#[from] io::Error),
    /// Nothing came in time.
    #[error("the peer did not finish its hello within {0:?}")]
    Slow(Duration),
    /// What came is no hello.
    #[error("the peer sent something else than a hello")]
    Malformed,
    /// We refuse.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// The peer refuses.
    #[error("the peer refuses: {0}")]
    RefusedByPeer(String),
}

/// What a node knows when it looks at a hello.
#[derive(Debug)]
pub(super) struct Known<'a> {
    pub(super) cluster: &'a ClusterName,
    pub(super) me: &'a Incarnation,
    pub(super) versions: &'a RangeInclusive<u32>,
    /// The newest start of each node that was seen.
    pub(super) newest: &'a BTreeMap<NodeName, BootId>,
    /// With whom there are links.
    pub(super) linked: &'a [Incarnation],
    pub(super) most_links: usize,
}

/// Judges a hello; `proven` says whether the peer's certificate bears a name.
pub(super) fn judge(
    known: &Known<'_>,
    hello: &Hello,
    proven: impl FnOnce(&NodeName) -> bool,
) -> Result<Agreed, Refusal> {
    if hello.cluster != known.cluster.as_str() {
        let theirs = hello.cluster.chars().take(MAX_REASON).collect();
        return Err(Refusal::Cluster { ours: known.cluster.to_string(), theirs });
    }
    let name: NodeName = hello.name.parse().map_err(|_| Refusal::Name)?;
    if !proven(&name) {
        return Err(Refusal::Certificate(name));
    }
    let peer = Incarnation { name: name.clone(), boot: BootId(hello.boot) };
    if peer == *known.me {
        return Err(Refusal::Itself);
    }
    if name == known.me.name {
        return Err(Refusal::NameTaken(name));
    }
    let (ours, theirs) = (known.versions, hello.oldest..=hello.newest);
    let version = *ours.end().min(theirs.end());
    if !ours.contains(&version) || !theirs.contains(&version) {
        return Err(Refusal::Version { ours: ours.clone(), theirs });
    }
    if known.newest.get(&name).is_some_and(|newest| *newest > peer.boot) {
        return Err(Refusal::Superseded(name));
    }
    if known.linked.contains(&peer) {
        return Err(Refusal::Linked(peer));
    }
    if known.linked.len() >= known.most_links {
        return Err(Refusal::Full(known.most_links));
    }
    Ok(Agreed { peer, version, token: hello.token })
}

/// Exchanges hellos and verdicts over `stream` within `limit`.
///
/// # Errors
///
/// [`HelloError`]; the stream is of no more use.
pub(super) async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    ours: &Hello,
    limit: Duration,
    judge: impl FnOnce(&Hello) -> Result<Agreed, Refusal>,
) -> Result<Agreed, HelloError> {
    let talk = async {
        send(stream, ours).await?;
        let judged = judge(&receive(stream).await?);
        let reason = judged.as_ref().err().map(ToString::to_string).unwrap_or_default();
        send(stream, &Verdict { agreed: judged.is_ok(), reason }).await?;
        let agreed = judged?;
        let verdict: Verdict = receive(stream).await?;
        match verdict.agreed {
            true => Ok(agreed),
            false => Err(HelloError::RefusedByPeer(verdict.reason.chars().take(MAX_REASON).collect())),
        }
    };
    timeout(limit, talk).await.unwrap_or(Err(HelloError::Slow(limit)))
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), message: &impl prost::Message) -> Result<(), HelloError> {
    let bytes = message.encode_to_vec();
    let length = u16::try_from(bytes.len()).map_err(|_| HelloError::Malformed)?;
    stream.write_all(&[&length.to_be_bytes(), &bytes[..]].concat()).await?;
    Ok(stream.flush().await?)
}

async fn receive<M: prost::Message + Default>(stream: &mut (impl AsyncRead + Unpin)) -> Result<M, HelloError> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_BYTES {
        return Err(HelloError::Malformed);
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    M::decode(&*bytes).map_err(|_| HelloError::Malformed)
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(3);

    fn hello(name: &str, boot: u64) -> Hello {
        Hello { cluster: "test".to_owned(), name: name.to_owned(), boot, oldest: 1, newest: 2, token: boot }
    }

    fn incarnation(name: &str, boot: u64) -> Incarnation {
        Incarnation { name: name.parse().expect("a name"), boot: BootId(boot) }
    }

    fn judged(change: impl FnOnce(&mut Hello)) -> Result<Agreed, Refusal> {
        let mut theirs = hello("b", 7);
        change(&mut theirs);
        let newest =
            BTreeMap::from([("b".parse().expect("a name"), BootId(7)), ("c".parse().expect("a name"), BootId(9))]);
        let (cluster, me) = ("test".parse().expect("a name"), incarnation("a", 1));
        let linked = [incarnation("c", 9)];
        let known =
            Known { cluster: &cluster, me: &me, versions: &(2..=3), newest: &newest, linked: &linked, most_links: 2 };
        judge(&known, &theirs, |name| name.as_str() != "mallory")
    }

    #[test]
    fn nodes_agree_on_the_newest_version_that_both_speak() {
        assert_eq!(judged(|_| ()), Ok(Agreed { peer: incarnation("b", 7), version: 2, token: 7 }));
        assert_eq!(judged(|hello| hello.newest = 9).map(|agreed| agreed.version), Ok(3));
    }

    #[test]
    fn each_reason_to_refuse_is_named() {
        type Change = fn(&mut Hello);
        let refusals: [(Change, &str); 9] = [
            (|hello| hello.cluster = "other".to_owned(), "belongs to the cluster test, not to other"),
            (|hello| hello.name = "B b".to_owned(), "not a name of a node"),
            (|hello| hello.name = "mallory".to_owned(), "does not bear the name mallory"),
            (|hello| (hello.name, hello.boot) = ("a".to_owned(), 1), "with itself"),
            (|hello| (hello.name, hello.boot) = ("a".to_owned(), 2), "two nodes are named a"),
            (|hello| (hello.oldest, hello.newest) = (4, 5), "versions 2..=3"),
            (|hello| (hello.oldest, hello.newest) = (3, 2), "versions 2..=3"),
            (|hello| hello.boot = 6, "b was restarted"),
            (|hello| (hello.name, hello.boot) = ("c".to_owned(), 9), "is linked already"),
        ];
        for (change, reason) in refusals {
            let refusal = judged(change).expect_err("it is refused").to_string();
            assert!(refusal.contains(reason), "{refusal:?} instead of {reason:?}");
        }
    }

    #[tokio::test]
    async fn both_sides_hear_why_one_refuses() {
        let (mut one, mut other) = duplex(8_192);
        let agree =
            |hello: &Hello| Ok(Agreed { peer: incarnation(&hello.name, hello.boot), version: 1, token: hello.token });
        let (ours, theirs) = (hello("a", 1), hello("b", 2));
        let refuse = |_: &Hello| Err(Refusal::Full(3));
        let (refused, refusing) =
            tokio::join!(exchange(&mut one, &ours, LIMIT, agree), exchange(&mut other, &theirs, LIMIT, refuse));
        assert!(matches!(refused, Err(HelloError::RefusedByPeer(reason)) if reason.contains("3 links")));
        assert!(matches!(refusing, Err(HelloError::Refused(Refusal::Full(3)))));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_hello() {
        let (mut one, _other) = duplex(8_192);
        let found = exchange(&mut one, &hello("a", 1), LIMIT, |_| Err(Refusal::Itself)).await;
        assert!(matches!(found, Err(HelloError::Slow(LIMIT))), "{found:?}");
    }

    #[tokio::test]
    async fn what_is_no_hello_is_refused() {
        for bytes in [&[0xff, 0xff, 1, 2][..], &[0, 3, 0xff, 0xff, 0xff], &[0, 9, 1]] {
            let (mut one, mut other) = duplex(8_192);
            other.write_all(bytes).await.expect("there is room");
            drop(other);
            let found = exchange(&mut one, &hello("a", 1), LIMIT, |_| panic!("there is nothing to judge")).await;
            assert!(matches!(found, Err(HelloError::Malformed | HelloError::Io(_))), "{bytes:?}: {found:?}");
        }
    }
}
