//! The keyspace and its tables, and how an older layout becomes the newest.
//!
//! Nodes may start at once. Each step is `IF NOT EXISTS` and is recorded once all servers agree on it, so that doing it twice does nothing;
//! and all nodes send it to the same server, which makes the second wait for the first. Nothing is sent where the layout is the newest.

use std::collections::BTreeMap;

use ::scylla::{
    client::session::Session,
    deserialize::row::DeserializeRow,
    errors::ExecutionError,
    policies::load_balancing::{NodeIdentifier, SingleTargetLoadBalancingPolicy},
    response::query_result::QueryResult,
    serialize::row::SerializeRow,
    statement::{Consistency, Statement as Text},
};

use super::{ScyllaOptions, fault, reach::Reach, statements::CONSISTENCY};
use crate::RecordsError;

/// The layout that this build writes.
const SCHEMA_VERSION: u32 = MIGRATIONS.len() as u32;

/// How the layout of one version becomes that of the next: the first leads from nothing to version 1. `{}` stands for the keyspace. Whatever
/// is written here has to be understood by Scylla and Cassandra alike: no materialised views, secondary indexes or collections.
///
/// `session` is `SessionKey::encode`, `number` an item's, big-endian in 8 bytes.
const MIGRATIONS: [&[&str]; 1] = [&[
    "CREATE TABLE IF NOT EXISTS {}.states (session blob PRIMARY KEY, state blob)",
    "CREATE TABLE IF NOT EXISTS {}.sessions (tenant text, channel text, bucket int, session blob,
        PRIMARY KEY ((tenant, channel, bucket), session))",
    "CREATE TABLE IF NOT EXISTS {}.items (session blob, number blob, item blob, PRIMARY KEY (session, number))",
    "CREATE TABLE IF NOT EXISTS {}.turns (tenant text, turn uuid, session blob, PRIMARY KEY ((tenant, turn)))",
    "CREATE TABLE IF NOT EXISTS {}.turns_of_sessions (session blob, turn uuid, PRIMARY KEY (session, turn))",
    "CREATE TABLE IF NOT EXISTS {}.dedupe (session blob, event_id text, outcome blob, PRIMARY KEY (session, event_id))",
    "CREATE TABLE IF NOT EXISTS {}.deliveries (session blob, delivery text, state blob, PRIMARY KEY (session, delivery))",
    "CREATE TABLE IF NOT EXISTS {}.checkpoints (shard int PRIMARY KEY, checkpoint blob)",
]];

/// A server that has just been found may not be connected yet, at the first.
const ATTEMPTS_PER_SERVER: usize = 3;

const VERSIONS: &str = "CREATE TABLE IF NOT EXISTS {}.schema_versions (version int PRIMARY KEY)";

/// Brings the keyspace to the newest layout.
pub(super) async fn migrate(session: &Session, reach: &Reach, options: &ScyllaOptions) -> Result<(), RecordsError> {
    Migration { session, reach, options }.run().await
}

struct Migration<'a> {
    session: &'a Session,
    reach: &'a Reach,
    options: &'a ScyllaOptions,
}

impl Migration<'_> {
    async fn run(&self) -> Result<(), RecordsError> {
        self.find_keyspace().await?;
        let found = self.version().await?;
        if found > SCHEMA_VERSION {
            let keyspace = self.options.keyspace.clone();
            return Err(RecordsError::NewerSchema { keyspace, found, supported: SCHEMA_VERSION });
        }
        for (version, step) in (1..).zip(MIGRATIONS).filter(|(version, _)| *version > found) {
            tracing::info!(keyspace = self.options.keyspace, version, "migrating the records");
            for change in step {
                self.change(change).await?;
            }
            self.record(version).await?;
        }
        Ok(())
    }

    /// Sees to it that there is a keyspace, and warns about one that keeps too few copies.
    async fn find_keyspace(&self) -> Result<(), RecordsError> {
        let keyspace = &self.options.keyspace;
        let cql = "SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = ?";
        let found: Vec<(BTreeMap<String, String>,)> = self.read(cql, Consistency::One, (keyspace,)).await?;
        match (found.first(), &self.options.replication) {
            (None, None) => Err(RecordsError::NoKeyspace { keyspace: keyspace.clone() }),
            (None, Some(replication)) => {
                let cql = format!("CREATE KEYSPACE IF NOT EXISTS {{}} WITH replication = {}", replication.to_cql());
                self.change(&cql).await
            }
            (Some((found,)), Some(wanted)) => {
                if let Some(shortfall) = wanted.shortfall(found) {
                    tracing::warn!(keyspace, shortfall, "the records are kept in fewer copies than configured");
                }
                Ok(())
            }
            (Some(_), None) => Ok(()),
        }
    }

    /// The newest version that was recorded, 0 for a new keyspace.
    async fn version(&self) -> Result<u32, RecordsError> {
        let keyspace = &self.options.keyspace;
        let cql =
            "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = 'schema_versions'";
        let tables: Vec<(String,)> = self.read(cql, Consistency::One, (keyspace,)).await?;
        if tables.is_empty() {
            self.change(VERSIONS).await?;
        }
        let cql = format!("SELECT version FROM {keyspace}.schema_versions");
        let versions: Vec<(i32,)> = self.read(&cql, CONSISTENCY, ()).await?;
        Ok(versions.into_iter().map(|(version,)| version.max(0) as u32).max().unwrap_or(0))
    }

    async fn record(&self, version: u32) -> Result<(), RecordsError> {
        let keyspace = &self.options.keyspace;
        let cql =
            format!("INSERT INTO {keyspace}.schema_versions (version) VALUES ({version}) USING TIMESTAMP {version}");
        let mut text = Text::new(cql);
        text.set_consistency(CONSISTENCY);
        text.set_is_idempotent(true);
        self.ask(|| self.session.query_unpaged(text.clone(), ())).await?;
        Ok(())
    }

    /// Changes the schema, and waits until all servers agree on it.
    async fn change(&self, cql: &str) -> Result<(), RecordsError> {
        let mut text = Text::new(cql.replace("{}", &self.options.keyspace));
        text.set_is_idempotent(true);
        text.set_request_timeout(Some(self.options.open_timeout));
        let mut attempts = 0;
        let change = || {
            let (mut text, target) = (text.clone(), self.meeting_point(attempts / ATTEMPTS_PER_SERVER));
            attempts += 1;
            text.set_load_balancing_policy(target.map(|node| SingleTargetLoadBalancingPolicy::new(node, None)));
            self.session.query_unpaged(text, ())
        };
        self.reach.ask(fault::of_request, change).await?;
        // The driver waits behind its own changes only, and not where another node has made this one a moment ago.
        self.reach.ask(fault::of_agreement, || self.session.await_schema_agreement()).await?;
        Ok(())
    }

    /// The server that all nodes send changes of the schema to, the one with the lowest id; the next ones where it does not answer.
    fn meeting_point(&self, failed: usize) -> Option<NodeIdentifier> {
        let cluster = self.session.get_cluster_state();
        let mut ids: Vec<_> = cluster.get_nodes_info().iter().map(|node| node.host_id).collect();
        ids.sort_unstable();
        ids.get(failed % ids.len().max(1)).copied().map(NodeIdentifier::HostId)
    }

    /// A request to tables that another node may have made a moment ago.
    async fn ask<F>(&self, request: impl Fn() -> F) -> Result<QueryResult, RecordsError>
    where
        F: Future<Output = Result<QueryResult, ExecutionError>>,
    {
        self.reach.ask(fault::unsettled(fault::of_request), request).await
    }

    async fn read<R>(
        &self,
        cql: &str,
        consistency: Consistency,
        values: impl SerializeRow + Copy,
    ) -> Result<Vec<R>, RecordsError>
    where
        R: for<'f> DeserializeRow<'f, 'f>,
    {
        let mut text = Text::new(cql);
        text.set_consistency(consistency);
        text.set_is_idempotent(true);
        let answer = self.ask(|| self.session.query_unpaged(text.clone(), values)).await?;
        super::reader::typed(answer)
    }
}
