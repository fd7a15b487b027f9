//! Whom a connection is from: the process that holds its other end, as Linux tells it.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

/// A process that has just begun is told of a moment later, and the kernel's table may skip a line while it changes.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);
/// A connection that is not in the table so many times has ended.
const MISSES: u32 = 3;
/// The fields of a line of `/proc/net/tcp`.
const LOCAL: usize = 1;
const REMOTE: usize = 2;
const INODE: usize = 9;

/// Whose connection it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A process that the network was told of.
    Process(String),
    /// Another process.
    Outside,
    /// Nobody's any more.
    Gone,
}

/// Finds whose the connection from `peer` to `proxy` is.
pub(super) async fn find(peer: SocketAddr, proxy: SocketAddr, processes: impl Fn() -> HashMap<String, u32>) -> Origin {
    let mut misses = 0;
    for _ in 0..TRIES {
        let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        match inode(&table, peer, proxy) {
            // The test's own.
            Some(inode) if holds(std::process::id(), inode) => return Origin::Outside,
            Some(inode) => {
                if let Some((name, _)) = processes().into_iter().find(|(_, pid)| holds(*pid, inode)) {
                    return Origin::Process(name);
                }
            }
            None if misses == MISSES => return Origin::Gone,
            None => misses += 1,
        }
        tokio::time::sleep(PAUSE).await;
    }
    Origin::Outside
}

/// The number of the socket at `local` that is connected with `remote`; nothing where it is closed, or was left by a process that ended.
fn inode(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_it = address(fields.get(LOCAL)?)? == local && address(fields.get(REMOTE)?)? == remote;
        is_it.then(|| fields.get(INODE)?.parse().ok().filter(|inode| *inode != 0)).flatten()
    })
}

/// `0100007F:1F90` is 127.0.0.1:8080: the address as the machine holds it, the port as a number.
fn address(field: &str) -> Option<SocketAddr> {
    let (ip, port) = field.split_once(':')?;
    let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_ne_bytes());
    Some(SocketAddr::new(IpAddr::V4(ip), u16::from_str_radix(port, 16).ok()?))
}

fn holds(pid: u32, inode: u64) -> bool {
    let wanted = format!("socket:[{inode}]");
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_by_both_of_its_ends() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
             0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 77 1 0 20 4 30 10 -1\n   \
             1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 78 1 0 20 4 30 10 -1\n";
        let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if cfg!(target_endian = "little") {
            assert_eq!(inode(table, at(50_000), at(8_080)), Some(78));
            assert_eq!(inode(table, at(8_080), at(50_000)), Some(77));
            assert_eq!(inode(table, at(50_000), at(8_081)), None);
            assert_eq!(inode(&table.replace(" 78 ", " 0 "), at(50_000), at(8_080)), None);
        }
    }
}
