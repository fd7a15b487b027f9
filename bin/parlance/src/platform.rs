//! What the machine says about itself: its name, and where a user's files belong (XDG Base Directory Specification 0.8).

use std::path::PathBuf;

/// Where log and records go unless the operator says otherwise: they are state, neither configuration nor cache.
pub(crate) fn default_data_dir() -> Option<PathBuf> {
    user_dir("XDG_STATE_HOME", ".local/state")
}

/// Where weights go unless the operator says otherwise: all nodes of a user share them, whatever their data directories.
pub(crate) fn default_model_dir() -> Option<PathBuf> {
    user_dir("XDG_DATA_HOME", ".local/share").map(|dir| dir.join("models"))
}

/// Where the terminal client keeps its line history.
pub(crate) fn history_file() -> Option<PathBuf> {
    user_dir("XDG_STATE_HOME", ".local/state").map(|dir| dir.join("chat-history"))
}

fn user_dir(variable: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |path: &PathBuf| path.is_absolute();
    let named = std::env::var_os(variable).map(PathBuf::from).filter(absolute);
    let home = || std::env::var_os("HOME").map(PathBuf::from).filter(absolute);
    named.or_else(|| home().map(|home| home.join(below_home))).map(|dir| dir.join("parlance"))
}

/// The memory that this process may have, in bytes: the machine's, or less where a control group bounds it.
pub(crate) fn memory_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let group = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = group_limit_files(&group).into_iter().filter_map(|path| std::fs::read_to_string(path).ok());
    // A group without a bound says `max`, or with version 1 a number beyond any machine.
    limits.filter_map(|limit| limit.trim().parse().ok()).chain(total_memory(&meminfo)).min()
}

fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Where the bounds of this process's control group and of those above it stand, by `/proc/self/cgroup`.
fn group_limit_files(group: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in group.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            named if named.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let path = PathBuf::from(path.trim_start_matches('/'));
        files.extend(path.ancestors().map(|above| PathBuf::from(root).join(above).join(file)));
    }
    files
}

/// The host's name, where the system tells it.
pub(crate) fn host_name() -> Option<String> {
    let told = std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::env::var("HOSTNAME"));
    told.ok().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_where_the_system_says_it() {
        assert_eq!(total_memory("MemFree:  1 kB\nMemTotal:       24576 kB\n"), Some(24 << 20));
        let files = group_limit_files("5:cpu,memory:/a/b\n0::/c\nnonsense\n");
        let expected = [
            "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/c/memory.max",
            "/sys/fs/cgroup/memory.max",
        ];
        assert_eq!(files, expected.map(PathBuf::from));
        assert!(memory_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
