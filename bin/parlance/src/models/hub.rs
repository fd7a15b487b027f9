//! A GGUF file of the Hugging Face hub, over HTTPS, resumed where an earlier try stopped.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{Seek as _, SeekFrom, Write as _},
    path::Path,
    str::FromStr,
    time::Duration,
};

use futures_util::StreamExt as _;
use reqwest::{StatusCode, header};

use super::{GGUF_MAGIC, progress::Progress, wheel};
use crate::failure::{Failure, chain};

const HUB: &str = "https://huggingface.co";

/// The hub's own variable for a mirror.
const ENDPOINT_VARIABLE: &str = "HF_ENDPOINT";

/// A transfer without a byte for this long has stopped.
const SILENCE: Duration = Duration::from_secs(60);

/// Tries of one download; each goes on where the one before stopped.
const TRIES: usize = 5;

/// A file in a repository of the hub: `hf:OWNER/REPO/FILE.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubFile {
    owner: String,
    repository: String,
    file: String,
}

impl HubFile {
    /// What the model is called once it is fetched: the file's name without its ending.
    pub(crate) fn name(&self) -> &str {
        let file = self.file.rsplit('/').next().unwrap_or(&self.file);
        file.strip_suffix(".gguf").unwrap_or(file)
    }

    fn url(&self) -> String {
        let hub = std::env::var(ENDPOINT_VARIABLE).unwrap_or_else(|_| HUB.to_owned());
        let (owner, repository, file) = (&self.owner, &self.repository, &self.file);
        format!("{}/{owner}/{repository}/resolve/main/{file}", hub.trim_end_matches('/'))
    }
}

impl FromStr for HubFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let good = |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed);
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [owner, repository, file @ ..] if !file.is_empty() && parts.iter().all(|part| good(part)) => {
                let file = file.join("/");
                if !file.ends_with(".gguf") {
                    return Err("is not a GGUF file. Write hf:OWNER/REPO/FILE.gguf".to_owned());
                }
                Ok(Self { owner: (*owner).to_owned(), repository: (*repository).to_owned(), file })
            }
            _ => Err("is not a file of the hub. Write hf:OWNER/REPO/FILE.gguf".to_owned()),
        }
    }
}

impl fmt::Display for HubFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}/{}/{}", self.owner, self.repository, self.file)
    }
}

/// Why one try ended.
enum Stop {
    /// The next try may go on.
    Again(String),
    /// No further try helps.
    ForGood(Failure),
}

/// Downloads `file` into `part` and returns its SHA-256. `needs` refuses a size that does not fit the disk.
pub(super) fn download(
    file: &HubFile,
    part: &Path,
    sha256: Option<&str>,
    needs: &dyn Fn(u64) -> Result<(), Failure>,
) -> Result<String, Failure> {
    let runtime = crate::client::runtime()?;
    let client = crate::client::builder()
        .connect_timeout(Duration::from_secs(20))
        .read_timeout(SILENCE)
        .build()
        .map_err(|error| Failure::failed(format!("cannot set up HTTPS: {}", chain(&error)), "Try again"))?;
    let mut last = String::new();
    for attempt in 0..TRIES {
        if attempt > 0 {
            crate::output::note(format!("{last}; going on where it stopped"));
            std::thread::sleep(Duration::from_secs(1 << attempt));
        }
        match runtime.block_on(one_try(&client, file, part, needs)) {
            Ok(()) => return verify(file, part, sha256),
            Err(Stop::Again(reason)) => last = reason,
            Err(Stop::ForGood(failure)) => return Err(failure),
        }
    }
    Err(Failure::failed(
        format!("cannot download {file}: {last}"),
        "Check the network and try again: it goes on where it stopped. HF_ENDPOINT names a mirror",
    ))
}

async fn one_try(
    client: &reqwest::Client,
    file: &HubFile,
    part: &Path,
    needs: &dyn Fn(u64) -> Result<(), Failure>,
) -> Result<(), Stop> {
    let disk = |error: std::io::Error| Stop::ForGood(wheel::write_failure("write the weights", &error));
    let version = part.with_extension("etag");
    let (there, seen) = (part.metadata().map_or(0, |meta| meta.len()), std::fs::read_to_string(&version));
    let mut request = client.get(file.url());
    if let (1.., Ok(seen)) = (there, seen) {
        // The rest only if it is the rest of the same version, else everything.
        request = request.header(header::RANGE, format!("bytes={there}-")).header(header::IF_RANGE, seen);
    }
    let response = request.send().await.map_err(|error| Stop::Again(chain(&error)))?;
    let start = match response.status() {
        StatusCode::OK => 0,
        StatusCode::PARTIAL_CONTENT => there,
        StatusCode::RANGE_NOT_SATISFIABLE if there > 0 => return Ok(()), // everything was there already
        status => return Err(refused(file, status)),
    };
    let left = response.content_length();
    if let Some(left) = left {
        needs(left).map_err(Stop::ForGood)?;
    }
    match response.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok()).filter(|tag| !tag.starts_with("W/")) {
        Some(tag) => std::fs::write(&version, tag).map_err(disk)?,
        None => drop(std::fs::remove_file(&version)),
    }
    let mut to = open_at(part, start).map_err(disk)?;
    let mut progress = Progress::start(&format!("downloading {file}"), left.map(|left| start + left));
    let mut bytes = start;
    let mut body = response.bytes_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| Stop::Again(chain(&error)))?;
        to.write_all(&chunk).map_err(disk)?;
        bytes += chunk.len() as u64;
        progress.at(bytes);
    }
    if left.is_some_and(|left| bytes < start + left) {
        return Err(Stop::Again("the connection closed early".to_owned()));
    }
    progress.done();
    Ok(())
}

fn open_at(part: &Path, start: u64) -> std::io::Result<File> {
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(part)?;
    file.set_len(start)?;
    file.seek(SeekFrom::Start(start))?;
    Ok(file)
}

fn refused(file: &HubFile, status: StatusCode) -> Stop {
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        return Stop::Again(format!("the hub answers {status}"));
    }
    let remedy = match status {
        StatusCode::NOT_FOUND => "Check owner, repository and file on the hub's page",
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "The file is not public: download it yourself and run `parlance up --model PATH`"
        }
        _ => "Check the reference and the network",
    };
    Stop::ForGood(Failure::failed(format!("the hub answers {status} for {file}"), remedy))
}

fn verify(file: &HubFile, part: &Path, sha256: Option<&str>) -> Result<String, Failure> {
    let read = |error: std::io::Error| wheel::write_failure("read the weights", &error);
    let mut magic = [0; 4];
    let mut opened = File::open(part).map_err(read)?;
    let is_gguf = std::io::Read::read_exact(&mut opened, &mut magic).is_ok() && magic == *GGUF_MAGIC;
    let found = wheel::sha256_of(part).map_err(read)?;
    let problem = match sha256 {
        _ if !is_gguf => Some(format!("what the hub sent for {file} is not a GGUF file")),
        Some(wanted) if !wanted.eq_ignore_ascii_case(&found) => {
            Some(format!("the downloaded {file} has SHA-256 {found}, not {wanted}"))
        }
        _ => None,
    };
    match problem {
        None => Ok(found),
        Some(problem) => {
            let _ = std::fs::remove_file(part);
            Err(Failure::failed(problem, "It was thrown away: check the reference and try again"))
        }
    }
}
