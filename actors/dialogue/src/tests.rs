//! The machine in a simulated world: a log that commits late or never, a store, a model, crashes.

mod adoption;
mod history;
mod keys;
mod recovery;
mod rules;
mod sequences;
mod settings;
mod store;
mod world;
