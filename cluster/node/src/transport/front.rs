//! The one actor of a node that other nodes can reach: every frame from every link arrives here.
//!
//! | message | what it does |
//! |---|---|
//! | [`Frame`](FrontMessage::Frame) | belongs to the link whose token it bears; is counted, and handed to the handler or to whoever waits |
//!
//! It never waits: calls run in tasks of their own, at most [`MOST_CALLS`] with at most [`MOST_CALL_BYTES`] of payload; what comes beyond is told
//! that the node is busy. A frame that cannot be read ends its sender's link, or, if it names none, is counted and dropped.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message as _;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use ractor_cluster::RactorClusterMessage;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use super::{
    CallError, Failure, MOST_CALLS,
    frame::{Body, Call, Failed, Frame, Reply},
    link::Link,
    metrics,
    shared::Shared,
};

/// Bytes of payload that they hold together.
const MOST_CALL_BYTES: usize = 64 * 1024 * 1024;
/// What one permit stands for, in bytes.
const PERMIT_BYTES: usize = 1_024;
/// The longest that a call may ask to be waited for.
const LONGEST_CALL: Duration = Duration::from_secs(3_600);

/// What other nodes send.
#[derive(RactorClusterMessage)]
pub(super) enum FrontMessage {
    /// An encoded [`Frame`].
    Frame(Vec<u8>),
}

/// See the module.
pub(super) struct Front;

/// What it works with.
pub(super) struct FrontState {
    shared: Arc<Shared>,
    calls: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl Actor for Front {
    type Msg = FrontMessage;
    type State = FrontState;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        _myself: ActorRef<FrontMessage>,
        shared: Arc<Shared>,
    ) -> Result<FrontState, ActorProcessingErr> {
        let bytes = Semaphore::new(MOST_CALL_BYTES / PERMIT_BYTES);
        Ok(FrontState { shared, calls: Arc::new(Semaphore::new(MOST_CALLS)), bytes: Arc::new(bytes) })
    }

    async fn handle(
        &self,
        _myself: ActorRef<FrontMessage>,
        FrontMessage::Frame(bytes): FrontMessage,
        state: &mut FrontState,
    ) -> Result<(), ActorProcessingErr> {
        match Frame::decode(Bytes::from(bytes)) {
            Ok(frame) => state.take(frame),
            Err(_) => metrics::frame_dropped("malformed"),
        }
        Ok(())
    }
}

impl FrontState {
    fn take(&self, frame: Frame) {
        let Some(link) = self.shared.link_of(frame.token) else { return metrics::frame_dropped("unknown_link") };
        self.shared.observer.heard(&link.peer);
        link.acknowledge(frame.taken);
        let Some(body) = frame.body else { return };
        let weight = body.weight();
        match body {
            Body::Cast(cast) => self.shared.handler.cast(&link.peer, cast.kind, cast.payload),
            Body::Call(call) => self.start(&link, call),
            Body::Reply(Reply { id, payload }) => link.answer(id, Ok(payload)),
            Body::Failed(Failed { id, code: 0, .. }) => link.answer(id, Err(CallError::Busy)),
            Body::Failed(Failed { id, code, reason }) => {
                link.answer(id, Err(CallError::Failed(Failure { code, reason })));
            }
        }
        link.took(weight);
    }

    /// Runs a call in a task of its own, if there is room for one more.
    fn start(&self, link: &Arc<Link>, call: Call) {
        let deadline = Instant::now() + Duration::from_millis(call.within_ms.into()).min(LONGEST_CALL);
        let Some(permits) = self.permits(call.payload.len()) else {
            metrics::call_refused();
            // At once or not at all: who floods us gets no task for each message.
            link.send_now(Body::Failed(Failed { id: call.id, code: 0, reason: String::new() }));
            return;
        };
        let answer = self.shared.handler.call(&link.peer, call.kind, call.payload, deadline);
        let link = link.clone();
        tokio::spawn(async move {
            // Nobody waits for what comes later; and a link that is down has no use for it either.
            let answer = tokio::select! {
                answer = timeout_at(deadline, answer) => answer,
                () = link.until_down() => return,
            };
            drop(permits);
            let Ok(answer) = answer else { return };
            let body = match answer {
                Ok(payload) => Body::Reply(Reply { id: call.id, payload }),
                Err(Failure { code, reason }) => Body::Failed(Failed { id: call.id, code: code.max(1), reason }),
            };
            let _ = link.send(body, deadline).await;
        });
    }

    fn permits(&self, bytes: usize) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let bytes = u32::try_from(bytes.div_ceil(PERMIT_BYTES).max(1)).ok()?;
        let call = self.calls.clone().try_acquire_owned().ok()?;
        Some((call, self.bytes.clone().try_acquire_many_owned(bytes).ok()?))
    }
}
