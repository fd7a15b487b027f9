//! Whom connections are from: the processes that hold their other ends, as Linux tells it.
//!
//! A look at the kernel's tables costs milliseconds of a processor, however few connections are asked for. So a thread of its own looks, for all
//! that ask at once. Were each connection looked up by itself, and where the bytes of all others are carried, then a burst of new ones would
//! keep the others waiting until their ends give up and dial again, which makes the next burst: that does not end by itself.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

/// A process that has just begun is told of a moment later, and the kernel's table may skip a line while it changes.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);
/// A connection that is not in the table so many times has ended.
const MISSES: u32 = 3;
/// So many connections are looked up at once; as many more wait in the queue, and the rest before it.
const MOST_AT_ONCE: usize = 1024;
/// The fields of a line of `/proc/net/tcp`.
const LOCAL: usize = 1;
const REMOTE: usize = 2;
const INODE: usize = 9;

/// Whose connection it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// A process that the network was told of.
    Process(String),
    /// Another process.
    Outside,
    /// Nobody's any more.
    Gone,
}

/// Where a connection's two ends are: the asked one, and the one that it is connected with.
type Ends = (SocketAddr, SocketAddr);

/// A connection whose origin is wanted.
#[derive(Debug)]
struct Ask {
    ends: Ends,
    tries: u32,
    misses: u32,
    reply: oneshot::Sender<Origin>,
}

impl Ask {
    fn new(ends: Ends) -> (Self, oneshot::Receiver<Origin>) {
        let (reply, answer) = oneshot::channel();
        (Self { ends, tries: 0, misses: 0, reply }, answer)
    }
}

/// Finds whose connections are. Its thread ends some moments after it is dropped.
#[derive(Debug)]
pub(super) struct Finder {
    asks: mpsc::Sender<Ask>,
}

impl Finder {
    /// `table` reads the kernel's sockets, as [`read_table`] does; `processes` are those that the network was told of so far.
    ///
    /// # Panics
    ///
    /// Where the system gives no thread.
    pub(super) fn start(
        table: impl Fn() -> String + Send + 'static,
        processes: impl Fn() -> HashMap<String, u32> + Send + 'static,
    ) -> Self {
        let (asks, asked) = mpsc::channel(MOST_AT_ONCE);
        let thread = thread::Builder::new().name("origins".to_owned()).spawn(move || answer(asked, table, processes));
        thread.expect("a thread for the network");
        Self { asks }
    }

    /// Finds whose the connection from `peer` to `proxy` is.
    pub(super) async fn find(&self, peer: SocketAddr, proxy: SocketAddr) -> Origin {
        let (ask, answer) = Ask::new((peer, proxy));
        // The thread lives as long as this; had it ended, the connection would be as good as gone.
        let _ = self.asks.send(ask).await;
        answer.await.unwrap_or(Origin::Gone)
    }
}

/// The kernel's TCP sockets, as text; nothing where files have run out.
pub(super) fn read_table() -> String {
    fs::read_to_string("/proc/net/tcp").unwrap_or_default()
}

/// Answers until nobody can ask any more.
fn answer(mut asked: mpsc::Receiver<Ask>, table: impl Fn() -> String, processes: impl Fn() -> HashMap<String, u32>) {
    let mut waiting: Vec<Ask> = Vec::new();
    loop {
        match waiting.is_empty() {
            true => waiting.extend(asked.blocking_recv()),
            false => thread::sleep(PAUSE),
        }
        while waiting.len() < MOST_AT_ONCE
            && let Ok(ask) = asked.try_recv()
        {
            waiting.push(ask);
        }
        if waiting.is_empty() {
            return;
        }
        waiting = look(waiting, &table(), &processes);
    }
}

/// Answers all whose origin shows; the others, for another look.
fn look(waiting: Vec<Ask>, table: &str, processes: impl Fn() -> HashMap<String, u32>) -> Vec<Ask> {
    let inodes = inodes(table, &waiting.iter().map(|ask| ask.ends).collect());
    let origins = origins(&inodes.values().copied().collect(), processes);
    let mut left = Vec::new();
    for mut ask in waiting {
        let inode = inodes.get(&ask.ends);
        ask.tries += 1;
        ask.misses += u32::from(inode.is_none());
        let origin = match inode.and_then(|inode| origins.get(inode)) {
            Some(origin) => origin.clone(),
            None if ask.misses == MISSES => Origin::Gone,
            None if ask.tries == TRIES => Origin::Outside,
            None => {
                left.push(ask);
                continue;
            }
        };
        // The network may have been dropped meanwhile.
        let _ = ask.reply.send(origin);
    }
    left
}

/// The numbers of the sockets of these connections; none for one that is closed, or was left by a process that ended.
fn inodes(table: &str, wanted: &HashSet<Ends>) -> HashMap<Ends, u64> {
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let ends = (address(fields.get(LOCAL)?)?, address(fields.get(REMOTE)?)?);
        let inode = fields.get(INODE)?.parse().ok()?;
        (inode != 0 && wanted.contains(&ends)).then_some((ends, inode))
    };
    table.lines().skip(1).filter_map(inode).collect()
}

/// `0100007F:1F90` is 127.0.0.1:8080: the address as the machine holds it, the port as a number.
fn address(field: &str) -> Option<SocketAddr> {
    let (ip, port) = field.split_once(':')?;
    let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_ne_bytes());
    Some(SocketAddr::new(IpAddr::V4(ip), u16::from_str_radix(port, 16).ok()?))
}

/// Who holds these sockets, as far as it is known.
fn origins(inodes: &HashSet<u64>, processes: impl Fn() -> HashMap<String, u32>) -> HashMap<u64, Origin> {
    let held_by = |pid| sockets(pid).into_iter().filter(|inode| inodes.contains(inode));
    // The test's own; most of those that begin at once are.
    let mut origins: HashMap<u64, Origin> = held_by(std::process::id()).map(|inode| (inode, Origin::Outside)).collect();
    if origins.len() < inodes.len() {
        for (name, pid) in processes() {
            for inode in held_by(pid) {
                origins.entry(inode).or_insert_with(|| Origin::Process(name.clone()));
            }
        }
    }
    origins
}

/// The numbers of all sockets that a process holds.
fn sockets(pid: u32) -> Vec<u64> {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let inode = |file: fs::DirEntry| {
        let link = fs::read_link(file.path()).ok()?;
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    files.flatten().filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, net::TcpListener, os::fd::AsRawFd as _, os::unix::fs::MetadataExt as _};

    use super::*;

    const HEAD: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }

    /// A line of the kernel's table.
    fn line(local: u16, remote: u16, inode: u64) -> String {
        let here = format!("{:08X}", u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets()));
        format!(
            "   0: {here}:{local:04X} {here}:{remote:04X} 01 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0 20 4 30 10 -1\n"
        )
    }

    #[test]
    fn a_socket_is_found_by_both_of_its_ends() {
        let table =
            [HEAD.to_owned(), line(8_080, 50_000, 77), line(50_000, 8_080, 78), line(50_002, 8_080, 0)].concat();
        let find = |ends: Ends| inodes(&table, &HashSet::from([ends])).get(&ends).copied();
        assert_eq!(find((at(50_000), at(8_080))), Some(78));
        assert_eq!(find((at(8_080), at(50_000))), Some(77));
        assert_eq!(find((at(50_000), at(8_081))), None);
        assert_eq!(find((at(50_002), at(8_080))), None);
    }

    #[test]
    fn the_table_is_read_as_the_kernel_writes_it() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
             0: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 78 1 0 20 4 30 10 -1\n";
        if cfg!(target_endian = "little") {
            let ends = (at(50_000), at(8_080));
            assert_eq!(inodes(table, &HashSet::from([ends])), HashMap::from([(ends, 78)]));
        }
    }

    /// However many dial at once, it costs no more looks than one does: a burst cannot feed itself.
    #[test]
    fn all_who_wait_are_found_by_one_look() {
        let socket = TcpListener::bind(at(0)).expect("a port");
        let held = fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).expect("it is open").ino();
        let ports = 50_000..50_000 + MOST_AT_ONCE as u16;
        let table: String =
            std::iter::once(HEAD.to_owned()).chain(ports.clone().map(|port| line(port, 8_080, held))).collect();
        let (asks, asked) = mpsc::channel(MOST_AT_ONCE);
        let ask = |port| {
            let (ask, answer) = Ask::new((at(port), at(8_080)));
            asks.try_send(ask).expect("there is room");
            answer
        };
        let answers: Vec<_> = ports.map(ask).collect();
        drop(asks);
        let looks = Cell::new(0);
        let read = || {
            looks.set(looks.get() + 1);
            table.clone()
        };
        answer(asked, read, HashMap::new);
        let found = answers.into_iter().map(|answer| answer.blocking_recv().expect("an answer"));
        assert_eq!(found.filter(|origin| *origin == Origin::Outside).count(), MOST_AT_ONCE);
        assert_eq!(looks.get(), 1);
    }

    #[test]
    fn who_is_not_found_is_not_looked_for_for_ever() {
        let (asks, asked) = mpsc::channel(2);
        let (gone, gone_answer) = Ask::new((at(50_000), at(8_080)));
        let (unknown, unknown_answer) = Ask::new((at(50_001), at(8_080)));
        for ask in [gone, unknown] {
            asks.try_send(ask).expect("there is room");
        }
        drop(asks);
        let looks = Cell::new(0);
        let read = || {
            looks.set(looks.get() + 1);
            // Nobody has a socket of this number.
            [HEAD.to_owned(), line(50_001, 8_080, u64::MAX)].concat()
        };
        answer(asked, read, HashMap::new);
        assert_eq!(gone_answer.blocking_recv(), Ok(Origin::Gone));
        assert_eq!(unknown_answer.blocking_recv(), Ok(Origin::Outside));
        assert_eq!(looks.get(), TRIES);
    }
}
