//! What a connection is doing, so that one that does nothing, or far too slowly, can be closed.
//!
//! ```text
//! phase                                       bound
//! headers begun (bytes read, no request yet)  header_timeout since the first such byte
//! idle between requests                       idle_timeout since the last response's end
//! response running, client does not read      stall_timeout since the first refused write
//! response running, client reads              none: its own deadline ends it
//! ```
//! hyper's own header time-out covers neither the detection of the protocol nor HTTP/2, hence this one place for all.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::options::IngressLimits;

/// Stands for "not blocked" among milliseconds.
const NOT_BLOCKED: u64 = u64::MAX;

/// The state of one connection, shared by its socket, its requests and its watchdog.
#[derive(Debug)]
pub(crate) struct Activity {
    opened: Instant,
    running: AtomicUsize,
    /// When the present phase began, in milliseconds since `opened`.
    since: AtomicU64,
    /// Bytes came since the last response ended.
    reading_head: AtomicBool,
    /// When a write first found the socket full, or [`NOT_BLOCKED`].
    blocked: AtomicU64,
    /// HTTP/2 exchanges control frames between requests, so bytes alone do not mean that headers began.
    http2: AtomicBool,
}

impl Activity {
    /// A connection that was just accepted: its first headers are due.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            running: AtomicUsize::new(0),
            since: AtomicU64::new(0),
            reading_head: AtomicBool::new(true),
            blocked: AtomicU64::new(NOT_BLOCKED),
            http2: AtomicBool::new(false),
        })
    }

    fn now(&self) -> u64 {
        self.opened.elapsed().as_millis() as u64
    }

    /// A request's headers are complete; it runs until the guard is dropped.
    pub(crate) fn start_request(self: &Arc<Self>, http2: bool) -> RunningRequest {
        self.http2.store(http2, Relaxed);
        self.running.fetch_add(1, Relaxed);
        RunningRequest(Arc::clone(self))
    }

    fn bytes_read(&self) {
        if self.running.load(Relaxed) == 0 && !self.reading_head.swap(true, Relaxed) {
            self.since.store(self.now(), Relaxed);
        }
    }

    fn write_blocked(&self, blocked: bool) {
        if !blocked {
            self.blocked.store(NOT_BLOCKED, Relaxed);
        } else if self.blocked.load(Relaxed) == NOT_BLOCKED {
            self.blocked.store(self.now(), Relaxed);
        }
    }

    /// How long the present phase may still last; zero when its bound has passed.
    pub(crate) fn remaining(&self, limits: &IngressLimits) -> Duration {
        let (since, bound) = self.phase(limits);
        bound.saturating_sub(Duration::from_millis(self.now().saturating_sub(since)))
    }

    fn phase(&self, limits: &IngressLimits) -> (u64, Duration) {
        let blocked = self.blocked.load(Relaxed);
        if blocked != NOT_BLOCKED {
            return (blocked, limits.stall_timeout);
        }
        if self.running.load(Relaxed) > 0 {
            // Nothing to close it for; look again after the shortest wait that could begin meanwhile.
            return (self.now(), limits.idle_timeout.min(limits.stall_timeout));
        }
        let reading = self.reading_head.load(Relaxed) && !self.http2.load(Relaxed);
        (self.since.load(Relaxed), if reading { limits.header_timeout } else { limits.idle_timeout })
    }
}

/// A request that is being answered; dropped with the end of its response's body.
#[derive(Debug)]
pub(crate) struct RunningRequest(Arc<Activity>);

impl Drop for RunningRequest {
    fn drop(&mut self) {
        let activity = &self.0;
        activity.since.store(activity.now(), Relaxed);
        activity.reading_head.store(false, Relaxed);
        activity.running.fetch_sub(1, Relaxed);
    }
}

/// A socket that tells its connection's [`Activity`] what happens on it.
#[derive(Debug)]
pub(crate) struct WatchedIo<S> {
    inner: S,
    activity: Arc<Activity>,
}

impl<S> WatchedIo<S> {
    /// Watches `inner`.
    pub(crate) fn new(inner: S, activity: Arc<Activity>) -> Self {
        Self { inner, activity }
    }

    fn note<T>(&self, outcome: Poll<T>) -> Poll<T> {
        self.activity.write_blocked(outcome.is_pending());
        outcome
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WatchedIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.bytes_read();
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WatchedIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.note(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.note(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(cx);
        self.note(outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::advance,
    };

    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn phases_have_their_bounds() {
        let limits = IngressLimits::default();
        let activity = Activity::new();
        advance(seconds(4)).await;
        assert_eq!(activity.remaining(&limits), limits.header_timeout - seconds(4));

        let running = activity.start_request(false);
        advance(seconds(1_000)).await;
        assert!(!activity.remaining(&limits).is_zero(), "a running response is not closed for its length");

        drop(running);
        advance(seconds(5)).await;
        assert_eq!(activity.remaining(&limits), limits.idle_timeout - seconds(5));

        activity.bytes_read();
        advance(seconds(1)).await;
        activity.bytes_read();
        assert_eq!(
            activity.remaining(&limits),
            limits.header_timeout - seconds(1),
            "from the first byte, not the last"
        );
        advance(limits.header_timeout).await;
        assert!(activity.remaining(&limits).is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn control_frames_of_http2_do_not_look_like_slow_headers() {
        let limits = IngressLimits::default();
        let activity = Activity::new();
        drop(activity.start_request(true));
        activity.bytes_read();
        assert_eq!(activity.remaining(&limits), limits.idle_timeout);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_noticed_and_forgiven() {
        let limits = IngressLimits::default();
        let activity = Activity::new();
        let _running = activity.start_request(false);
        let (near, mut far) = tokio::io::duplex(4);
        let mut io = WatchedIo::new(near, Arc::clone(&activity));
        let write = tokio::time::timeout(seconds(30), io.write_all(b"more than four bytes")).await;
        assert!(write.is_err(), "nobody reads");
        assert_eq!(activity.remaining(&limits), limits.stall_timeout - seconds(30));
        let mut read = [0; 4];
        far.read_exact(&mut read).await.expect("four bytes are there");
        io.write_all(b"ok").await.expect("there is room again");
        assert_eq!(activity.remaining(&limits), limits.stall_timeout.min(limits.idle_timeout));
    }
}
