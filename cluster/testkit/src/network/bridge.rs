//! Carries one connection.

use std::{io, net::SocketAddr, sync::atomic::Ordering};

use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::link::Link;

/// What is read, and waits, in one piece.
const PIECE_BYTES: usize = 16 * 1024;
/// Pieces that may be late at once; whoever sends more waits.
const MOST_LATE: usize = 256;

type Piece = (Instant, Vec<u8>);

/// A connection between two endpoints.
pub(super) struct Bridge<'a> {
    /// From the side that dialled.
    pub(super) there: &'a Link,
    pub(super) back: &'a Link,
    pub(super) seed: u64,
}

impl Bridge<'_> {
    /// Until both sides have closed it, one has failed, or it is reset.
    pub(super) async fn carry(&self, mut near: TcpStream, target: SocketAddr) {
        let (mut resets_there, mut resets_back) = (self.there.resets(), self.back.resets());
        let Ok(first) = self.admit(&mut near).await else { return };
        let Ok(mut far) = TcpStream::connect(target).await else {
            let _ = near.set_zero_linger();
            return;
        };
        // Heartbeats are small and must not wait for each other.
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let is_reset = tokio::select! {
            ended = self.exchange(&mut near, &mut far, first) => ended.is_err(),
            _ = resets_there.changed() => self.count_reset(self.there),
            _ = resets_back.changed() => self.count_reset(self.back),
        };
        if is_reset {
            let _ = (near.set_zero_linger(), far.set_zero_linger());
        }
    }

    fn count_reset(&self, link: &Link) -> bool {
        link.count_reset();
        true
    }

    /// Waits while either direction is cut; what the caller has sent meanwhile. Fails if it has gone.
    async fn admit(&self, near: &mut TcpStream) -> io::Result<Vec<u8>> {
        let mut sent = Vec::new();
        if !self.there.is_cut() && !self.back.is_cut() {
            return Ok(sent);
        }
        let cut = if self.there.is_cut() { self.there } else { self.back };
        cut.hold_connection();
        while self.there.is_cut() || self.back.is_cut() {
            self.there.opened().await;
            self.back.opened().await;
        }
        while sent.len() < PIECE_BYTES {
            match near.try_read_buf(&mut sent) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    async fn exchange(&self, near: &mut TcpStream, far: &mut TcpStream, first: Vec<u8>) -> io::Result<()> {
        let ((near_read, near_write), (far_read, far_write)) = (near.split(), far.split());
        let (mut there, mut back) = (StdRng::seed_from_u64(self.seed), StdRng::seed_from_u64(!self.seed));
        let ended = tokio::try_join!(
            pump(near_read, far_write, self.there, &mut there, first),
            pump(far_read, near_write, self.back, &mut back, Vec::new()),
        );
        if ended.is_err() {
            // That one side has failed is news that passes no cut either.
            self.there.opened().await;
            self.back.opened().await;
        }
        ended.map(drop)
    }
}

/// Carries one direction until it ends, and its end too.
async fn pump(
    mut from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    link: &Link,
    rng: &mut StdRng,
    first: Vec<u8>,
) -> io::Result<()> {
    let (late, arriving) = mpsc::channel(MOST_LATE);
    let read = async move {
        let mut piece = first;
        let mut due = Instant::now();
        loop {
            if !piece.is_empty() {
                due = link.due(rng, due);
                if late.send((due, std::mem::take(&mut piece))).await.is_err() {
                    return Ok(());
                }
            }
            piece.reserve(PIECE_BYTES);
            if from.read_buf(&mut piece).await? == 0 {
                return Ok(());
            }
        }
    };
    tokio::try_join!(read, deliver(arriving, to, link)).map(drop)
}

async fn deliver(mut arriving: mpsc::Receiver<Piece>, mut to: WriteHalf<'_>, link: &Link) -> io::Result<()> {
    while let Some((due, piece)) = arriving.recv().await {
        sleep_until(due).await;
        link.pass(piece.len()).await;
        to.write_all(&piece).await?;
        link.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
    }
    link.opened().await;
    to.shutdown().await
}
