//! What every [`Links`] promises, as checks that each implementation's tests run; a broken promise panics.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, pending};
use tokio::time::{Instant, sleep};

use super::{CallError, Failure, Handler, Links, MAX_PAYLOAD_BYTES, WINDOW_BYTES};
use crate::identity::{Incarnation, NodeName};

/// Answers with what it was asked.
const ECHO: u32 = 100;
/// Never answers.
const SILENT: u32 = 101;
/// Answers with the numbers of the messages that came, in the order in which they came.
const NUMBERS: u32 = 102;
/// A message with a number.
const NUMBERED: u32 = 103;
/// Bytes of a number, at the front of a message.
const NUMBER_BYTES: usize = 4;
/// The most numbers that are kept.
const MOST_NUMBERS: usize = 1 << 16;
/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(20);

/// The handler that the peer must have.
#[derive(Debug, Default)]
pub struct Peer {
    /// The numbers that came, one after the other.
    numbers: Mutex<Vec<u8>>,
}

impl Handler for Peer {
    fn call(
        &self,
        _from: &Incarnation,
        kind: u32,
        payload: Bytes,
        _deadline: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let answer = match kind {
            ECHO => Ok(payload),
            NUMBERS => Ok(self.numbers().clone().into()),
            SILENT => return Box::pin(pending()),
            kind => Err(Failure { code: 404, reason: format!("there is no kind {kind}") }),
        };
        Box::pin(async { answer })
    }

    fn cast(&self, _from: &Incarnation, kind: u32, payload: Bytes) {
        let mut numbers = self.numbers();
        if kind == NUMBERED && numbers.len() < MOST_NUMBERS * NUMBER_BYTES {
            numbers.extend_from_slice(&payload[..NUMBER_BYTES]);
        }
    }
}

impl Peer {
    fn numbers(&self) -> MutexGuard<'_, Vec<u8>> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs every check on a node that is linked with `peer`, which has the handler [`Peer`]; one of the two must dial the other.
///
/// # Panics
///
/// If the links break a promise.
pub async fn check_all(links: &dyn Links, peer: &NodeName) {
    answers(links, peer).await;
    passes_failures_on(links, peer).await;
    knows_who_is_not_there(links).await;
    refuses_what_is_too_large(links, peer).await;
    gives_up_in_time(links, peer).await;
    keeps_the_order_of_one_sender(links, peer).await;
    fails_calls_with_their_link_and_links_again(links, peer).await;
}

async fn answers(links: &dyn Links, peer: &NodeName) {
    for bytes in [0, 1, MAX_PAYLOAD_BYTES] {
        let payload = Bytes::from(vec![7; bytes]);
        assert!(links.call(peer, ECHO, payload.clone(), LIMIT).await == Ok(payload), "{bytes} bytes come back");
    }
}

async fn passes_failures_on(links: &dyn Links, peer: &NodeName) {
    let failure = Failure { code: 404, reason: "there is no kind 99".to_owned() };
    assert_eq!(links.call(peer, 99, Bytes::new(), LIMIT).await, Err(CallError::Failed(failure)));
}

async fn knows_who_is_not_there(links: &dyn Links) {
    let nobody = "nobody".parse().expect("a name");
    assert_eq!(links.call(&nobody, ECHO, Bytes::new(), LIMIT).await, Err(CallError::Unreachable));
    assert_eq!(links.cast(&nobody, NUMBERED, Bytes::new(), LIMIT).await, Err(CallError::Unreachable));
    links.cut(&nobody, "there is nobody");
}

async fn refuses_what_is_too_large(links: &dyn Links, peer: &NodeName) {
    let bytes = MAX_PAYLOAD_BYTES + 1;
    let payload = Bytes::from(vec![7; bytes]);
    assert_eq!(links.call(peer, ECHO, payload.clone(), LIMIT).await, Err(CallError::TooLarge { bytes }));
    assert_eq!(links.cast(peer, NUMBERED, payload, LIMIT).await, Err(CallError::TooLarge { bytes }));
}

async fn gives_up_in_time(links: &dyn Links, peer: &NodeName) {
    let (begun, within) = (Instant::now(), Duration::from_millis(50));
    assert_eq!(links.call(peer, SILENT, Bytes::new(), within).await, Err(CallError::TimedOut));
    assert!(begun.elapsed() >= within, "not before its time");
}

/// Twice as much as may be under way, so that the sender waits for room.
async fn keeps_the_order_of_one_sender(links: &dyn Links, peer: &NodeName) {
    let bytes = 64 * 1024;
    let count = 2 * WINDOW_BYTES as u32 / bytes as u32;
    for number in 0..count {
        let mut payload = vec![7; bytes];
        payload[..NUMBER_BYTES].copy_from_slice(&number.to_be_bytes());
        assert_eq!(links.cast(peer, NUMBERED, payload.into(), LIMIT).await, Ok(()), "number {number}");
    }
    let came = links.call(peer, NUMBERS, Bytes::new(), LIMIT).await.expect("an answer");
    let sent: Vec<u8> = (0..count).flat_map(u32::to_be_bytes).collect();
    assert!(came == sent, "{} bytes of numbers came for {}, in order or not", came.len(), sent.len());
}

async fn fails_calls_with_their_link_and_links_again(links: &dyn Links, peer: &NodeName) {
    let call = links.call(peer, SILENT, Bytes::new(), LIMIT);
    let cut = async {
        sleep(Duration::from_millis(20)).await;
        links.cut(peer, "a check");
        Instant::now()
    };
    let (answer, cut) = tokio::join!(call, cut);
    assert_eq!(answer, Err(CallError::LinkLost));
    assert!(cut.elapsed() < LIMIT / 2, "long before its own time");
    let until = Instant::now() + LIMIT;
    while !links.links().iter().any(|link| link.peer.name == *peer) {
        assert!(Instant::now() < until, "no link again");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(links.call(peer, ECHO, "again".into(), LIMIT).await, Ok("again".into()));
}
