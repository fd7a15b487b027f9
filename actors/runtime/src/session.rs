//! One live conversation: feeds its pure [`Dialogue`] machine and performs what the machine asks for.
//!
//! A child of its shard's [`ShardActor`](crate::shard), started when a command comes for a session that is not in memory. Passivated when
//! idle. A restart loses the running generation, which is taken up again from the log, and the watchers' streams, which are told so.

mod effects;
mod generation;
mod load;
mod stream;

use std::{collections::HashMap, sync::Arc};

use parlance_actors_dialogue::{Caller, Command, Dialogue, DialogueError, RequestId, Tag, ViewChange};
use parlance_cluster_protocol::{SessionKey, TimestampMs, TurnAccepted, TurnId, UserHash};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, ActorRuntime, SpawnErr, SupervisionEvent};

pub(crate) use self::generation::is_missing;
use self::{generation::Generation, stream::OpenStream};
use crate::{
    Refusal,
    admission::Permit,
    node::Services,
    request::{Reply, SessionAnswer, SessionCommand, SessionRequest, Submit},
    shard::{Committed, ShardMessage},
};

pub(crate) enum SessionMessage {
    Command(SessionCommand),
    /// A record of this session is in the log for good. `tag`: it is this incarnation's own.
    Committed {
        committed: Committed,
        tag: Option<u64>,
    },
    /// The proposed record is not in the log and never will be.
    NeverCommitted {
        tag: u64,
    },
    /// Look whether a turn has to be taken up again; being alive is enough.
    Recover,
    /// Time has passed.
    Tick,
    Internal(Internal),
}

pub(crate) enum Internal {
    /// What a running generation has to say.
    Generation { turn: TurnId, attempt: u32, event: generation::Event },
}

impl ractor::Message for SessionMessage {}

pub(crate) struct SessionArguments {
    pub(crate) session: Arc<SessionKey>,
    pub(crate) shard: ActorRef<ShardMessage>,
    pub(crate) services: Arc<Services>,
    /// Committed records that the record store may not have.
    pub(crate) tail: Vec<Committed>,
}

pub(crate) struct Session;

impl Session {
    /// Starts the session below its shard. It takes messages at once and handles them when it is loaded.
    pub(crate) fn spawn(arguments: SessionArguments, shard: ActorCell) -> Result<ActorRef<SessionMessage>, SpawnErr> {
        let (actor, _running) = ActorRuntime::spawn_linked_instant(None, Self, arguments, shard)?;
        Ok(actor)
    }
}

/// Who waits for the effect that answers a request.
enum Waiting {
    Submit { reply: Reply, permit: Option<Permit> },
    Bind(Reply),
    Done(Reply),
}

pub(crate) struct SessionState {
    session: Arc<SessionKey>,
    myself: ActorRef<SessionMessage>,
    shard: ActorRef<ShardMessage>,
    services: Arc<Services>,
    /// `Err`: the session could not be loaded; every command is answered with this.
    dialogue: Result<Box<Dialogue>, Refusal>,
    next_request: u64,
    /// Bound: the machine's limit of waiting requests.
    waiting: HashMap<RequestId, Waiting>,
    /// The open turns' texts. Bound: the machine's queue limit.
    streams: HashMap<TurnId, OpenStream>,
    generation: Option<Generation>,
    /// When the machine wants to be woken, if that is too soon for the shard's sweep.
    wake_at: Option<TimestampMs>,
}

impl Actor for Session {
    type Msg = SessionMessage;
    type State = SessionState;
    type Arguments = SessionArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<SessionMessage>,
        arguments: SessionArguments,
    ) -> Result<SessionState, ActorProcessingErr> {
        let dialogue = load::load(&arguments).await?;
        let mut state = SessionState::new(myself, arguments, dialogue);
        state.tell(Command::Recovered)?;
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<SessionMessage>,
        message: SessionMessage,
        state: &mut SessionState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SessionMessage::Command(command) => {
                state.on_command(command)?;
                state.report_handled();
            }
            SessionMessage::Committed { committed, tag } => state.on_committed(&committed, tag)?,
            SessionMessage::NeverCommitted { tag } => state.tell(Command::NeverCommitted { tag: Tag(tag) })?,
            SessionMessage::Recover => state.on_recover(),
            SessionMessage::Tick => state.on_tick()?,
            SessionMessage::Internal(Internal::Generation { turn, attempt, event }) => {
                state.on_generation(turn, attempt, event)?;
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<SessionMessage>,
        _event: SupervisionEvent,
        _state: &mut SessionState,
    ) -> Result<(), ActorProcessingErr> {
        // It has no children.
        Ok(())
    }
}

impl SessionState {
    fn new(
        myself: ActorRef<SessionMessage>,
        arguments: SessionArguments,
        dialogue: Result<Box<Dialogue>, Refusal>,
    ) -> Self {
        Self {
            session: arguments.session,
            myself,
            shard: arguments.shard,
            services: arguments.services,
            dialogue,
            next_request: 0,
            waiting: HashMap::new(),
            streams: HashMap::new(),
            generation: None,
            wake_at: None,
        }
    }

    fn on_command(&mut self, command: SessionCommand) -> Result<(), DialogueError> {
        if let Err(refusal) = &self.dialogue {
            command.refuse(refusal.clone());
            // The next command tries to load it again.
            self.myself.stop(Some("the session could not be loaded".into()));
            return Ok(());
        }
        let SessionCommand { request, permit, reply } = command;
        match request {
            SessionRequest::Submit(Submit { turn, user, create, behind, prompt_tokens }) => {
                if let Err(refusal) = self.check_room(&turn, prompt_tokens) {
                    // A caller that is gone needs no answer.
                    let _gone = reply.send(Err(refusal));
                    return Ok(());
                }
                let submit = |caller| Command::Submit { caller, turn, create, behind };
                self.ask(Waiting::Submit { reply, permit }, user, submit)
            }
            SessionRequest::BindKey { body_hash, target, turn, expires_at } => {
                self.ask(Waiting::Bind(reply), None, |caller| Command::BindKey {
                    caller,
                    body_hash,
                    target,
                    turn,
                    expires_at,
                })
            }
            SessionRequest::Open { opened, user } => {
                self.ask(Waiting::Done(reply), user, |caller| Command::Open { caller, opened })
            }
            SessionRequest::Update { updated, user } => {
                self.ask(Waiting::Done(reply), user, |caller| Command::Update { caller, updated })
            }
            SessionRequest::AddItems { added, user } => {
                self.ask(Waiting::Done(reply), user, |caller| Command::AddItems { caller, items: added.items })
            }
            SessionRequest::Delete { user } => {
                self.ask(Waiting::Done(reply), user, |caller| Command::Delete { caller })
            }
            SessionRequest::Adopt(part) => {
                self.ask(Waiting::Done(reply), None, |caller| Command::Adopt { caller, part })
            }
            SessionRequest::Stop { turn } => self.on_stop(turn, reply),
            SessionRequest::Watch { turn } => {
                self.on_watch(turn, reply);
                Ok(())
            }
        }
    }

    /// A session that owes an answer and could not be loaded leaves, so that its shard tries again.
    fn on_recover(&self) {
        if self.dialogue.is_err() {
            self.myself.stop(Some("the session could not be loaded".into()));
        }
    }

    /// Whether the model has room for a turn. One that was accepted before is joined, room or not.
    fn check_room(&self, turn: &TurnAccepted, prompt_tokens: u32) -> Result<(), Refusal> {
        match &self.dialogue {
            Ok(dialogue) if !dialogue.knows(turn) => {
                self.services.models.admits(&turn.options.model, &self.session.tenant, prompt_tokens)
            }
            _ => Ok(()),
        }
    }

    /// So that the shard lets the session leave memory only when no command is on its way.
    fn report_handled(&self) {
        // A shard that is stopping takes its sessions along.
        let _stopping =
            self.shard.cast(ShardMessage::Handled { from: self.myself.get_id(), session: self.session.clone() });
    }

    /// Tells the machine a request and remembers who waits for its answer.
    fn ask(
        &mut self,
        waiting: Waiting,
        user: Option<UserHash>,
        command: impl FnOnce(Caller) -> Command,
    ) -> Result<(), DialogueError> {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.waiting.insert(request, waiting);
        self.tell(command(Caller { request, user }))
    }

    fn on_stop(&mut self, turn: Option<TurnId>, reply: Reply) -> Result<(), DialogueError> {
        let was_open = match turn {
            Some(turn) => self.is_open(turn),
            None => self.dialogue.as_ref().is_ok_and(|dialogue| dialogue.durable().open_turns().len() > 0),
        };
        self.tell(Command::Stop { turn })?;
        // A caller that is gone needs no answer.
        let _gone = reply.send(Ok(SessionAnswer::Stopped(was_open)));
        Ok(())
    }

    fn on_watch(&mut self, turn: TurnId, reply: Reply) {
        let stream = self.is_open(turn).then(|| self.stream(turn).watch());
        // A caller that is gone needs no answer.
        let _gone = reply.send(Ok(SessionAnswer::Watching(stream)));
    }

    fn is_open(&self, turn: TurnId) -> bool {
        let Ok(dialogue) = &self.dialogue else { return false };
        dialogue.durable().open_turns().any(|open| open.request.turn == turn)
    }

    fn on_committed(&mut self, committed: &Committed, tag: Option<u64>) -> Result<(), DialogueError> {
        let Ok(dialogue) = &mut self.dialogue else { return Ok(()) };
        let mut views = Vec::new();
        dialogue.apply(committed.position, &committed.record, &mut views)?;
        self.report_forgotten(committed, views);
        match tag {
            Some(tag) => self.tell(Command::Committed { tag: Tag(tag) }),
            None => self.tell(Command::Tick),
        }
    }

    /// The projection follows from the records alone, but for this: which event ids have expired only the session knows.
    fn report_forgotten(&self, committed: &Committed, views: Vec<ViewChange>) {
        let forgotten = views.into_iter().filter(|view| matches!(view, ViewChange::ForgetDedupe { .. }));
        let views: Vec<_> = forgotten.collect();
        if !views.is_empty() {
            let (session, position) = (self.session.clone(), committed.position);
            // A shard that is stopping takes its sessions along.
            let _stopping = self.shard.cast(ShardMessage::Views { session, position, views });
        }
    }

    fn on_tick(&mut self) -> Result<(), DialogueError> {
        self.on_recover();
        self.wake_at = None;
        self.tell(Command::Tick)
    }

    /// Tells the machine and performs what it answers.
    fn tell(&mut self, command: Command) -> Result<(), DialogueError> {
        let Ok(dialogue) = &mut self.dialogue else { return Ok(()) };
        let mut effects = Vec::new();
        dialogue.on(command, self.services.clock.now(), &mut effects);
        for effect in effects {
            self.perform(effect);
        }
        self.schedule_wake();
        Ok(())
    }
}
