//! What clients saw of a deployment, and whether it kept its promises.
//!
//! A [`history`] is one line of JSON per thing that a client did or saw. The [`checker`] compares it with the transcripts that are
//! recorded in the end. Both speak of the public interface only, so any deployment can be judged by them.

pub mod checker;
pub mod history;
