//! The node's face towards its clients: durable sessions by key, wherever their shard lives.

mod adoption;
mod route;
mod views;

use std::{sync::Arc, time::Duration};

use parlance_actors_dialogue::DEDUPE_TTL_MS;
use parlance_cluster_protocol::{
    BodyHash, GenerationOptions, History, Item, ItemsAdded, Origin, Replied, SessionKey, SessionOpened, SessionUpdated,
    TimestampMs, TurnAccepted, TurnFailed, TurnId, UserHash,
};
use parlance_cluster_records::Order;
use tokio::time::{self, Instant};

pub(crate) use self::route::Attempt;
pub use self::views::{SessionInfo, SessionItem};
use crate::{
    AcceptedTurn, Idempotency, Refusal, TurnOutcome, TurnRequest, TurnStream,
    cluster::workers,
    metrics,
    node::{self, Services},
    request::{SessionAnswer, SessionRequest, Submit},
    session::is_missing,
    shards::ShardTable,
    turn::TurnWriter,
};

/// How long an answer of a session's actor may take. Appends are milliseconds; what takes this long has an outage behind it.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long a change of owner is waited for before the table is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Items per read when a turn's reply is looked for.
const SEARCH_PAGE: usize = 256;
/// How far back a turn's reply is looked for, in pages.
const SEARCH_PAGES: usize = 64;

/// Which items of a session's history are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemQuery {
    /// The first item; `None`: from the beginning of the order.
    pub from: Option<u64>,
    /// Whether the newest come first.
    pub descending: bool,
    /// The most items.
    pub limit: usize,
}

/// A wish for another reply in place of the session's last one.
#[derive(Debug, Clone)]
pub struct RegenerateRequest {
    /// A fresh id; ignored where the wish joins an earlier one.
    pub turn: TurnId,
    /// So that a repeated wish joins the first one, for 24 hours.
    pub idempotency: Option<Idempotency>,
    /// The turn whose reply is replaced; `None`: the last.
    pub replaces: Option<TurnId>,
    /// How the new reply is generated; `None`: by default.
    pub options: Option<GenerationOptions>,
    /// Its seed; drawn at random where absent.
    pub seed: Option<u64>,
    /// Through which face the wish came.
    pub origin: Origin,
    /// Whose it is.
    pub user: Option<UserHash>,
}

/// Reaches every session, on whichever node it lives. Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    services: Arc<Services>,
    shards: ShardTable,
}

impl Sessions {
    pub(crate) fn new(services: Arc<Services>, shards: ShardTable) -> Self {
        Self { services, shards }
    }

    /// Asks for a turn. Returns once it is durable; from then on it is answered once, whatever dies.
    ///
    /// # Errors
    ///
    /// Why nothing was accepted. After [`Refusal::LogUnavailable`] alone it is not certain that nothing was.
    pub async fn submit(&self, session: &SessionKey, request: TurnRequest) -> Result<AcceptedTurn, Refusal> {
        let accepted = self.try_submit(session, request).await;
        if let Err(refusal) = &accepted {
            metrics::turn_rejected(refusal);
        }
        accepted
    }

    async fn try_submit(&self, session: &SessionKey, request: TurnRequest) -> Result<AcceptedTurn, Refusal> {
        #[cfg(feature = "planted-bugs")]
        let request = match crate::planted::forgets_keys() {
            true => TurnRequest { idempotency: None, ..request },
            false => request,
        };
        self.services.admit_by_rate(&session.tenant).await?;
        self.services.models.fetch(&request.options.model).await?;
        let instructions = request.instructions.as_deref();
        let check = self.check(session, &request.options, &request.input, instructions, request.history);
        let prompt_tokens = check.await?;
        let turn = self.bind_key(session, request.idempotency.as_ref(), request.turn).await?;
        let (event_id, body_hash) = event(request.idempotency);
        let turn = TurnAccepted {
            turn,
            event_id,
            body_hash,
            input: request.input,
            history: request.history,
            options: request.options,
            seed: request.seed.unwrap_or_else(rand::random),
            origin: request.origin,
            regenerates: None,
            instructions: request.instructions,
            deadline: node::deadline(&self.services),
        };
        let TurnRequest { user, create, behind, .. } = request;
        self.accept(session, Submit { turn: Box::new(turn), user, create, behind, prompt_tokens }).await
    }

    /// Whether a turn fits its model, and how many tokens it has, by a node that serves the model.
    async fn check(
        &self,
        session: &SessionKey,
        options: &GenerationOptions,
        input: &[Item],
        instructions: Option<&str>,
        history: History,
    ) -> Result<u32, Refusal> {
        let refusal = match self.services.models.check(options, input, instructions, history) {
            Err(refusal) if is_missing(&refusal) => refusal,
            checked => return checked,
        };
        let (Some(node), Some(cluster)) =
            (self.services.worker_elsewhere(&options.model, 0, false), &self.services.cluster)
        else {
            return Err(refusal);
        };
        let turn = workers::turn_to_check(options, input, instructions, history);
        cluster.workers.check(&node.name, workers::encode_turn(&session.tenant, turn)).await
    }

    /// The turn that a request with this key, if it has one, is: `turn` for the first such request.
    ///
    /// A key belongs to the whole tenant, so it is bound in a session of its own before the turn's session sees it. A key's own
    /// session needs no binding: it remembers its one turn.
    async fn bind_key(
        &self,
        session: &SessionKey,
        idempotency: Option<&Idempotency>,
        turn: TurnId,
    ) -> Result<TurnId, Refusal> {
        let Some(Idempotency { key, body_hash }) = idempotency else { return Ok(turn) };
        let keys = Self::key_session(&session.tenant, key);
        if *session == keys {
            return Ok(turn);
        }
        let expires_at = TimestampMs(self.services.clock.now().0 + DEDUPE_TTL_MS);
        let (body_hash, target) = (*body_hash, session.clone());
        let bind = SessionRequest::BindKey { body_hash, target, turn, expires_at };
        let SessionAnswer::Bound(bound) = self.ask(&keys, bind).await? else { return Err(confused()) };
        if bound.target == *session { Ok(bound.turn) } else { Err(Refusal::IdempotencyConflict) }
    }

    /// The session of a tenant's idempotency key: where it is bound, and where a keyed call without a session runs.
    pub fn key_session(tenant: &str, key: &str) -> SessionKey {
        SessionKey::in_channel(tenant, "key", key)
    }

    /// Asks for another reply in place of the last one. It is a turn of its own.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit).
    pub async fn regenerate(&self, session: &SessionKey, request: RegenerateRequest) -> Result<AcceptedTurn, Refusal> {
        self.services.admit_by_rate(&session.tenant).await?;
        let options = request.options.unwrap_or_default();
        self.services.models.fetch(&options.model).await?;
        let prompt_tokens = self.check(session, &options, &[], None, History::Session).await?;
        let replaces = match request.replaces {
            Some(turn) => turn,
            None => self.last_turn(session).await?,
        };
        let turn = self.bind_key(session, request.idempotency.as_ref(), request.turn).await?;
        let (event_id, body_hash) = event(request.idempotency);
        let turn = TurnAccepted {
            turn,
            event_id,
            body_hash,
            input: Vec::new(),
            history: History::Session,
            options,
            seed: request.seed.unwrap_or_else(rand::random),
            origin: request.origin,
            regenerates: Some(replaces),
            instructions: None,
            deadline: node::deadline(&self.services),
        };
        let turn = Box::new(turn);
        self.accept(session, Submit { turn, user: request.user, create: false, behind: None, prompt_tokens }).await
    }

    async fn last_turn(&self, session: &SessionKey) -> Result<TurnId, Refusal> {
        let query = ItemQuery { from: None, descending: true, limit: 1 };
        let items = self.items(session, query).await?.ok_or(Refusal::SessionNotFound)?;
        let no_reply =
            || Refusal::InvalidValue { param: "session".into(), message: "there is no reply to replace".into() };
        items.first().and_then(|item| item.turn).ok_or_else(no_reply)
    }

    /// Has a turn accepted, wherever its session lives and moves meanwhile. A turn without a key of its own that may have been accepted
    /// by an owner that is gone is looked for before it is asked for again: its id is the same.
    async fn accept(&self, session: &SessionKey, submit: Submit) -> Result<AcceptedTurn, Refusal> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        let turn = submit.turn.turn;
        let request = SessionRequest::Submit(submit);
        let mut doubtful = false;
        loop {
            match self.ask_until(session, &request, deadline).await {
                Ok(Some(SessionAnswer::Accepted(accepted))) => return Ok(accepted),
                Ok(Some(_)) => return Err(confused()),
                // The earlier request is still being recorded.
                Err(Refusal::InvalidValue { param, .. }) if doubtful && param == "turn" => {}
                Err(refusal) => return Err(refusal),
                Ok(None) => doubtful = true,
            }
            if Instant::now() >= deadline {
                return Err(unanswered());
            }
            time::sleep(LOOK_AGAIN).await;
            if let Some(stream) = self.find(session, turn, deadline).await? {
                return Ok(AcceptedTurn { turn, replayed: false, stream });
            }
        }
    }

    /// Ends a turn (or the running one) with what there is of its reply. Answers whether there was one to end.
    ///
    /// # Errors
    ///
    /// Why the session cannot be reached.
    pub async fn stop(&self, session: &SessionKey, turn: Option<TurnId>) -> Result<bool, Refusal> {
        match self.ask(session, SessionRequest::Stop { turn }).await? {
            SessionAnswer::Stopped(was_open) => Ok(was_open),
            _ => Err(confused()),
        }
    }

    /// Watches a turn, while it runs or afterwards; `None`: the session has no such turn.
    ///
    /// # Errors
    ///
    /// Why the session cannot be reached.
    pub async fn watch(&self, session: &SessionKey, turn: TurnId) -> Result<Option<TurnStream>, Refusal> {
        self.find(session, turn, Instant::now() + ANSWER_WITHIN).await
    }

    async fn find(&self, session: &SessionKey, turn: TurnId, deadline: Instant) -> Result<Option<TurnStream>, Refusal> {
        let running = match self.ask_until(session, &SessionRequest::Watch { turn }, deadline).await {
            // Its shard has ended what it owed; that is recorded.
            Err(Refusal::Parked(_)) => None,
            Ok(Some(SessionAnswer::Watching(running))) => running,
            Ok(Some(_)) => return Err(confused()),
            Ok(None) => return Err(unanswered()),
            Err(refusal) => return Err(refusal),
        };
        match running {
            Some(stream) => Ok(Some(stream)),
            None => Ok(self.find_outcome(session, turn).await?.map(ended)),
        }
    }

    /// Creates a session with settings.
    ///
    /// # Errors
    ///
    /// [`Refusal::SessionExists`], or why it cannot be recorded.
    pub async fn open(
        &self,
        session: &SessionKey,
        opened: SessionOpened,
        user: Option<UserHash>,
    ) -> Result<SessionInfo, Refusal> {
        self.ask(session, SessionRequest::Open { opened, user }).await?;
        self.info(session).await?.ok_or(Refusal::SessionNotFound)
    }

    /// Changes a session's settings.
    ///
    /// # Errors
    ///
    /// [`Refusal::SessionNotFound`], or why it cannot be recorded.
    pub async fn update(
        &self,
        session: &SessionKey,
        updated: SessionUpdated,
        user: Option<UserHash>,
    ) -> Result<SessionInfo, Refusal> {
        self.ask(session, SessionRequest::Update { updated, user }).await?;
        self.info(session).await?.ok_or(Refusal::SessionNotFound)
    }

    /// Puts items into a session's history, without a turn. Answers the new rows.
    ///
    /// # Errors
    ///
    /// [`Refusal::SessionNotFound`], [`Refusal::SessionBusy`] while a turn is open, or why it cannot be recorded.
    pub async fn add_items(
        &self,
        session: &SessionKey,
        added: ItemsAdded,
        user: Option<UserHash>,
    ) -> Result<Vec<SessionItem>, Refusal> {
        let count = added.items.len();
        self.ask(session, SessionRequest::AddItems { added, user }).await?;
        let query = ItemQuery { from: None, descending: true, limit: count };
        let mut items = self.items(session, query).await?.ok_or(Refusal::SessionNotFound)?;
        items.reverse();
        Ok(items)
    }

    /// Deletes a session: its history is gone, open turns end, new ones are refused.
    ///
    /// # Errors
    ///
    /// [`Refusal::SessionNotFound`], or why it cannot be recorded.
    pub async fn delete(&self, session: &SessionKey, user: Option<UserHash>) -> Result<(), Refusal> {
        self.ask(session, SessionRequest::Delete { user }).await.map(drop)
    }

    /// What is known of a session; `None`: there is none.
    ///
    /// # Errors
    ///
    /// Why its records cannot be read.
    pub async fn info(&self, session: &SessionKey) -> Result<Option<SessionInfo>, Refusal> {
        self.settle(session).await?;
        let Some(state) = self.services.records.session(session).await.map_err(unreadable)? else { return Ok(None) };
        SessionInfo::read(session.clone(), self.services.dialogue_limits, &state.value).map_err(unreadable)
    }

    /// Items of a session's history; `None`: there is no such session.
    ///
    /// # Errors
    ///
    /// Why its records cannot be read.
    pub async fn items(&self, session: &SessionKey, query: ItemQuery) -> Result<Option<Vec<SessionItem>>, Refusal> {
        let Some(info) = self.info(session).await? else { return Ok(None) };
        let order = if query.descending { Order::Descending } else { Order::Ascending };
        let from = query.from.map(|from| from.min(info.items));
        let items = self.services.records.items(session, from, order, query.limit).await.map_err(unreadable)?;
        items.iter().map(SessionItem::read).collect::<Result<_, _>>().map(Some).map_err(unreadable)
    }

    /// The session that a tenant's turn belongs to.
    ///
    /// # Errors
    ///
    /// Why the records cannot be read.
    pub async fn find_turn(&self, tenant: &str, turn: TurnId) -> Result<Option<SessionKey>, Refusal> {
        let records = &self.services.records;
        if let Some(session) = records.turn(tenant, turn).await.map_err(unreadable)? {
            return Ok(Some(session));
        }
        self.settle_all().await?;
        records.turn(tenant, turn).await.map_err(unreadable)
    }

    /// Sessions of a tenant and channel, in key order behind `after`.
    ///
    /// # Errors
    ///
    /// Why the records cannot be read.
    pub async fn list(
        &self,
        tenant: &str,
        channel: &str,
        after: Option<&SessionKey>,
        limit: usize,
    ) -> Result<Vec<SessionInfo>, Refusal> {
        self.settle_all().await?;
        let rows = self.services.records.sessions(tenant, channel, after, limit).await.map_err(unreadable)?;
        let read = |(session, state): (_, parlance_cluster_records::At<_>)| {
            let state: bytes::Bytes = state.value;
            SessionInfo::read(session, self.services.dialogue_limits, &state).transpose()
        };
        rows.into_iter().filter_map(read).collect::<Result<_, _>>().map_err(unreadable)
    }

    async fn find_outcome(&self, session: &SessionKey, turn: TurnId) -> Result<Option<TurnOutcome>, Refusal> {
        let mut query = ItemQuery { from: None, descending: true, limit: SEARCH_PAGE };
        for _ in 0..SEARCH_PAGES {
            let Some(items) = self.items(session, query).await? else { return Ok(None) };
            if let Some(outcome) = items.iter().find_map(|item| outcome_of(item, turn)) {
                return Ok(Some(outcome));
            }
            match items.last().and_then(|oldest| oldest.index.checked_sub(1)) {
                Some(next) => query.from = Some(next),
                None => break,
            }
        }
        Ok(None)
    }
}

/// What a turn records of its key.
fn event(idempotency: Option<Idempotency>) -> (String, Option<BodyHash>) {
    idempotency.map_or_else(Default::default, |Idempotency { key, body_hash }| (key, Some(body_hash)))
}

fn unanswered() -> Refusal {
    Refusal::LogUnavailable(format!("no answer within {} s", ANSWER_WITHIN.as_secs()))
}

/// Another node answered something else than what it was asked: it is of a version that does not fit.
fn confused() -> Refusal {
    Refusal::LogUnavailable("the session's node gave an answer that does not fit".into())
}

fn unreadable(error: impl std::fmt::Display) -> Refusal {
    Refusal::RecordsUnavailable(error.to_string())
}

fn ended(outcome: TurnOutcome) -> TurnStream {
    let writer = TurnWriter::new();
    writer.end(outcome);
    writer.watch()
}

fn outcome_of(item: &SessionItem, turn: TurnId) -> Option<TurnOutcome> {
    if item.turn != Some(turn) {
        return None;
    }
    if let (Some(finish), Some(usage), Some(model)) = (item.finish, item.usage, item.model.clone()) {
        let replied = Replied { turn, attempt: 0, text: item.text.clone(), finish, usage, model };
        return Some(TurnOutcome::Replied(Arc::new(replied)));
    }
    let (code, message) = (item.error.clone()?, item.text.clone());
    Some(TurnOutcome::Failed(Arc::new(TurnFailed { turn, attempt: 0, code, message })))
}
