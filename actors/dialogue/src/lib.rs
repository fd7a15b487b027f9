//! parlance-actors-dialogue
