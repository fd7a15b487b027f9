//! What clients do to a deployment and see of it, and whether it kept its promises.
//!
//! [`load`] makes clients, in a closed or an open loop, against one node or several. A [`history`] is one line of JSON per thing that a
//! client did or saw. The [`checker`] compares it with the transcripts that are recorded in the end. All speak of the public interface only,
//! so any deployment can be judged by them.

pub mod checker;
pub mod history;
pub mod load;
