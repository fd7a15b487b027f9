use std::{io, path::PathBuf, sync::Arc};

use parlance_cluster_protocol::{Offset, ShardId, WireError};
use thiserror::Error;

/// Why the log cannot serve.
#[derive(Debug, Clone, Error)]
pub enum LogError {
    /// Another process has the log open.
    #[error("{} is in use by another process: stop that one, or choose another --data directory", path.display())]
    InUse {
        /// The locked directory.
        path: PathBuf,
    },
    /// The directory cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    Unusable {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Stored bytes are wrong in a place where no crash can have torn them.
    #[error("{} is damaged at byte {at}: {reason}; restore it from a copy, or move the directory away to start empty", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        at: u64,
        /// What is wrong.
        reason: String,
    },
    /// An entry or its file is of a format that this build cannot read.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The offset is no longer, or not yet, in the log.
    #[error("shard {shard} holds no entry {offset}")]
    OutOfRange {
        /// The shard.
        shard: ShardId,
        /// The offset that was asked for.
        offset: Offset,
    },
    /// No space is left for new turns; reads go on.
    #[error("no space left in {}: free some, new turns are refused until then", path.display())]
    Full {
        /// The directory.
        path: PathBuf,
    },
    /// Kafka's client does not take the configuration.
    #[error(
        "Kafka cannot be spoken to as configured: {reason}; check the certificates, the key and the other options of TLS and SASL"
    )]
    Options {
        /// What the client said.
        reason: String,
    },
    /// Kafka does not answer, or not in time.
    #[error(
        "cannot reach Kafka at {brokers}: {reason}; check that brokers run there and what lies between, then try again"
    )]
    Unreachable {
        /// The brokers that were tried.
        brokers: String,
        /// What went wrong.
        reason: String,
    },
    /// Partitions have no leader or too few complete copies, so that nothing can be appended there.
    #[error(
        "{partitions} partitions of Kafka topic {topic} have no leader or fewer than {needed} brokers in sync: bring the brokers back, new turns \
         are refused until then"
    )]
    NotEnoughReplicas {
        /// The topic.
        topic: String,
        /// How many of its partitions cannot be appended to.
        partitions: usize,
        /// On how many brokers an entry has to be.
        needed: u16,
    },
    /// A setting with which promises would be broken.
    #[error("{place} has {setting} = {value}: {remedy}")]
    Misconfigured {
        /// What the setting belongs to.
        place: String,
        /// Its name.
        setting: String,
        /// What it is now.
        value: String,
        /// What to do.
        remedy: String,
    },
    /// The topic is not the one that was there before.
    #[error(
        "Kafka topic {topic} was made anew: its id is {found}, it was {expected}. What the old one held is gone; stop all nodes and restore it \
         from a copy, or start over with an empty record store"
    )]
    Recreated {
        /// The topic.
        topic: String,
        /// The id it had.
        expected: String,
        /// The id it has.
        found: String,
    },
    /// Entries that were acknowledged or read are gone from the end of a shard.
    #[error(
        "shard {shard} ends at {end}, though it held entries up to {known}: the log lost what it had acknowledged. Restart this node, so that it \
         discards what it made of them and replays, and look for an unclean leader election"
    )]
    Truncated {
        /// The shard.
        shard: ShardId,
        /// Where it ended before.
        known: Offset,
        /// Where it ends.
        end: Offset,
    },
    /// The log was closed or its writer failed; the reason was logged when it happened.
    #[error("the log is closed")]
    Closed,
}
