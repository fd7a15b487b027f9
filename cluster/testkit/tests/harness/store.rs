//! What the stand-ins of a cluster share: one file, locked by whoever reads or writes it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    path::PathBuf,
};

use parlance_loadtest::checker::scripted_mark;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Turn {
    pub(crate) turn: String,
    pub(crate) session: String,
    pub(crate) message: String,
    pub(crate) key: Option<String>,
    /// Whether its reply is recorded.
    #[serde(default)]
    pub(crate) is_replied: bool,
}

impl Turn {
    pub(crate) fn new(session: &str, message: &str, key: Option<&str>) -> Self {
        let turn = format!("{:016x}", rand::random::<u64>());
        let (session, message) = (session.to_owned(), message.to_owned());
        Self { turn, session, message, key: key.map(str::to_owned), is_replied: false }
    }

    pub(crate) fn reply(&self) -> String {
        format!("{} ok", scripted_mark(&self.message))
    }
}

pub(crate) struct Store(pub(crate) PathBuf);

impl Store {
    /// Reads all turns and records those that `change` returns. Nothing is ever overwritten, for the process may be killed at any moment: the
    /// last line of a turn counts.
    fn with<T>(&self, change: impl FnOnce(&[Turn]) -> (Vec<Turn>, T)) -> T {
        let mut file = File::options().create(true).append(true).read(true).open(&self.0).expect("a file");
        file.lock().expect("a lock");
        let mut text = String::new();
        file.read_to_string(&mut text).expect("it is read");
        let mut turns: Vec<Turn> = Vec::new();
        for turn in text.lines().map(|line| serde_json::from_str::<Turn>(line).expect("a turn")) {
            match turns.iter_mut().find(|other| other.turn == turn.turn) {
                Some(other) => *other = turn,
                None => turns.push(turn),
            }
        }
        let (changed, result) = change(&turns);
        let lines: String = changed.iter().map(|turn| serde_json::to_string(turn).expect("JSON") + "\n").collect();
        file.write_all(lines.as_bytes()).expect("it is written");
        result
    }

    /// Records a turn, unless there is one of its key; the recorded one, and whether it was there.
    pub(crate) fn accept(&self, turn: Turn, dedupes: bool) -> (Turn, bool) {
        self.with(|turns| {
            let same = |other: &&Turn| dedupes && other.key.is_some() && other.key == turn.key;
            match turns.iter().find(same) {
                Some(first) => (Vec::new(), (first.clone(), true)),
                None => (vec![turn.clone()], (turn, false)),
            }
        })
    }

    /// Records replies to all turns that `which` says, and returns them.
    pub(crate) fn complete(&self, which: impl Fn(&Turn) -> bool) -> Vec<Turn> {
        self.with(|turns| {
            let chosen: Vec<Turn> = turns.iter().filter(|turn| which(turn)).cloned().collect();
            let open = chosen.iter().filter(|turn| !turn.is_replied);
            (open.map(|turn| Turn { is_replied: true, ..turn.clone() }).collect(), chosen)
        })
    }
}
