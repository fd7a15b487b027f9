//! Whom a connection is from: the process that holds its other end, as Linux tells it.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

/// A process that has just begun is told of a moment later.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);
/// The fields of a line of `/proc/net/tcp`.
const LOCAL: usize = 1;
const REMOTE: usize = 2;
const INODE: usize = 9;

/// The name of the process whose connection from `peer` to `proxy` it is.
pub(super) async fn find(
    peer: SocketAddr,
    proxy: SocketAddr,
    processes: impl Fn() -> HashMap<String, u32>,
) -> Option<String> {
    for _ in 0..TRIES {
        let inode = inode(&fs::read_to_string("/proc/net/tcp").ok()?, peer, proxy)?;
        if holds(std::process::id(), inode) {
            // The test's own.
            return None;
        }
        if let Some((name, _)) = processes().into_iter().find(|(_, pid)| holds(*pid, inode)) {
            return Some(name);
        }
        tokio::time::sleep(PAUSE).await;
    }
    None
}

/// The number of the socket at `local` that is connected with `remote`; nothing where it is closed already.
fn inode(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_it = address(fields.get(LOCAL)?)? == local && address(fields.get(REMOTE)?)? == remote;
        is_it.then(|| fields.get(INODE)?.parse().ok()).flatten()
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
        }
    }
}
