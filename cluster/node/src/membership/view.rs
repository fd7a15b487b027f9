//! What the rest of the node is told of the others.

use std::collections::BTreeMap;

use super::record::{Duty, Member};
use crate::identity::{BootId, Incarnation, NodeName};

/// How a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// Nobody says otherwise.
    Alive,
    /// This node or another has not heard of it for too long.
    Suspected,
    /// It did not refute the suspicion.
    Down,
    /// It said good-bye.
    Left,
}

impl Standing {
    /// Whether it is still counted on.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Alive | Self::Suspected)
    }
}

/// What has become of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A node that was not known is there.
    Joined(Member),
    /// It may be dead.
    Suspected(Incarnation),
    /// It was suspected or down, and is not dead.
    Recovered(Member),
    /// It has left of its own will.
    Left(Incarnation),
    /// It is taken for dead.
    Down(Incarnation),
    /// A node was started anew; its earlier incarnation, whatever became of it, counts no longer.
    Restarted {
        /// The earlier incarnation.
        was: Incarnation,
        /// The node as it is now.
        now: Member,
    },
    /// It says something else of itself.
    Changed(Member),
    /// A later incarnation of this node runs, or ran. This one is heard by nobody any more and says nothing more: its process has to stop,
    /// and to start with a later boot id.
    Superseded {
        /// The later one.
        by: BootId,
    },
}

/// A member as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its record.
    pub member: Member,
    /// How it stands.
    pub standing: Standing,
}

/// Everybody else, by name.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) seen: BTreeMap<NodeName, Seen>,
}

impl View {
    /// Takes in how a member is seen now, and adds what that means to `events`.
    pub(super) fn see(&mut self, now: Seen, events: &mut Vec<Event>) {
        let was = self.seen.insert(now.member.node.name.clone(), now.clone());
        match &was {
            Some(was) if *was == now => return,
            Some(was) if was.member.node == now.member.node => same_start(was, &now, events),
            Some(was) if now.standing.is_live() => {
                events.push(Event::Restarted { was: was.member.node.clone(), now: now.member.clone() });
            }
            None if now.standing.is_live() => events.push(Event::Joined(now.member.clone())),
            Some(was) if was.standing.is_live() => events.push(gone(&now)),
            Some(_) | None => {}
        }
        let was_suspected =
            was.is_some_and(|was| was.member.node == now.member.node && was.standing == Standing::Suspected);
        if now.standing == Standing::Suspected && !was_suspected {
            events.push(Event::Suspected(now.member.node));
        }
    }
}

fn same_start(was: &Seen, now: &Seen, events: &mut Vec<Event>) {
    match (was.standing, now.standing) {
        (Standing::Alive | Standing::Suspected, Standing::Down | Standing::Left) => return events.push(gone(now)),
        (_, Standing::Down | Standing::Left) => return,
        (Standing::Down | Standing::Left, _) | (Standing::Suspected, Standing::Alive) => {
            events.push(Event::Recovered(now.member.clone()));
        }
        (Standing::Alive, _) | (Standing::Suspected, Standing::Suspected) => {}
    }
    if (Member { revision: now.member.revision, ..was.member.clone() }) != now.member {
        events.push(Event::Changed(now.member.clone()));
    }
}

fn gone(now: &Seen) -> Event {
    match now.member.duty {
        Duty::Leaving => Event::Left(now.member.node.clone()),
        Duty::Serving | Duty::Draining => Event::Down(now.member.node.clone()),
    }
}
