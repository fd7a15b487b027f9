//! The file of API keys, as the server and as its clients read it.
//!
//! One key per line: `KEY`, `TENANT:KEY` or `TENANT:ROLE:KEY`, with the roles `user` and `admin`. A bare key is the only kind a
//! single operator needs: it is an admin's, of the tenant `default`. Empty lines and lines from `#` on are left out.

use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::failure::Failure;

/// The tenant of whoever has none: callers of a server without keys, and bare keys.
pub(crate) const DEFAULT_TENANT: &str = "default";

/// Shorter keys can be guessed.
const MIN_KEY_CHARS: usize = 16;
const MAX_KEY_CHARS: usize = 256;
const MAX_TENANT_CHARS: usize = 64;
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// What the holder of a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Talk to models.
    User,
    /// Also see and run the node.
    Admin,
}

/// A key that is known by its hash alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiKey {
    pub(crate) tenant: String,
    pub(crate) role: Role,
    /// SHA-256 of the key.
    pub(crate) hash: [u8; 32],
}

struct Line<'a> {
    tenant: &'a str,
    role: Role,
    key: &'a str,
}

/// Reads the server's keys. Only their hashes stay in memory.
pub(crate) fn read_api_keys(path: &Path) -> Result<Vec<ApiKey>, Failure> {
    let text = read(path)?;
    let mut keys: Vec<ApiKey> = Vec::new();
    for (number, line) in lines(&text) {
        let line = parse(line).map_err(|problem| at(path, number, problem))?;
        let hash = Sha256::digest(line.key).into();
        if keys.iter().any(|key| key.hash == hash) {
            return Err(at(path, number, "the same key stands further up. Give every line its own key"));
        }
        keys.push(ApiKey { tenant: line.tenant.to_owned(), role: line.role, hash });
    }
    if keys.is_empty() { Err(no_key(path)) } else { Ok(keys) }
}

/// Reads the key that a client uses: the first of the file.
pub(crate) fn read_client_key(path: &Path) -> Result<String, Failure> {
    let text = read(path)?;
    let (number, line) = lines(&text).next().ok_or_else(|| no_key(path))?;
    Ok(parse(line).map_err(|problem| at(path, number, problem))?.key.to_owned())
}

fn read(path: &Path) -> Result<String, Failure> {
    let shown = path.display();
    if path.metadata().is_ok_and(|meta| meta.len() > MAX_FILE_BYTES) {
        return Err(Failure::usage(format!("the API key file {shown} is too large"), "Name the right file"));
    }
    std::fs::read_to_string(path).map_err(|error| {
        Failure::usage(
            format!("cannot read the API key file {shown}: {error}"),
            "Make one, for example with `(umask 077; openssl rand -hex 32 > api-keys)`",
        )
    })
}

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    numbered.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

fn no_key(path: &Path) -> Failure {
    Failure::usage(
        format!("the API key file {} holds no key", path.display()),
        "Write one, for example with `(umask 077; openssl rand -hex 32 > api-keys)`",
    )
}

/// The line's number is told and never the line: it may hold a secret.
fn at(path: &Path, number: usize, problem: &str) -> Failure {
    let (message, remedy) = problem.split_once(". ").unwrap_or((problem, "Correct the line"));
    Failure::usage(format!("{}, line {number}: {message}", path.display()), remedy)
}

fn parse(line: &str) -> Result<Line<'_>, &'static str> {
    let parts: Vec<&str> = line.split(':').collect();
    let (tenant, role, key) = match parts.as_slice() {
        [key] => (DEFAULT_TENANT, "admin", *key),
        [tenant, key] => (*tenant, "user", *key),
        [tenant, role, key] => (*tenant, *role, *key),
        _ => return Err("too many colons. Write KEY, TENANT:KEY or TENANT:ROLE:KEY"),
    };
    let role = match role {
        "user" => Role::User,
        "admin" => Role::Admin,
        _ => return Err("there is no such role. Write user or admin"),
    };
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if tenant.is_empty() || tenant.len() > MAX_TENANT_CHARS || !tenant.chars().all(name) {
        return Err("the tenant is not a name. Use 1 to 64 of the characters A-Z a-z 0-9 . _ -");
    }
    if !key.chars().all(|c| c.is_ascii_graphic()) {
        return Err("the key has characters that no header can carry. Use visible ASCII without spaces");
    }
    match key.len() {
        ..MIN_KEY_CHARS => Err("the key is shorter than 16 characters. Make a longer one"),
        MIN_KEY_CHARS..=MAX_KEY_CHARS => Ok(Line { tenant, role, key }),
        _ => Err("the key is longer than 256 characters. Make a shorter one"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Result<Vec<ApiKey>, Failure> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("keys");
        std::fs::write(&path, text).expect("written");
        read_api_keys(&path)
    }

    #[test]
    fn the_three_forms_of_a_line_are_read() {
        let text = "# ours\n\n0123456789abcdef0\nacme:0123456789abcdef1\nacme:admin:0123456789abcdef2\n";
        let read = keys(text).expect("a good file");
        let known =
            |tenant: &str, role, key: &str| ApiKey { tenant: tenant.into(), role, hash: Sha256::digest(key).into() };
        assert_eq!(
            read,
            [
                known("default", Role::Admin, "0123456789abcdef0"),
                known("acme", Role::User, "0123456789abcdef1"),
                known("acme", Role::Admin, "0123456789abcdef2"),
            ]
        );
    }

    #[test]
    fn bad_lines_are_told_by_number_and_without_the_key() {
        for (text, number, told) in [
            ("secret-short", 1, "shorter than 16"),
            ("# x\nacme:root:secret-0123456789abcdef", 2, "no such role"),
            ("a b:secret-0123456789abcdef", 1, "tenant"),
            ("a:user:secret-0123456789abcdef:x", 1, "too many colons"),
            ("secret-0123456789abcdef\nsecret-0123456789abcdef", 2, "same key"),
            ("secret-0123456789 abcdef", 1, "header"),
        ] {
            let line = keys(text).expect_err(text).lines.remove(0);
            assert!(line.contains(&format!("line {number}")) && line.contains(told), "{line}");
            assert!(!line.contains("secret"), "{line}");
        }
        assert!(keys("# nothing\n").expect_err("no key").lines[0].contains("holds no key"));
    }
}
