//! Which models fit into the memory that they share. Pure.

use std::{fmt, time::Duration};

/// What the models of a node may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelMemory {
    /// In bytes.
    pub budget_bytes: u64,
    /// Whether idle models that are not pinned make room for one that does not fit, the longest unused first.
    pub evict_idle: bool,
}

impl Default for ModelMemory {
    /// No bound.
    fn default() -> Self {
        Self { budget_bytes: u64::MAX, evict_idle: false }
    }
}

/// One model, as the budget sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holding {
    pub(super) name: String,
    /// What it takes, with what is being loaded and what drains. In bytes.
    pub(super) in_use: u64,
    /// What is kept for it even where it takes less: all of it for a pinned model. In bytes.
    pub(super) kept: u64,
    /// For how long it was not used, where it may be taken out.
    pub(super) idle: Option<Duration>,
}

impl Holding {
    pub(super) fn bytes(&self) -> u64 {
        self.in_use.max(self.kept)
    }
}

/// A model does not fit. All sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct NoRoom {
    /// Its name.
    pub model: String,
    /// What it needs.
    pub needed: u64,
    /// What is free.
    pub free: u64,
    /// What all models may take.
    pub budget: u64,
    /// What the others take or have kept for them.
    pub holders: Vec<(String, u64)>,
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, needed, free, budget, holders } = self;
        // What is free is not rounded up, or it would seem to be enough.
        let (needed, free, budget) = (mebibytes(*needed), format!("{} MiB", free >> 20), mebibytes(*budget));
        write!(f, "the model `{model}` needs {needed} of memory, and {free} of the {budget} for models are free")?;
        if !holders.is_empty() {
            let holders: Vec<_> =
                holders.iter().map(|(name, bytes)| format!("`{name}` {}", mebibytes(*bytes))).collect();
            write!(f, " ({} are taken)", holders.join(", "))?;
        }
        f.write_str(
            "; unload another model, give this one fewer lanes or context_tokens, or raise limits.model_memory_mib",
        )
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// The models that must leave so that `model` can take `needed` bytes more, the longest unused first.
///
/// # Errors
///
/// [`NoRoom`] if it does not fit, not even without those that may leave.
pub(super) fn make_room(
    memory: ModelMemory,
    holdings: &[Holding],
    model: &str,
    needed: u64,
) -> Result<Vec<String>, NoRoom> {
    let held = held_beside(holdings, model);
    let mut idle: Vec<_> = holdings
        .iter()
        .filter(|holding| memory.evict_idle && holding.name != model)
        .filter_map(|holding| Some((holding.idle?, holding)))
        .collect();
    idle.sort_by_key(|(unused, _)| std::cmp::Reverse(*unused));
    let fits = |held: u64| held.saturating_add(needed) <= memory.budget_bytes;
    let (mut staying, mut leaving) = (held, Vec::new());
    for (_, holding) in idle {
        if fits(staying) {
            break;
        }
        staying -= holding.bytes();
        leaving.push(holding.name.clone());
    }
    if fits(staying) {
        return Ok(leaving);
    }
    let taken = holdings.iter().filter(|holding| holding.bytes() > 0 && (holding.name != model || holding.in_use > 0));
    let holders = taken.map(|holding| (holding.name.clone(), holding.bytes())).collect();
    let free = memory.budget_bytes.saturating_sub(held);
    Err(NoRoom { model: model.to_owned(), needed, free, budget: memory.budget_bytes, holders })
}

/// What is not free for `model`: what is kept for it is its own.
fn held_beside(holdings: &[Holding], model: &str) -> u64 {
    let held = |holding: &Holding| if holding.name == model { holding.in_use } else { holding.bytes() };
    holdings.iter().map(held).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holding(name: &str, in_use: u64, kept: u64, idle: Option<u64>) -> Holding {
        Holding { name: name.into(), in_use, kept, idle: idle.map(Duration::from_secs) }
    }

    fn memory(evict_idle: bool) -> ModelMemory {
        ModelMemory { budget_bytes: 100, evict_idle }
    }

    #[test]
    fn what_is_kept_for_a_pinned_model_is_its_own() {
        let holdings = [holding("pinned", 0, 60, None), holding("other", 30, 0, None)];
        assert_eq!(make_room(memory(false), &holdings, "pinned", 60), Ok(vec![]));
        let refused = make_room(memory(true), &holdings, "third", 11).expect_err("10 are free");
        assert_eq!((refused.needed, refused.free, refused.holders.len()), (11, 10, 2));
    }

    #[test]
    fn the_longest_unused_leave_first_and_only_where_that_is_wanted() {
        let holdings = [holding("new", 30, 0, Some(1)), holding("old", 30, 0, Some(9)), holding("busy", 30, 0, None)];
        let room = |evict, needed| make_room(memory(evict), &holdings, "x", needed);
        assert_eq!(room(true, 10), Ok(vec![]));
        assert_eq!(room(true, 11), Ok(vec!["old".into()]));
        assert_eq!(room(true, 70), Ok(vec!["old".into(), "new".into()]));
        assert!(room(true, 71).is_err() && room(false, 11).is_err());
    }

    #[test]
    fn a_refusal_has_the_figures_and_the_remedy() {
        let mib = |count: u64| count << 20;
        let holdings = [holding("a", mib(60), 0, None)];
        let memory = ModelMemory { budget_bytes: mib(100), evict_idle: false };
        let told = make_room(memory, &holdings, "b", mib(41)).expect_err("40 are free").to_string();
        let figures = "the model `b` needs 41 MiB of memory, and 40 MiB of the 100 MiB for models are free (`a` 60 MiB";
        assert!(told.starts_with(figures) && told.contains("limits.model_memory_mib"), "{told}");
    }

    proptest! {
        #[test]
        fn the_budget_holds_and_nothing_leaves_in_vain(
            models in prop::collection::vec((0u64..50, 0u64..50, prop::option::of(0u64..100)), 0..8),
            needed in 0u64..120,
            evict in any::<bool>(),
        ) {
            // A pinned model never leaves, so what is kept goes with no idle time.
            let holdings: Vec<_> = models.iter().enumerate().map(|(at, &(in_use, kept, idle))| {
                holding(&at.to_string(), in_use, if idle.is_some() { 0 } else { kept }, idle)
            }).collect();
            match make_room(memory(evict), &holdings, "x", needed) {
                Ok(leaving) => {
                    prop_assert!(evict || leaving.is_empty());
                    let stays = |all_but: usize| -> u64 {
                        holdings.iter().filter(|h| !leaving[..all_but].contains(&h.name)).map(Holding::bytes).sum()
                    };
                    prop_assert!(stays(leaving.len()) + needed <= 100);
                    if let Some(fewer) = leaving.len().checked_sub(1) {
                        prop_assert!(stays(fewer) + needed > 100, "the last one left in vain");
                    }
                    prop_assert!(leaving.iter().all(|name| holdings.iter().any(|h| h.name == *name && h.idle.is_some())));
                }
                Err(refused) => {
                    let staying = |h: &&Holding| !evict || h.idle.is_none();
                    prop_assert!(holdings.iter().filter(staying).map(Holding::bytes).sum::<u64>() + needed > 100);
                    prop_assert_eq!(refused.needed, needed);
                }
            }
        }
    }
}
