//! `parlance data`: a data directory moved to another node, backed up and restored, all over embedded stores.

mod common;
mod moved;

use std::{fs, path::Path};

use common::{Ended, Node, Place, client, end, get, send};
use moved::{adopt, adopted, fill, kill_after_parts};
use serde_json::{Value, json};

#[test]
fn sessions_go_on_at_the_node_that_adopted_them() {
    let (source, target) = (Place::new(), Place::new());
    let contents = fill(&source);
    let node = Node::start(&target, target.up().args(["--node", "big"]));
    node.wait_ready();
    let done = adopted(&source, &node.url(""));
    assert_eq!((&done["into"], &done["found"], &done["open_turns"]), (&json!("node big"), &json!(0), &json!(1)));
    assert_eq!(done["sessions"], json!(contents.sessions), "{done}");
    contents.assert_at(&node);
    end(&mut source.up()).assert_refused(1, &["was sealed on", "went to node big", "--data", "data adopt --from"]);
    let again = adopted(&source, &node.url(""));
    assert_eq!((&again["found"], &again["sessions"]), (&done["sessions"], &done["sessions"]), "{again}");
    assert!(again["changed"].as_u64() >= Some(2), "{again}");
    node.kill();
    // What was adopted is in its log and records like everything else.
    let node = target.start();
    node.wait_ready();
    assert_eq!(get(&node.url("/v1/conversations/talk")).status, 200);
}

#[test]
fn a_move_that_was_killed_goes_on() {
    let (source, target) = (Place::new(), Place::new());
    let contents = fill(&source);
    let node = target.start();
    node.wait_ready();
    // A session has four parts: twice some of it is there, and not all.
    for _ in 0..2 {
        kill_after_parts(&source, node.address(), 2);
        end(&mut source.up()).assert_refused(1, &["was sealed"]);
    }
    let done = adopted(&source, &node.url(""));
    assert_eq!(done["sessions"], json!(contents.sessions), "{done}");
    assert!(done["found"].as_u64() >= Some(1), "{done}");
    contents.assert_at(&node);
}

#[test]
fn what_another_has_under_the_same_name_is_kept_and_told() {
    let (source, target) = (Place::new(), Place::new());
    let contents = fill(&source);
    let node = target.start();
    node.wait_ready();
    let body = json!({ "messages": [{ "role": "user", "content": "mine" }] });
    let say = || client(None).post(node.url("/v1/chat/completions")).header("X-Session-ID", "talk").json(&body);
    assert_eq!(send(say()).expect("an answer").status, 200);
    let items = || get(&node.url("/v1/conversations/talk/items")).json();
    let before = items();
    let refused = end(&mut adopt(&source, &node.url("")));
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let total = format!("1 of {} sessions were not moved", contents.sessions);
    for part in ["session default/api//talk/: The session exists already", &total] {
        assert!(refused.stderr.contains(part), "no {part:?} in {}", refused.stderr);
    }
    assert_eq!(items(), before);
}

#[test]
fn only_a_directory_at_rest_is_moved_and_to_one_place() {
    let (source, target, other) = (Place::new(), Place::new(), Place::new());
    let node = target.start();
    node.wait_ready();
    end(&mut adopt(&source, &node.url(""))).assert_refused(2, &["is not the data directory", "--data"]);
    let running = source.start();
    running.wait_ready();
    end(&mut adopt(&source, &node.url(""))).assert_refused(1, &["a process uses the data directory", "End the node"]);
    running.kill();
    let nobody = "http://127.0.0.1:1";
    end(&mut adopt(&source, nobody)).assert_refused(3, &["cannot reach"]);
    assert!(!source.data().join("sealed").exists(), "nothing is sealed for nobody");
    assert_eq!(adopted(&source, &node.url(""))["sessions"], 0);
    let another = Node::start(&other, other.up().args(["--node", "another"]));
    another.wait_ready();
    end(&mut adopt(&source, &another.url(""))).assert_refused(1, &["was sealed for node", "of node another"]);
}

#[test]
fn what_names_no_directory_is_wrong_usage() {
    let place = Place::new();
    for words in [&["data"][..], &["data", "adopt"], &["data", "backup"], &["data", "restore", "--from", "x"]] {
        let ended = end(place.parlance().args(words));
        assert_eq!(ended.code, Some(2), "{words:?}: {ended:?}");
    }
    end(place.parlance().args(["data", "backup", "--to"]).arg(place.path().join("x")))
        .assert_refused(2, &[".local/state/parlance is not the data directory"]);
}

fn backup(place: &Place, to: &Path) -> Ended {
    end(place.parlance().args(["data", "backup", "--data"]).arg(place.data()).arg("--to").arg(to))
}

fn restore(place: &Place, from: &Path, data: &Path) -> Ended {
    end(place.parlance().args(["data", "restore", "--from"]).arg(from).arg("--data").arg(data))
}

#[test]
fn a_restored_directory_has_everything() {
    let (place, elsewhere) = (Place::new(), Place::new());
    let contents = fill(&place);
    let copy = place.path().join("copies/first");
    fs::create_dir(place.path().join("copies")).expect("made");
    let done = backup(&place, &copy);
    assert!(done.code == Some(0) && done.stdout.contains("files"), "{done:?}");
    backup(&place, &copy).assert_refused(2, &["is not empty", "--to"]);
    let done = restore(&place, &copy, &elsewhere.data());
    assert_eq!(done.code, Some(0), "{done:?}");
    restore(&place, &copy, &elsewhere.data()).assert_refused(2, &["is not empty", "--data"]);
    let node = elsewhere.start();
    node.wait_ready();
    contents.assert_at(&node);
    // It goes on apart from the one that it is a copy of.
    let first = place.start();
    first.wait_ready();
    contents.assert_at(&first);
    let running = place.path().join("copies/second");
    backup(&place, &running).assert_refused(1, &["a process uses the data directory", "End the node"]);
    assert!(!running.exists());
}

#[test]
fn a_sealed_directory_stays_sealed_through_backup_and_restore() {
    let (place, target, elsewhere) = (Place::new(), Place::new(), Place::new());
    fill(&place);
    let node = target.start();
    node.wait_ready();
    adopted(&place, &node.url(""));
    let copy = place.path().join("copy");
    assert_eq!(backup(&place, &copy).code, Some(0));
    assert_eq!(restore(&place, &copy, &elsewhere.data()).code, Some(0));
    end(&mut elsewhere.up()).assert_refused(1, &["was sealed"]);
}

/// Every file below a directory.
fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn a_damaged_backup_is_refused_with_what_is_damaged() {
    let (place, elsewhere) = (Place::new(), Place::new());
    fill(&place);
    let copy = place.path().join("copy");
    assert_eq!(backup(&place, &copy).code, Some(0));
    let data = copy.join("data");
    for path in files(&data) {
        let whole = fs::read(&path).expect("a file");
        let name = path.strip_prefix(&data).expect("below").to_string_lossy().into_owned();
        let refuse = |why: &str| {
            restore(&place, &copy, &elsewhere.data()).assert_refused(1, &["the backup is damaged", &name, why]);
            assert!(!elsewhere.data().exists(), "{name}");
        };
        if let Some(middle) = whole.len().checked_div(2).filter(|_| !whole.is_empty()) {
            let mut flipped = whole.clone();
            flipped[middle] ^= 1;
            fs::write(&path, flipped).expect("written");
            refuse("SHA-256");
            fs::write(&path, &whole[1..]).expect("written");
            refuse("bytes");
        }
        fs::remove_file(&path).expect("removed");
        refuse("missing");
        fs::write(&path, whole).expect("written");
    }
    fs::write(data.join("stowaway"), "x").expect("written");
    restore(&place, &copy, &elsewhere.data()).assert_refused(1, &["stowaway", "does not know it"]);
    fs::remove_file(data.join("stowaway")).expect("removed");
    let manifest = copy.join("manifest.json");
    let text = fs::read_to_string(&manifest).expect("a manifest");
    fs::write(&manifest, &text[..text.len() / 2]).expect("written");
    restore(&place, &copy, &elsewhere.data()).assert_refused(1, &["the backup is damaged", "manifest.json"]);
    let mut newer: Value = serde_json::from_str(&text).expect("JSON");
    newer["format"] = json!(2);
    fs::write(&manifest, newer.to_string()).expect("written");
    restore(&place, &copy, &elsewhere.data()).assert_refused(1, &["format 2", "Restore it with parlance"]);
    fs::remove_file(&manifest).expect("removed");
    restore(&place, &copy, &elsewhere.data()).assert_refused(2, &["no whole backup", "parlance data backup"]);
    fs::write(&manifest, text).expect("written");
    assert_eq!(restore(&place, &copy, &elsewhere.data()).code, Some(0), "it is whole again");
}
