//! A disk whose power can be cut: a file system in memory, mounted through FUSE, that forgets then what was not synced.
//!
//! `SIGKILL` alone proves nothing about syncs: the kernel holds the writes of a dead process, and they reach the disk all the same.

mod content;
mod mount;
mod store;

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use fuser::{BackgroundSession, Config, MountOption};
use tempfile::TempDir;

pub(crate) use content::{Anything, Nothing, Remains};
use mount::Mounted;
pub(crate) use store::Figures;
use store::Store;

/// Enough that a sync does not hold up other requests.
const THREADS: usize = 4;

/// A mounted disk. Dropping it unmounts it; whoever uses it must be gone by then.
pub(crate) struct Disk {
    store: Arc<Mutex<Store>>,
    session: Option<BackgroundSession>,
    place: TempDir,
}

impl Disk {
    /// An empty disk.
    pub(crate) fn mount() -> Self {
        let place = TempDir::new().expect("a temporary directory");
        let mut disk = Self { store: Arc::new(Mutex::new(Store::new())), session: None, place };
        disk.power_on();
        disk
    }

    pub(crate) fn path(&self) -> &Path {
        self.place.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    pub(crate) fn figures(&self) -> Figures {
        self.store.lock().expect("no request panicked").figures
    }

    /// Cuts the power at the moment of `kill`, which signals the one process that uses the disk: from before the signal on, that
    /// process gets no answer that it could act on.
    pub(crate) fn cut_power(&self, remains: &mut dyn Remains, kill: impl FnOnce()) {
        let mut store = self.store.lock().expect("no request panicked");
        kill();
        store.lose_power(remains);
    }

    /// Mounts the disk anew with what it still has. The process that used it must have ended.
    pub(crate) fn power_on(&mut self) {
        if let Some(session) = self.session.take() {
            session.umount_and_join().expect("unmounted: nobody uses it");
        }
        self.store.lock().expect("no request panicked").powered = true;
        let owner = std::fs::metadata(self.path()).expect("the mount point");
        let mounted = Mounted::new(self.store.clone(), (owner.uid(), owner.gid()));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("power-loss".into())];
        config.n_threads = Some(THREADS);
        let session = fuser::spawn_mount(mounted, self.path(), &config);
        self.session = Some(session.expect("mounted: this needs /dev/fuse, and root or fusermount3"));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            // It fails only where a process still uses the disk, and then the test has failed already.
            let _ = session.umount_and_join();
        }
    }
}
