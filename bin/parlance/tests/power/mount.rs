//! Answers the kernel's requests from the store. Nothing is cached on the kernel's side, so every write reaches the store at once.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
    time::SystemTime,
};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::store::{Stat, Store};

/// How long the kernel may rely on an answer.
const NEVER: Duration = Duration::ZERO;
/// How long a disk takes for a sync: while it does, writes gather that are not synced.
const SYNC: Duration = Duration::from_millis(1);
/// Room that the disk claims to have: more than a node ever wants.
const BLOCKS: u64 = 1 << 24;
const BLOCK_BYTES: u32 = 4096;

/// A mounted store.
pub(super) struct Mounted {
    store: Arc<Mutex<Store>>,
    /// Of every file and directory.
    owner: (u32, u32),
    /// What is told of the directories that are being read: the names as they were when it began.
    listings: Mutex<HashMap<u64, Vec<(OsString, Stat)>>>,
    next_listing: AtomicU64,
}

impl Mounted {
    pub(super) fn new(store: Arc<Mutex<Store>>, owner: (u32, u32)) -> Self {
        Self { store, owner, listings: Mutex::default(), next_listing: AtomicU64::new(1) }
    }

    /// Asks the store, if it has power.
    fn ask<T>(&self, question: impl FnOnce(&mut Store) -> Result<T, Errno>) -> Result<T, Errno> {
        let mut store = self.store.lock().expect("no request panicked");
        if store.powered { question(&mut store) } else { Err(Errno::EIO) }
    }

    fn attributes(&self, stat: &Stat) -> FileAttr {
        FileAttr {
            ino: INodeNo(stat.inode),
            size: stat.size,
            blocks: stat.size.div_ceil(512),
            atime: stat.changed,
            mtime: stat.changed,
            ctime: stat.changed,
            crtime: stat.changed,
            kind: kind(stat),
            perm: (stat.mode & 0o7777) as u16,
            nlink: 1,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }

    fn entry(&self, stat: Result<Stat, Errno>, reply: ReplyEntry) {
        match stat {
            Ok(stat) => reply.entry(&NEVER, &self.attributes(&stat), Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn sync(&self, inode: INodeNo, reply: ReplyEmpty) {
        std::thread::sleep(SYNC);
        done(self.ask(|store| store.sync(inode.0)), reply);
    }
}

fn kind(stat: &Stat) -> FileType {
    if stat.is_directory { FileType::Directory } else { FileType::RegularFile }
}

fn done(outcome: Result<(), Errno>, reply: ReplyEmpty) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Mounted {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let stat = self.ask(|store| store.lookup(parent.0, name).and_then(|inode| store.stat(inode)));
        self.entry(stat, reply);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.ask(|store| store.stat(ino.0)) {
            Ok(stat) => reply.attr(&NEVER, &self.attributes(&stat)),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let stat = self.ask(|store| {
            mode.map_or(Ok(()), |mode| store.set_mode(ino.0, mode))?;
            size.map_or(Ok(()), |size| store.resize(ino.0, size))?;
            store.stat(ino.0)
        });
        match stat {
            Ok(stat) => reply.attr(&NEVER, &self.attributes(&stat)),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let made = self.ask(|store| {
            let inode = store.create(parent.0, name, mode & !umask, true)?;
            store.stat(inode)
        });
        self.entry(made, reply);
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.ask(|store| {
            let inode = store.create(parent.0, name, mode & !umask, false)?;
            store.stat(inode)
        });
        match made {
            Ok(stat) => {
                let direct = FopenFlags::FOPEN_DIRECT_IO;
                reply.created(&NEVER, &self.attributes(&stat), Generation(0), FileHandle(0), direct);
            }
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.ask(|store| store.remove(parent.0, name, false)), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.ask(|store| store.remove(parent.0, name, true)), reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(Errno::EINVAL);
        }
        done(self.ask(|store| store.rename((parent.0, name), (newparent.0, newname), replace)), reply);
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.ask(|store| store.stat(ino.0)) {
            Ok(_) => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.ask(|store| store.read(ino.0, offset, size as usize)) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.ask(|store| store.write(ino.0, offset, data)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    /// Closing a file syncs nothing.
    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(ino, reply);
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(ino, reply);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.ask(|store| store.list(ino.0)) {
            Ok(listing) => {
                let handle = self.next_listing.fetch_add(1, Ordering::Relaxed);
                self.listings.lock().expect("no request panicked").insert(handle, listing);
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listings = self.listings.lock().expect("no request panicked");
        let Some(listing) = listings.get(&fh.0) else { return reply.error(Errno::EBADF) };
        for (at, (name, stat)) in listing.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(stat.inode), at as u64 + 1, kind(stat), name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.listings.lock().expect("no request panicked").remove(&fh.0);
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCK_BYTES, 255, BLOCK_BYTES);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }
}
