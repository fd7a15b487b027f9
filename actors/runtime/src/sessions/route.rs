//! The way to a session's owner, on this node or another, while shards move.

use std::{sync::Arc, time::Duration};

use futures_util::{future::join_all, join};
use parlance_cluster_protocol::{SessionKey, ShardId};
use ractor::ActorRef;
use tokio::{
    sync::oneshot,
    time::{self, Instant},
};

use super::{ANSWER_WITHIN, LOOK_AGAIN, Sessions, unanswered};
use crate::{
    Refusal,
    admission::Permit,
    request::{SessionAnswer, SessionCommand, SessionRequest},
    shard::ShardMessage,
    shards::Route,
};

/// How long one owner may take: another may have taken over meanwhile.
const OWNER_ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// What became of asking a session once.
pub(crate) enum Attempt {
    /// It answered.
    Answered(Result<SessionAnswer, Refusal>),
    /// Nothing was done: whoever was asked does not own the shard.
    NotBegun,
    /// Nobody knows whether it was done: the owner is gone, or does not answer.
    Unknown,
}

impl Sessions {
    /// Asks the session's owner, whoever that is, and waits for the answer.
    pub(super) async fn ask(&self, session: &SessionKey, request: SessionRequest) -> Result<SessionAnswer, Refusal> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        self.ask_until(session, &request, deadline).await?.ok_or_else(unanswered)
    }

    /// Asks the session's owner, and the next one where the shard moves meanwhile. `None`: nobody knows whether it was done, and asking
    /// again might do it twice.
    pub(super) async fn ask_until(
        &self,
        session: &SessionKey,
        request: &SessionRequest,
        deadline: Instant,
    ) -> Result<Option<SessionAnswer>, Refusal> {
        let shard = self.shards.shard_of(session);
        let mut changes = self.shards.changes();
        loop {
            changes.mark_unchanged();
            let within = deadline.saturating_duration_since(Instant::now());
            let attempt = match (self.shards.route(shard), self.services.remote()) {
                (Route::There(owner), Some(remote)) => {
                    let _place = self.forward(session, request)?;
                    let now = self.services.clock.now();
                    remote.ask(&owner, session, request, now, within.min(OWNER_ANSWERS_WITHIN)).await
                }
                _ => self.ask_here(session, request.clone(), within).await,
            };
            match attempt {
                Attempt::Answered(answer) => return answer.map(Some),
                Attempt::Unknown if !request.may_be_repeated() => return Ok(None),
                Attempt::Unknown | Attempt::NotBegun => {}
            }
            if Instant::now() >= deadline {
                return Err(restarting());
            }
            // The next owner is not always known by then.
            let _ = time::timeout(LOOK_AGAIN, changes.changed()).await;
        }
    }

    /// A place for a turn on its way to another node, which has its own bounds. Past ours nothing is sent there.
    fn forward(&self, session: &SessionKey, request: &SessionRequest) -> Result<Option<Permit>, Refusal> {
        if !matches!(request, SessionRequest::Submit(_)) {
            return Ok(None);
        }
        self.services.forwarded.admit(&session.tenant).map(Some)
    }

    /// Asks a session that lives on this node.
    pub(crate) async fn ask_here(&self, session: &SessionKey, request: SessionRequest, within: Duration) -> Attempt {
        let shard = self.shards.shard_of(session);
        let Route::Here(actor) = self.shards.route(shard) else { return Attempt::NotBegun };
        let permit = match self.admit(session, &request) {
            Ok(permit) => permit,
            Err(refusal) => return Attempt::Answered(Err(refusal)),
        };
        let (reply, answer) = oneshot::channel();
        let command = SessionCommand { request, permit, reply };
        if actor.cast(ShardMessage::Command { session: Arc::new(session.clone()), command }).is_err() {
            return Attempt::NotBegun;
        }
        match time::timeout(within, answer).await {
            Ok(Ok(Err(Refusal::NotHere))) => Attempt::NotBegun,
            Ok(Ok(answer)) => Attempt::Answered(answer),
            // The session died, and not its shard's reign: it is told so, and may be tried again.
            Ok(Err(_died)) if self.shards.is_here(shard, actor.get_id()) => Attempt::Answered(Err(restarting())),
            Ok(Err(_died)) => Attempt::Unknown,
            Err(_late) => Attempt::Answered(Err(unanswered())),
        }
    }

    /// A place for a turn.
    fn admit(&self, session: &SessionKey, request: &SessionRequest) -> Result<Option<Permit>, Refusal> {
        let log = || self.services.log.admission().map_err(|error| Refusal::LogUnavailable(error.to_string()));
        match request {
            SessionRequest::Submit(_) => log().and_then(|()| self.services.turns.admit(&session.tenant).map(Some)),
            SessionRequest::Adopt(_) => log().map(|()| None),
            _ => Ok(None),
        }
    }

    /// Waits until the record store has everything that was committed about the session, so that a read is current.
    pub(super) async fn settle(&self, session: &SessionKey) -> Result<(), Refusal> {
        self.settle_shard(self.shards.shard_of(session), Instant::now() + ANSWER_WITHIN).await
    }

    async fn settle_shard(&self, shard: ShardId, deadline: Instant) -> Result<(), Refusal> {
        let mut changes = self.shards.changes();
        loop {
            changes.mark_unchanged();
            let within = deadline.saturating_duration_since(Instant::now());
            let settled = match (self.shards.route(shard), self.services.remote()) {
                (Route::There(owner), Some(remote)) => remote.settle(&owner.name, Some(shard), within).await,
                (Route::Here(actor), _) => self.settle_actor(&actor, within).await,
                _ => Err(Refusal::NotHere),
            };
            match settled {
                Err(Refusal::NotHere) if Instant::now() >= deadline => return Err(restarting()),
                Err(Refusal::NotHere) => {}
                settled => return settled,
            }
            let _ = time::timeout(LOOK_AGAIN, changes.changed()).await;
        }
    }

    /// The same for every shard of every node.
    pub(super) async fn settle_all(&self) -> Result<(), Refusal> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        let others = self.shards.other_owners();
        let remote = self.services.remote().filter(|_| !others.is_empty());
        let Some(remote) = remote else { return self.settle_here(None).await };
        let elsewhere = others.iter().map(|owner| remote.settle(&owner.name, None, ANSWER_WITHIN));
        let (here, elsewhere) = join!(self.settle_here(None), join_all(elsewhere));
        here?;
        match elsewhere.into_iter().collect::<Result<(), _>>() {
            Err(Refusal::NotHere) => {}
            settled => return settled,
        }
        // Some owner is gone: shard by shard, whoever owns it by now.
        for shard in 0..self.services.log.shards() {
            self.settle_shard(ShardId(shard), deadline).await?;
        }
        Ok(())
    }

    /// The same for one shard, or all, of this node.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotHere`] if that shard is not this node's, or why the records are not written.
    pub(crate) async fn settle_here(&self, shard: Option<u32>) -> Result<(), Refusal> {
        let actors = match shard {
            None => self.shards.owners(),
            Some(shard) => {
                let known = u16::try_from(shard).ok().filter(|shard| *shard < self.services.log.shards());
                match known.map(|shard| self.shards.route(ShardId(shard))) {
                    Some(Route::Here(actor)) => vec![actor],
                    _ => return Err(Refusal::NotHere),
                }
            }
        };
        let settled = join_all(actors.iter().map(|actor| self.settle_actor(actor, ANSWER_WITHIN))).await;
        settled.into_iter().collect()
    }

    async fn settle_actor(&self, actor: &ActorRef<ShardMessage>, within: Duration) -> Result<(), Refusal> {
        let (reply, settled) = oneshot::channel();
        actor.cast(ShardMessage::Settle { reply }).map_err(|_| Refusal::NotHere)?;
        match time::timeout(within, settled).await {
            Ok(Ok(result)) => result,
            Ok(Err(_died)) => Err(Refusal::NotHere),
            Err(_late) => Err(Refusal::RecordsUnavailable("the record store does not answer".into())),
        }
    }
}

fn restarting() -> Refusal {
    Refusal::LogUnavailable("the shard is being restarted".into())
}
