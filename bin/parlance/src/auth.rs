//! The file of API keys, as the server and as its clients read it: a line is `KEY` or `TENANT KEY`; empty lines and lines that
//! begin with `#` are skipped.

use std::path::Path;

use crate::failure::Failure;

const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

const REMEDY: &str = "Make one, for example with `(umask 077; openssl rand -hex 32 > api-keys)`";

/// Reads the file for the server, which parses it.
///
/// # Errors
///
/// Exit code 2 if it cannot be read.
pub(crate) fn read_key_file(path: &Path) -> Result<String, Failure> {
    let shown = path.display();
    if path.metadata().is_ok_and(|meta| meta.len() > MAX_FILE_BYTES) {
        return Err(Failure::usage(format!("the API key file {shown} is too large"), "Name the right file"));
    }
    std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read the API key file {shown}: {error}"), REMEDY))
}

/// Reads the key that a client uses: the first of the file.
///
/// # Errors
///
/// Exit code 2 if it cannot be read or holds none.
pub(crate) fn read_client_key(path: &Path) -> Result<String, Failure> {
    let text = read_key_file(path)?;
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let key = lines.next().and_then(|line| line.split_whitespace().last());
    let no_key = || Failure::usage(format!("the API key file {} holds no key", path.display()), REMEDY);
    key.map(str::to_owned).ok_or_else(no_key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_uses_the_first_key() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("keys");
        let first = |text: &str| {
            std::fs::write(&path, text).expect("written");
            read_client_key(&path).map_err(|failure| failure.lines.join(" "))
        };
        assert_eq!(first("# ours\n\n  one-key-0123456789 \nacme two"), Ok("one-key-0123456789".into()));
        assert_eq!(first("acme two-key-0123456789"), Ok("two-key-0123456789".into()));
        assert!(first("# none\n").is_err_and(|told| told.contains("holds no key")));
    }
}
