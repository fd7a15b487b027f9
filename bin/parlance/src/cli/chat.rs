//! `parlance chat`: a conversation in the terminal.
//!
//! On a terminal: prompt, line history, commands, and Ctrl-C that stops the answer that is being given. Otherwise every line of
//! stdin is a turn and stdout has the answers alone.

use std::io::{BufRead as _, IsTerminal as _};

use rustyline::{DefaultEditor, error::ReadlineError};
use serde_json::json;

use super::session::{check_id, item_text, pages};
use crate::{
    client::{Answer, Api, Remote, TurnEnd, Watcher, answer, regenerate, runtime},
    failure::Failure,
    output, platform,
};

const HELP: &str = "/new         start a new conversation\n\
                    /regenerate  have the last answer made anew\n\
                    /help        show this\n\
                    /quit        leave (so does Ctrl-D)\n\
                    Ctrl-C       stop the answer that is being given";

/// Messages that are shown of a conversation that goes on.
const SHOWN_ON_RESUME: usize = 4;

/// Chat in the terminal
///
/// The conversation is kept by the server: --session takes it up again, also after a restart. With a pipe as input every line is one
/// turn.
#[derive(Debug, clap::Args)]
pub(super) struct Chat {
    /// The conversation to go on with; a new one if there is none of that name
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// The model that answers [default: the server's]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

impl Chat {
    pub(super) fn run(self) -> Result<(), Failure> {
        if let Some(id) = &self.session {
            check_id(id)?;
        }
        let mut conversation = Conversation {
            api: Api::new(&self.remote)?,
            runtime: runtime()?,
            session: self.session.clone().unwrap_or_else(fresh_session),
            model: self.model,
            json: self.remote.json,
        };
        if std::io::stdin().is_terminal() {
            conversation.greet(self.session.is_some())?;
            conversation.interact()
        } else {
            conversation.read_turns()
        }
    }
}

fn fresh_session() -> String {
    format!("chat-{}", uuid::Uuid::new_v4().simple())
}

struct Conversation {
    api: Api,
    runtime: tokio::runtime::Runtime,
    session: String,
    model: Option<String>,
    json: bool,
}

impl Conversation {
    /// Turns from a pipe: the first failure ends the command.
    fn read_turns(&mut self) -> Result<(), Failure> {
        for line in std::io::stdin().lock().lines() {
            let line =
                line.map_err(|error| Failure::failed(format!("cannot read stdin: {error}"), "Pipe UTF-8 text"))?;
            if !line.trim().is_empty() {
                self.turn(&line)?;
            }
        }
        Ok(())
    }

    /// Finds out that the server is there before anything is typed.
    fn greet(&self, resumed: bool) -> Result<(), Failure> {
        self.runtime.block_on(self.api.json(self.api.get("/v1/models")))?;
        output::note(format!("Session {}. /help shows the commands.", self.session));
        if resumed {
            let path = format!("/v1/conversations/{}/items?order=desc", self.session);
            // A session that does not exist yet has nothing to show.
            let items =
                self.runtime.block_on(pages(&self.api, &path, SHOWN_ON_RESUME, SHOWN_ON_RESUME)).unwrap_or_default();
            for item in items.iter().rev() {
                output::line(format!("{}: {}", item["role"].as_str().unwrap_or("?"), item_text(item)));
            }
        }
        Ok(())
    }

    fn interact(&mut self) -> Result<(), Failure> {
        let mut editor = DefaultEditor::new().map_err(|error| {
            Failure::failed(format!("cannot use the terminal: {error}"), "Pipe the turns into stdin")
        })?;
        let history = platform::history_file();
        if let Some(history) = &history {
            // The first time there is none.
            let _ = editor.load_history(history);
        }
        loop {
            match editor.readline("> ") {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => {
                    let _ = editor.add_history_entry(&line);
                    if !self.obey(line.trim()) {
                        break;
                    }
                }
                Err(ReadlineError::Interrupted) => output::note("Ctrl-D or /quit leaves."),
                Err(_) => break,
            }
        }
        if let Some(history) =
            history.filter(|path| path.parent().is_some_and(|dir| std::fs::create_dir_all(dir).is_ok()))
        {
            // A history that cannot be kept is no reason to end badly.
            let _ = editor.save_history(&history);
        }
        output::note(format!("Take it up again with: parlance chat --session {}", self.session));
        Ok(())
    }

    /// Does what a line says. False if the person wants to leave.
    fn obey(&mut self, line: &str) -> bool {
        let done = match line {
            "/quit" | "/exit" => return false,
            "/help" => {
                output::note(HELP);
                Ok(())
            }
            "/new" => {
                self.session = fresh_session();
                output::note(format!("Session {}.", self.session));
                Ok(())
            }
            "/regenerate" => self.regenerate(),
            unknown if unknown.starts_with('/') => {
                output::note(format!("There is no command {unknown}.\n{HELP}"));
                Ok(())
            }
            text => self.turn(text),
        };
        if let Err(failure) = done {
            output::failure(&failure);
        }
        true
    }

    fn turn(&mut self, text: &str) -> Result<(), Failure> {
        let mut screen = self.screen();
        let ended = self.runtime.block_on(answer(&self.api, &self.session, self.model.as_deref(), text, &mut screen));
        self.ended(ended)
    }

    fn screen(&self) -> Screen {
        Screen { json: self.json, interactive: std::io::stdin().is_terminal() }
    }

    fn regenerate(&mut self) -> Result<(), Failure> {
        let mut screen = self.screen();
        let ended = self.runtime.block_on(regenerate(&self.api, &self.session, &mut screen));
        self.ended(ended)
    }

    fn ended(&self, ended: Result<Answer, Failure>) -> Result<(), Failure> {
        let ended = ended.inspect_err(|_| {
            if !self.json {
                output::line("");
            }
        })?;
        if self.json {
            output::json(&json!({ "session": self.session, "response": ended.id, "text": ended.text }));
        } else {
            output::line("");
        }
        match ended.end {
            TurnEnd::Complete => Ok(()),
            TurnEnd::Incomplete(reason) => {
                output::note(format!("[{reason}]"));
                Ok(())
            }
            TurnEnd::Failed(reason) => Err(Failure::failed(reason.trim_end_matches('.'), "Try again")),
        }
    }
}

/// The terminal, or the pipe, that the answer is written to.
struct Screen {
    json: bool,
    /// Whether Ctrl-C stops the answer; in a pipe it ends the command, as everywhere.
    interactive: bool,
}

impl Watcher for Screen {
    fn text(&mut self, text: &str) {
        if !self.json {
            output::text_now(text);
        }
    }

    fn restarted(&mut self) {
        output::note("\n[the answer begins anew]");
    }

    fn lost(&mut self, reason: &str) {
        output::note(format!("\n[connection lost ({reason}); looking for the server]"));
    }

    async fn stop_wanted(&mut self) {
        if !self.interactive || tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}
