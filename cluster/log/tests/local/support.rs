//! What the tests of the local log share.

use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use parlance_cluster_log::{LocalLog, LocalLogOptions, LogError};
use tempfile::TempDir;

/// Small enough that a test fills many.
pub(crate) const SEGMENT_BYTES: usize = 128 * 1024;
/// Batches and headers begin on blocks of this size.
pub(crate) const BLOCK: usize = 4096;

pub(crate) fn options(directory: &Path) -> LocalLogOptions {
    LocalLogOptions { shards: 4, segment_bytes: SEGMENT_BYTES, reserve_bytes: 0, directory: directory.join("log") }
}

pub(crate) fn open(directory: &Path) -> LocalLog {
    LocalLog::open(options(directory)).expect("the log opens")
}

/// A directory on a file system without a disk where there is one, for tests that open the log thousands of times.
pub(crate) fn quick_directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary directory can be made")
}

/// The error of an open that must fail and leave every file as it was, but for the lock.
pub(crate) fn refused(directory: &Path) -> LogError {
    let before = files(directory);
    let error = LocalLog::open(options(directory)).expect_err("the log must not open");
    let mut after = files(directory);
    let lock = PathBuf::from("lock");
    if !before.contains_key(&lock) {
        after.remove(&lock);
    }
    assert!(before == after, "a refused open changed something");
    error
}

/// Name and content of every file in the log's directory.
pub(crate) fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let Ok(entries) = fs::read_dir(directory.join("log")) else { return BTreeMap::new() };
    let names = entries.map(|entry| PathBuf::from(entry.expect("the directory can be listed").file_name()));
    // A log that is open may take one away meanwhile.
    names.filter_map(|name| fs::read(directory.join("log").join(&name)).ok().map(|bytes| (name, bytes))).collect()
}

/// Makes the log's directory hold `files` and nothing else.
pub(crate) fn restore(directory: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) {
    let log = directory.join("log");
    fs::remove_dir_all(&log).expect("the log can be removed");
    fs::create_dir(&log).expect("its directory can be made");
    for (name, bytes) in files {
        fs::write(log.join(name), bytes).expect("its files can be written");
    }
}

pub(crate) fn segment(directory: &Path, sequence: u32) -> PathBuf {
    directory.join("log").join(format!("{sequence:010}.seg"))
}

/// The segments that hold anything, oldest first.
pub(crate) fn used_segments(directory: &Path) -> Vec<PathBuf> {
    let used = |(name, bytes): &(PathBuf, Vec<u8>)| {
        name.extension().is_some_and(|extension| extension == "seg") && bytes.iter().any(|byte| *byte != 0)
    };
    files(directory).into_iter().filter(used).map(|(name, _)| directory.join("log").join(name)).collect()
}

/// The blocks from the first of the last `blocks` that are not zero up to the end of the last.
pub(crate) fn last_blocks(segment: &Path, blocks: usize) -> Range<usize> {
    let bytes = fs::read(segment).expect("a segment can be read");
    let used = bytes.chunks(BLOCK).rposition(|block| block.iter().any(|byte| *byte != 0)).expect("it is not empty") + 1;
    (used - blocks) * BLOCK..used * BLOCK
}

/// Overwrites bytes of a file.
pub(crate) fn overwrite(path: &Path, at: usize, bytes: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(path).expect("the file can be opened");
    file.write_all_at(bytes, at as u64).expect("the file can be written");
}

/// Inverts some bits of one byte of a file.
pub(crate) fn flip(path: &Path, at: usize, bits: u8) {
    let byte = fs::read(path).expect("the file can be read")[at];
    overwrite(path, at, &[byte ^ bits]);
}

/// A file system of its own; unmounted on drop.
pub(crate) struct Tmpfs(TempDir);

impl Tmpfs {
    pub(crate) fn mount(options: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(directory.path()).output();
        let mount = mount.expect("this test needs the program mount");
        let reason = String::from_utf8_lossy(&mount.stderr).into_owned();
        assert!(mount.status.success(), "this test needs the right to mount a tmpfs (run it as root): {reason}");
        Self(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazy: a log that is still open must not keep it, and a drop has nobody to tell.
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}
