//! A stream that ends when its peer falls silent: a cut link and a hung peer look alike, and TCP notices neither for minutes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// A reader that fails when nothing has come for a while.
#[derive(Debug)]
pub(super) struct Watched<R> {
    inner: R,
    silence: Duration,
    alarm: Pin<Box<Sleep>>,
    /// Whether this process itself was held up, and the peer has been given another chance since.
    spared: bool,
}

impl<R> Watched<R> {
    pub(super) fn new(inner: R, silence: Duration) -> Self {
        Self { inner, silence, alarm: Box::pin(sleep_until(Instant::now() + silence)), spared: false }
    }

    fn heard(&mut self) {
        self.alarm.as_mut().reset(Instant::now() + self.silence);
        self.spared = false;
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Watched<R> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // First what has come: it may have come while this process was stopped.
        let before = buffer.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut this.inner).poll_read(context, buffer) {
            if buffer.filled().len() > before {
                this.heard();
            }
            return Poll::Ready(read);
        }
        loop {
            let due = this.alarm.deadline();
            ready!(this.alarm.as_mut().poll(context));
            let late = Instant::now().saturating_duration_since(due);
            if this.spared || late < this.silence / 4 {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer has fallen silent")));
            }
            // It was us who slept: what the peer sent meanwhile is about to be read.
            this.spared = true;
            this.alarm.as_mut().reset(Instant::now() + this.silence / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        time::{advance, sleep, timeout},
    };

    use super::*;

    const SILENCE: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn silence_is_an_error_and_speech_is_none() {
        let (mut peer, ours) = duplex(64);
        let mut watched = Watched::new(ours, SILENCE);
        let speech = async {
            for _ in 0..5 {
                sleep(SILENCE * 9 / 10).await;
                peer.write_all(b"x").await.expect("it is read");
            }
            Instant::now()
        };
        let listening = async {
            let mut bytes = [0; 1];
            loop {
                if let Err(error) = watched.read_exact(&mut bytes).await {
                    return (error.kind(), Instant::now());
                }
            }
        };
        let (last, (kind, noticed)) = tokio::join!(speech, listening);
        assert_eq!(kind, io::ErrorKind::TimedOut);
        assert_eq!(noticed - last, SILENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_slept_itself_does_not_blame_its_peer_at_once() {
        let (mut peer, ours) = duplex(64);
        let mut watched = Watched::new(ours, SILENCE);
        let mut bytes = [0; 1];
        // The clock jumps over the alarm: nobody ran meanwhile.
        let asleep = async { advance(SILENCE * 8).await };
        let read = timeout(SILENCE / 4, watched.read_exact(&mut bytes));
        let (read, ()) = tokio::join!(read, asleep);
        assert!(read.is_err(), "not a word against the peer: {read:?}");
        peer.write_all(b"x").await.expect("it is read");
        watched.read_exact(&mut bytes).await.expect("the peer was there all the time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_chance_is_given_once() {
        let (_peer, ours) = duplex(64);
        let mut watched = Watched::new(ours, SILENCE);
        let mut bytes = [0; 1];
        let asleep = async { advance(SILENCE * 8).await };
        let (read, ()) = tokio::join!(timeout(SILENCE / 4, watched.read_exact(&mut bytes)), asleep);
        assert!(read.is_err(), "not a word against the peer: {read:?}");
        let read = timeout(SILENCE, watched.read_exact(&mut bytes)).await.expect("it is noticed");
        assert_eq!(read.expect_err("nobody speaks").kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn the_end_of_the_stream_is_no_silence() {
        let (peer, ours) = duplex(64);
        drop(peer);
        assert_eq!(Watched::new(ours, SILENCE).read(&mut [0; 1]).await.expect("an end"), 0);
    }
}
