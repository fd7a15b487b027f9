//! What the disk holds: a tree of files and directories, each as it is now and as it was when it was last synced.
//!
//! The strict reading of POSIX: a name is durable once its directory is synced, content once its file is, and neither by the other.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::{OsStr, OsString},
    fmt,
    time::SystemTime,
};

use fuser::Errno;

use super::content::{Content, Remains};

pub(super) const ROOT: u64 = 1;

/// What the disk went through.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) syncs: u64,
    pub(crate) losses: u64,
    /// Times that the power was lost while something was not synced.
    pub(crate) losses_of_something: u64,
    pub(crate) bytes_lost: u64,
    /// Creations, renames and removals that were undone.
    pub(crate) names_lost: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { syncs, losses, losses_of_something, bytes_lost, names_lost } = self;
        write!(
            f,
            "{syncs} syncs, {losses} power losses, {losses_of_something} with something not synced: {bytes_lost} bytes, \
             {names_lost} names"
        )
    }
}

type Names = BTreeMap<OsString, u64>;

enum Kind {
    File(Content),
    Directory { now: Names, durable: Names },
}

struct Inode {
    kind: Kind,
    mode: u32,
    changed: SystemTime,
}

impl Inode {
    fn new(kind: Kind, mode: u32) -> Self {
        Self { kind, mode, changed: SystemTime::now() }
    }

    fn directory(mode: u32) -> Self {
        Self::new(Kind::Directory { now: Names::new(), durable: Names::new() }, mode)
    }
}

/// What `stat` tells.
pub(super) struct Stat {
    pub(super) inode: u64,
    pub(super) is_directory: bool,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) changed: SystemTime,
}

/// The disk.
pub(super) struct Store {
    /// Also of files that were removed: their removal may not be durable, and they may be open.
    inodes: HashMap<u64, Inode>,
    next: u64,
    pub(super) powered: bool,
    pub(super) figures: Figures,
}

impl Store {
    pub(super) fn new() -> Self {
        let inodes = HashMap::from([(ROOT, Inode::directory(0o755))]);
        Self { inodes, next: ROOT + 1, powered: true, figures: Figures::default() }
    }

    pub(super) fn lookup(&self, parent: u64, name: &OsStr) -> Result<u64, Errno> {
        self.names(parent)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    pub(super) fn stat(&self, inode: u64) -> Result<Stat, Errno> {
        let Inode { kind, mode, changed } = self.inodes.get(&inode).ok_or(Errno::ENOENT)?;
        let (is_directory, size) = match kind {
            Kind::File(content) => (false, content.size()),
            Kind::Directory { .. } => (true, 0),
        };
        Ok(Stat { inode, is_directory, size, mode: *mode, changed: *changed })
    }

    pub(super) fn list(&self, directory: u64) -> Result<Vec<(OsString, Stat)>, Errno> {
        let names = self.names(directory)?.iter();
        names.map(|(name, inode)| Ok((name.clone(), self.stat(*inode)?))).collect()
    }

    pub(super) fn create(&mut self, parent: u64, name: &OsStr, mode: u32, directory: bool) -> Result<u64, Errno> {
        let inode = self.next;
        let names = self.names_mut(parent)?;
        if names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        names.insert(name.to_owned(), inode);
        self.next += 1;
        let made = if directory { Inode::directory(mode) } else { Inode::new(Kind::File(Content::default()), mode) };
        self.inodes.insert(inode, made);
        Ok(inode)
    }

    pub(super) fn remove(&mut self, parent: u64, name: &OsStr, directory: bool) -> Result<(), Errno> {
        let inode = self.lookup(parent, name)?;
        self.may_vanish(inode, directory)?;
        self.names_mut(parent)?.remove(name);
        Ok(())
    }

    pub(super) fn rename(
        &mut self,
        (parent, name): (u64, &OsStr),
        (new_parent, new_name): (u64, &OsStr),
        replace: bool,
    ) -> Result<(), Errno> {
        let inode = self.lookup(parent, name)?;
        let is_directory = self.stat(inode)?.is_directory;
        match self.lookup(new_parent, new_name) {
            Ok(_) if !replace => return Err(Errno::EEXIST),
            Ok(there) if there != inode => self.may_vanish(there, is_directory)?,
            _ => {}
        }
        self.names_mut(parent)?.remove(name);
        self.names_mut(new_parent)?.insert(new_name.to_owned(), inode);
        Ok(())
    }

    pub(super) fn set_mode(&mut self, inode: u64, mode: u32) -> Result<(), Errno> {
        self.inodes.get_mut(&inode).ok_or(Errno::ENOENT)?.mode = mode;
        Ok(())
    }

    pub(super) fn resize(&mut self, inode: u64, size: u64) -> Result<(), Errno> {
        self.content_mut(inode)?.resize(size);
        Ok(())
    }

    pub(super) fn read(&self, inode: u64, at: u64, length: usize) -> Result<Vec<u8>, Errno> {
        match self.inodes.get(&inode).map(|inode| &inode.kind) {
            Some(Kind::File(content)) => Ok(content.read(at, length)),
            _ => Err(Errno::EISDIR),
        }
    }

    pub(super) fn write(&mut self, inode: u64, at: u64, data: &[u8]) -> Result<(), Errno> {
        self.content_mut(inode)?.write(at, data);
        Ok(())
    }

    /// Makes the content of a file or the names in a directory durable.
    pub(super) fn sync(&mut self, inode: u64) -> Result<(), Errno> {
        match &mut self.inodes.get_mut(&inode).ok_or(Errno::ENOENT)?.kind {
            Kind::File(content) => content.sync(),
            Kind::Directory { now, durable } => durable.clone_from(now),
        }
        self.figures.syncs += 1;
        Ok(())
    }

    /// Loses everything that was not synced, but for what `remains` of the files' content, and answers nothing more.
    pub(super) fn lose_power(&mut self, remains: &mut dyn Remains) {
        let (mut bytes, mut names) = (0, 0);
        for inode in self.inodes.values_mut() {
            match &mut inode.kind {
                Kind::File(content) => bytes += content.lose(remains),
                Kind::Directory { now, durable } => {
                    let gone = durable.iter().filter(|(name, inode)| now.get(*name) != Some(inode)).count();
                    let made = now.iter().filter(|(name, inode)| durable.get(*name) != Some(inode)).count();
                    names += gone + made;
                    now.clone_from(durable);
                }
            }
        }
        self.forget_unnamed();
        self.powered = false;
        self.figures.losses += 1;
        self.figures.losses_of_something += u64::from(bytes > 0 || names > 0);
        self.figures.bytes_lost += bytes;
        self.figures.names_lost += names as u64;
    }

    fn forget_unnamed(&mut self) {
        let mut named = HashSet::new();
        let mut next = vec![ROOT];
        while let Some(inode) = next.pop() {
            if named.insert(inode) {
                next.extend(self.names(inode).into_iter().flat_map(BTreeMap::values));
            }
        }
        self.inodes.retain(|inode, _| named.contains(inode));
    }

    /// Whether a file, or an empty directory, may lose its name.
    fn may_vanish(&self, inode: u64, as_directory: bool) -> Result<(), Errno> {
        match (self.names(inode), as_directory) {
            (Ok(names), true) if !names.is_empty() => Err(Errno::ENOTEMPTY),
            (Ok(_), true) | (Err(_), false) => Ok(()),
            (Ok(_), false) => Err(Errno::EISDIR),
            (Err(_), true) => Err(Errno::ENOTDIR),
        }
    }

    fn names(&self, directory: u64) -> Result<&Names, Errno> {
        match self.inodes.get(&directory).map(|inode| &inode.kind) {
            Some(Kind::Directory { now, .. }) => Ok(now),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn names_mut(&mut self, directory: u64) -> Result<&mut Names, Errno> {
        let inode = self.inodes.get_mut(&directory).ok_or(Errno::ENOENT)?;
        inode.changed = SystemTime::now();
        match &mut inode.kind {
            Kind::Directory { now, .. } => Ok(now),
            Kind::File(_) => Err(Errno::ENOTDIR),
        }
    }

    fn content_mut(&mut self, file: u64) -> Result<&mut Content, Errno> {
        let inode = self.inodes.get_mut(&file).ok_or(Errno::ENOENT)?;
        inode.changed = SystemTime::now();
        match &mut inode.kind {
            Kind::File(content) => Ok(content),
            Kind::Directory { .. } => Err(Errno::EISDIR),
        }
    }
}
