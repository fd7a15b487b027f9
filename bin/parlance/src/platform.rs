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

/// The host's name, where the system tells it.
pub(crate) fn host_name() -> Option<String> {
    let told = std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::env::var("HOSTNAME"));
    told.ok().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty())
}
