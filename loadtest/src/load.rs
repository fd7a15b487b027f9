//! Clients of a deployment: they talk to its nodes and note in a history what they do and see.
//!
//! A closed loop ([`Load::client`]) says the next thing when the last one is answered; an open loop ([`Load::open_loop`]) says so many things a
//! second whatever becomes of them. Either way a client that finds a node dead, refusing or silent goes to the next one.

mod client;
mod open;
mod recorder;
mod stream;
mod targets;
mod transcripts;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use self::client::{Ask, Client};
pub use self::{
    open::{Arrivals, OpenLoop},
    recorder::Recorder,
    targets::Targets,
    transcripts::TranscriptError,
};
use crate::{
    checker::{self, Report, Transcript},
    history::EventKind,
};

/// How long clients wait for what.
#[derive(Debug, Clone)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For the next bytes of an answer. A node that hangs is left after so long, and what became of the message is unknown.
    pub silence: Duration,
    /// Before a message is sent again. A refusal may ask for more, up to a second.
    pub pause: Duration,
    /// An open loop's client gives a message up after so long.
    pub give_up: Duration,
}

impl Default for Patience {
    /// For a node on this machine that may be dead for a moment, and never hangs.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            silence: Duration::from_secs(60),
            pause: Duration::from_millis(20),
            give_up: Duration::from_secs(120),
        }
    }
}

/// Clients and what they have seen.
#[derive(Debug)]
pub struct Load {
    client: Client,
    patience: Patience,
    stopping: AtomicBool,
}

/// The session that a client, or an arrival, talks in.
fn session_name(number: u32) -> String {
    format!("session-{number}")
}

impl Load {
    /// Clients that talk to these nodes.
    ///
    /// # Panics
    ///
    /// Where the system has no TLS or no resolver, so that there can be no HTTP client.
    pub fn new(targets: Arc<Targets>, patience: Patience) -> Arc<Self> {
        let client = Client::new(targets, Arc::new(Recorder::new()), &patience);
        Arc::new(Self { client, patience, stopping: AtomicBool::new(false) })
    }

    /// What has been seen so far.
    pub fn recorder(&self) -> &Recorder {
        &self.client.recorder
    }

    /// Tells all clients to end with the messages that they are at.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Sends one message after the other to the client's own session. Even clients repeat a message under its idempotency key until it
    /// is answered; odd ones use no key and never repeat what may have been accepted.
    pub async fn client(self: Arc<Self>, client: u32) {
        let keyed = client.is_multiple_of(2);
        for n in 0.. {
            let message = format!("message {n} of client {client}");
            let ask = Ask { client, session: session_name(client), message, keyed, streamed: true };
            let mut node = client as usize;
            while !self.say(&ask, node).await {
                tokio::time::sleep(self.patience.pause).await;
                node += 1;
            }
            if self.is_stopping() {
                return;
            }
        }
    }

    /// Sends a message once. Whether the client is done with it.
    async fn say(&self, ask: &Ask, node: usize) -> bool {
        let seen = self.client.attempt(ask, node).await.seen;
        match &seen {
            EventKind::Replied { .. } | EventKind::Failed { .. } => true,
            // A refused message may be sent again in any case.
            EventKind::Refused { .. } => false,
            _ => !ask.keyed,
        }
    }

    /// Everything that is recorded of sessions `0..sessions`, as any node tells it.
    ///
    /// # Errors
    ///
    /// [`TranscriptError`] where no node tells a session's record within a minute.
    pub async fn transcripts(&self, sessions: u32) -> Result<Vec<Transcript>, TranscriptError> {
        let mut transcripts = Vec::new();
        for session in 0..sessions {
            transcripts.push(self.client.transcript(&session_name(session)).await?);
        }
        Ok(transcripts)
    }

    /// Compares everything that the clients saw with everything that is recorded.
    ///
    /// # Errors
    ///
    /// As [`Self::transcripts`].
    pub async fn check(&self, sessions: u32) -> Result<Report, TranscriptError> {
        let transcripts = self.transcripts(sessions).await?;
        Ok(checker::check(&self.recorder().events(), &transcripts, checker::scripted_mark))
    }
}
