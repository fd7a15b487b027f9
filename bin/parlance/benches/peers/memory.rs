//! How much memory processes have, as Linux tells it.

use std::fs;

/// The most that a process ever had resident.
pub(crate) fn peak_bytes(id: u32) -> u64 {
    field(&format!("/proc/{id}/status"), "VmHWM:")
}

/// What a process and its descendants have now. A page that several of them have is counted once.
pub(crate) fn family_bytes(id: u32) -> u64 {
    family(id).into_iter().map(|id| field(&format!("/proc/{id}/smaps_rollup"), "Pss:")).sum()
}

/// A process and its descendants.
pub(crate) fn family(id: u32) -> Vec<u32> {
    let mut family = vec![id];
    let mut next = 0;
    while let Some(&member) = family.get(next) {
        family.extend(children(member));
        next += 1;
    }
    family
}

/// Linux lists them thread by thread.
fn children(id: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect()
}

/// A number of KiB; nothing of a process that has ended.
fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1_024
}
