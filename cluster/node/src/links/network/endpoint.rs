//! A node's side of the network: how it sends, and how it is called.

use std::{future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout_at};

use super::{
    Network,
    link::{Id, Local, Message},
    state::{Asked, Notice, Offered},
};
use crate::{
    identity::NodeName,
    links::{CallError, Failure, LinkInfo, Links, check_size},
};

/// A node that has joined.
pub(super) struct Endpoint {
    pub(super) network: Network,
    pub(super) node: Id,
    pub(super) local: Arc<Local>,
}

impl Links for Endpoint {
    fn dial(&self, address: &str) -> bool {
        self.network.with(|state, now| state.dial(self.node, address, now))
    }

    fn forget(&self, address: &str) {
        self.network.with(|state, _| state.forget(self.node, address));
    }

    fn links(&self) -> Vec<LinkInfo> {
        self.network.with(|state, _| state.links(self.node))
    }

    fn call(
        &self,
        to: &NodeName,
        kind: u32,
        payload: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let (network, node, local, to) = (self.network.clone(), self.node, self.local.clone(), to.clone());
        Box::pin(async move {
            let answer = call(&network, node, &to, kind, payload, Instant::now() + within).await;
            local.unless_killed(answer).await
        })
    }

    fn cast(
        &self,
        to: &NodeName,
        kind: u32,
        payload: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<(), CallError>> {
        let (network, node, local, to) = (self.network.clone(), self.node, self.local.clone(), to.clone());
        Box::pin(async move {
            let sent = cast(&network, node, &to, Message::Cast { kind, payload }, Instant::now() + within).await;
            local.unless_killed(sent).await
        })
    }

    fn cut(&self, peer: &NodeName, _why: &str) {
        self.network.with(|state, now| state.close(self.node, peer, now));
    }

    fn stop(&self) -> BoxFuture<'static, ()> {
        self.network.with(|state, now| state.leave(self.node, now));
        Box::pin(future::ready(()))
    }
}

async fn call(
    network: &Network,
    node: Id,
    to: &NodeName,
    kind: u32,
    payload: Bytes,
    deadline: Instant,
) -> Result<Bytes, CallError> {
    check_size(&payload)?;
    let (end, id, answer) = network.with(|state, _| state.begin(node, to))?;
    // Whatever happens, also that the caller gives up, the call is not waited for any more.
    let _ended = Forget { network, end, id };
    send(network, end, Message::Call { id, kind, payload, deadline }, deadline).await?;
    timeout_at(deadline, answer).await.map_err(|_| CallError::TimedOut)?.unwrap_or(Err(CallError::LinkLost))
}

async fn cast(
    network: &Network,
    node: Id,
    to: &NodeName,
    message: Message,
    deadline: Instant,
) -> Result<(), CallError> {
    if let Message::Cast { payload, .. } = &message {
        check_size(payload)?;
    }
    let end = network.with(|state, _| state.end_to(node, to)).ok_or(CallError::Unreachable)?;
    send(network, end, message, deadline).await
}

/// Sends as soon as the peer has room.
async fn send(network: &Network, end: Id, message: Message, deadline: Instant) -> Result<(), CallError> {
    loop {
        match network.with(|state, now| state.offer(end, &message, now)) {
            Offered::Sent => return Ok(()),
            Offered::Over => return Err(CallError::Unreachable),
            Offered::Full(room) => timeout_at(deadline, room).await.map_err(|_| CallError::Busy)?,
        }
    }
}

/// Forgets a call when it goes out of scope.
struct Forget<'a> {
    network: &'a Network,
    end: Id,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.network.with(|state, _| state.forget_call(self.end, self.id));
    }
}

/// Calls a node because of what came, or became of a link.
pub(super) fn hand_over(network: &Network, local: &Local, notice: Notice) {
    if local.is_killed() {
        return;
    }
    match notice {
        Notice::Up(link) => local.observer.up(&link),
        Notice::Down(peer) => local.observer.down(&peer),
        Notice::Heard(peer) => local.observer.heard(&peer),
        Notice::Cast { from, kind, payload } => local.handler.cast(&from, kind, payload),
        Notice::Call(asked) => start(network.clone(), local, asked),
    }
}

/// Runs a call in a task of its own, if there is room for one more.
fn start(network: Network, local: &Local, mut asked: Asked) {
    let (end, id, deadline) = (asked.end, asked.id, asked.deadline);
    let Ok(permit) = local.calls.clone().try_acquire_owned() else {
        let busy = Message::Answer { id, answer: Err(CallError::Busy) };
        network.with(|state, now| state.offer(end, &busy, now));
        return;
    };
    let answer = local.handler.call(&asked.from, asked.kind, asked.payload, deadline);
    tokio::spawn(async move {
        // Nobody waits for what comes later; and a link that is over has no use for it either.
        let answer = tokio::select! {
            biased;
            _ = asked.over.changed() => return,
            answer = timeout_at(deadline, answer) => answer,
        };
        drop(permit);
        let Ok(answer) = answer else { return };
        let failed = |Failure { code, reason }| CallError::Failed(Failure { code: code.max(1), reason });
        let answer = Message::Answer { id, answer: answer.map_err(failed) };
        let _ = send(&network, end, answer, deadline).await;
    });
}
