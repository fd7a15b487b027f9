//! The record store that the nodes of a cluster share, in Scylla or Apache Cassandra, over CQL.
//!
//! ```text
//! states             (session) → state                       items        (session, number) → item
//! sessions           (tenant, channel, bucket, session)      dedupe       (session, event_id) → outcome
//! turns              (tenant, turn) → session                deliveries   (session, delivery) → state
//! turns_of_sessions  (session, turn)                         checkpoints  (shard) → checkpoint
//! ```
//!
//! Nothing is read to be written, and nothing is decided by the servers' clocks: a timestamp made from the change's position decides each
//! cell, for removals too (`changes`). So a change can be sent again, late, or by a node that has lost its shard, and nothing comes of it.
//! Every row is written by its session's slot alone, and rows and checkpoints are read and written at a quorum over all data centres.
//!
//! A session's rows of a kind are one partition. The sessions of a tenant's channel, which are listed in order, lie in 16 partitions by their
//! slots and are merged as they are read. An erasure is one removal for each of a session's partitions, and one for each turn that it has.
//!
//! What fails is sent again with growing pauses until a deadline (`reach`); servers that come back are found by themselves.

mod changes;
mod fault;
mod options;
mod reach;
mod reader;
mod schema;
mod statements;
mod tls;

use std::{
    fmt,
    time::{Duration, Instant},
};

use ::scylla::{
    client::{execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder},
    policies::load_balancing::DefaultPolicy,
    statement::batch::{Batch, BatchStatement, BatchType},
};
use bytes::Bytes;
use futures_util::{FutureExt, TryStreamExt, future::BoxFuture, stream};
use parlance_cluster_protocol::{Dependency, Offset, Position, SessionKey, ShardId, TurnId};
use tokio::time::timeout;

pub use self::options::{Credentials, Replication, ScyllaOptions, TlsOptions};
use self::{
    changes::{MAX_VALUE_BYTES, Mutation, Plan, check_position, key, written_at},
    reach::Reach,
    statements::{Bind, Statement, Statements},
    tls::Relays,
};
use crate::{
    At, Change, Order, RecordStore, RecordsError, StoredItem, StoredSession,
    limits::{at_most, check_session},
    metrics,
};

/// Requests that one call has under way at once.
const CONCURRENT: usize = 64;
/// Erasures of one call that are under way at once; each holds its session's turns in memory.
const CONCURRENT_ERASURES: usize = 8;

/// The record store of a cluster. Any number of nodes may have it open.
///
/// Its futures need the tokio runtime that it was opened in. One that is dropped may or may not have done its work.
pub struct ScyllaRecords {
    session: Session,
    statements: Statements,
    reach: Reach,
    /// How long one attempt at a request may take.
    patience: Duration,
    /// Closed with the session, after it.
    _relays: Option<Relays>,
}

impl fmt::Debug for ScyllaRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScyllaRecords").field("reach", &self.reach).finish_non_exhaustive()
    }
}

impl ScyllaRecords {
    /// Connects, creates the keyspace and the tables where they are missing, and migrates older ones. Waits for servers that do not answer yet,
    /// for as long as the options say.
    ///
    /// # Errors
    ///
    /// [`RecordsError::BadOption`], [`RecordsError::Unreachable`], [`RecordsError::TimedOut`], [`RecordsError::Unauthorized`],
    /// [`RecordsError::NoKeyspace`], [`RecordsError::NewerSchema`] or [`RecordsError::Refused`], each with its remedy.
    pub async fn open(options: ScyllaOptions) -> Result<Self, RecordsError> {
        metrics::describe();
        options.check()?;
        let limit = options.open_timeout + options.deadline;
        timeout(limit, Self::open_checked(options)).await.unwrap_or(Err(RecordsError::TimedOut { after: limit }))
    }

    async fn open_checked(options: ScyllaOptions) -> Result<Self, RecordsError> {
        let opening = Reach::new(&options.nodes, options.open_timeout);
        let relays = options.tls.as_ref().map(|tls| Relays::new(tls, &options)).transpose()?;
        let builder = builder(&options, relays.as_ref()).await?;
        let session = opening.ask(fault::of_session, || builder.build()).await;
        let session = session.map_err(|error| with_tls_failure(error, relays.as_ref(), &options))?;
        schema::migrate(&session, &opening, &options).await?;
        let statements = Statements::prepare(&session, &opening, &options.keyspace).await?;
        metrics::store_up(true);
        let reach = Reach::new(&options.nodes, options.deadline);
        Ok(Self { session, statements, reach, patience: options.request_timeout, _relays: relays })
    }

    /// Whether the last request was answered, for status pages.
    pub fn is_up(&self) -> bool {
        self.reach.is_up()
    }

    async fn apply(&self, changes: Vec<Change>) -> Result<(), RecordsError> {
        let (begun, count) = (Instant::now(), changes.len() as u64);
        let Plan { batches, erasures, states, bytes } = Plan::new(changes)?;
        let all = |batches: Vec<Vec<Mutation>>| stream::iter(batches.into_iter().map(Ok));
        all(batches).try_for_each_concurrent(CONCURRENT, |batch| self.send(batch)).await?;
        let erasures = stream::iter(erasures.into_iter().map(Ok));
        let erase = async |(session, position): (SessionKey, Position)| {
            let (turns, tables) = changes::erase(&session, position, self.turns_of(&session).await?);
            // First the turns, which could not be found any more without the session's.
            for mutations in [turns, tables] {
                let batches = mutations.into_iter().map(|mutation| vec![mutation]).collect();
                all(batches).try_for_each_concurrent(CONCURRENT, |batch| self.send(batch)).await?;
            }
            Ok(())
        };
        erasures.try_for_each_concurrent(CONCURRENT_ERASURES, erase).await?;
        all(states).try_for_each_concurrent(CONCURRENT, |batch| self.send(batch)).await?;
        metrics::batch_sent(begun.elapsed(), count, bytes);
        Ok(())
    }

    /// Sends what goes to one partition.
    async fn send(&self, mutations: Vec<Mutation>) -> Result<(), RecordsError> {
        if let [Mutation { statement, values }] = &mutations[..] {
            let statement = self.statements.get(*statement);
            self.reach.ask(fault::of_request, || self.session.execute_unpaged(statement, values)).await?;
            return Ok(());
        }
        let statement = |mutation: &Mutation| BatchStatement::from(self.statements.get(mutation.statement).clone());
        let mut batch = Batch::new_with_statements(BatchType::Unlogged, mutations.iter().map(statement).collect());
        batch.set_consistency(statements::CONSISTENCY);
        batch.set_is_idempotent(true);
        let values: Vec<&[Bind]> = mutations.iter().map(|mutation| &mutation.values[..]).collect();
        self.reach.ask(fault::of_request, || self.session.batch(&batch, &values)).await?;
        Ok(())
    }

    async fn write_checkpoint(&self, shard: ShardId, upto: Position, checkpoint: Bytes) -> Result<(), RecordsError> {
        let begun = Instant::now();
        at_most("checkpoint", checkpoint.len(), MAX_VALUE_BYTES)?;
        check_position(upto)?;
        let values = vec![Bind::Int(shard.0.into()), Bind::Bytes(checkpoint), written_at(upto)];
        self.send(vec![Mutation { statement: Statement::PutCheckpoint, values }]).await?;
        metrics::checkpoint_written(begun.elapsed());
        Ok(())
    }

    /// Times a read.
    fn read<'a, T>(
        &'a self,
        read: impl Future<Output = Result<T, RecordsError>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, RecordsError>> {
        async move {
            let begun = Instant::now();
            let answer = read.await;
            metrics::read_answered(begun.elapsed());
            answer
        }
        .boxed()
    }
}

/// What makes a session.
async fn builder(options: &ScyllaOptions, relays: Option<&Relays>) -> Result<SessionBuilder, RecordsError> {
    let profile = ExecutionProfile::builder()
        .request_timeout(Some(options.request_timeout))
        .consistency(statements::CONSISTENCY)
        // Where the preferred data centre is gone, the others serve.
        .load_balancing_policy(DefaultPolicy::builder().permit_dc_failover(true).build())
        .build();
    let keepalive = options.deadline.max(2 * options.request_timeout);
    let mut builder = SessionBuilder::new()
        .default_execution_profile_handle(profile.into_handle())
        .connection_timeout(options.request_timeout)
        .keepalive_interval(options.request_timeout)
        .keepalive_timeout(keepalive)
        .schema_agreement_timeout(options.open_timeout)
        .keyspaces_to_fetch([&options.keyspace])
        .fetch_full_schema_metadata(false);
    if let Some(Credentials { user, password }) = &options.credentials {
        builder = builder.user(user, password);
    }
    if let Some(datacenter) = &options.datacenter {
        builder = builder.prefer_datacenter(datacenter.clone());
    }
    match relays {
        None => {
            let nodes = options.addresses();
            Ok(builder.known_nodes(nodes.iter().map(|(host, port)| match host.contains(':') {
                true => format!("[{host}]:{port}"),
                false => format!("{host}:{port}"),
            })))
        }
        Some(relays) => relays.connect(builder, options).await,
    }
}

/// The driver sees a relay hang up, or no answer; why, the relay knows.
fn with_tls_failure(error: RecordsError, relays: Option<&Relays>, options: &ScyllaOptions) -> RecordsError {
    let is_vague = matches!(
        error,
        RecordsError::Unreachable { .. } | RecordsError::TimedOut { .. } | RecordsError::Unavailable(_)
    );
    match relays.and_then(Relays::last_failure) {
        Some(reason) if is_vague => RecordsError::Unreachable { nodes: options.nodes.join(", "), reason },
        _ => error,
    }
}

impl RecordStore for ScyllaRecords {
    fn write(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<(), RecordsError>> {
        self.apply(changes).boxed()
    }

    fn put_checkpoint(
        &self,
        shard: ShardId,
        upto: Offset,
        checkpoint: Bytes,
    ) -> BoxFuture<'_, Result<(), RecordsError>> {
        self.write_checkpoint(shard, Position(upto.0), checkpoint).boxed()
    }

    fn checkpoint(&self, shard: ShardId) -> BoxFuture<'_, Result<Option<Bytes>, RecordsError>> {
        self.read(async move { Ok(self.read_checkpoint(shard).await?.map(|found| found.value)) })
    }

    fn states(&self, sessions: &[&SessionKey]) -> BoxFuture<'_, Result<Vec<Option<At<Bytes>>>, RecordsError>> {
        let keys: Result<Vec<_>, _> = sessions.iter().map(|session| checked(session)).collect();
        self.read(async move { self.read_states(keys?).await })
    }

    fn items(
        &self,
        session: &SessionKey,
        from: Option<u64>,
        order: Order,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<StoredItem>, RecordsError>> {
        let session = checked(session);
        self.read(async move { self.read_items(session?, from, order, limit).await })
    }

    fn dedupe(&self, session: &SessionKey, limit: usize) -> BoxFuture<'_, Result<Vec<(String, Bytes)>, RecordsError>> {
        let session = checked(session);
        self.read(async move { self.read_dedupe(session?, limit).await })
    }

    fn turn(&self, tenant: &str, turn: TurnId) -> BoxFuture<'_, Result<Option<SessionKey>, RecordsError>> {
        self.read(self.read_turn(tenant.to_owned(), turn))
    }

    fn dependency(&self) -> BoxFuture<'_, Option<Dependency>> {
        async move {
            let (statement, values) = (self.statements.get(Statement::Checkpoint), [Bind::Int(0)]);
            let request = self.session.execute_unpaged(statement, &values[..]);
            self.reach.probe(self.patience, fault::of_request, request).await;
            Some(Dependency { name: "scylla", trouble: self.reach.trouble() })
        }
        .boxed()
    }

    fn sessions(
        &self,
        tenant: &str,
        channel: &str,
        after: Option<&SessionKey>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<StoredSession>, RecordsError>> {
        let (tenant, channel) = (tenant.to_owned(), channel.to_owned());
        let after = after.map(checked).transpose();
        self.read(async move { self.read_sessions(tenant, channel, after?, limit).await })
    }
}

/// A session's key, where it can be one.
fn checked(session: &SessionKey) -> Result<Bytes, RecordsError> {
    check_session(session)?;
    Ok(key(session))
}
