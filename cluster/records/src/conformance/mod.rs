//! What every record store must do, as tests that panic. Each adapter runs [`run`] on itself.

mod cases;
mod model;

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::RecordStore;

/// A store under test.
pub trait Subject: Send + Sync {
    /// Opens the store. It is opened again, on the same data, after every clone of the last one was dropped.
    fn open(&self) -> BoxFuture<'_, Arc<dyn RecordStore>>;
}

/// Runs every case, each on an empty store of its own.
///
/// # Panics
///
/// If the store fails a case; the case is named in the backtrace, what was wrong in the message.
pub async fn run<S: Subject>(empty: impl AsyncFn() -> S) {
    cases::an_empty_store_holds_nothing(&empty().await).await;
    cases::rows_are_read_back(&empty().await).await;
    cases::states_are_read_in_the_order_asked_for(&empty().await).await;
    cases::an_older_write_never_overwrites(&empty().await).await;
    cases::a_repeated_batch_changes_nothing(&empty().await).await;
    cases::truncation_takes_older_items_only(&empty().await).await;
    cases::erasure_leaves_the_state_and_newer_rows(&empty().await).await;
    cases::a_forgotten_id_stays_forgotten(&empty().await).await;
    cases::a_write_wins_over_a_delete_of_its_own_record(&empty().await).await;
    cases::items_are_paged_from_both_ends(&empty().await).await;
    cases::sessions_are_listed_in_key_order(&empty().await).await;
    cases::tenants_do_not_see_each_other(&empty().await).await;
    cases::checkpoints_are_kept_per_shard(&empty().await).await;
    cases::odd_ids_and_values_are_kept(&empty().await).await;
    cases::writers_do_not_disturb_each_other(&empty().await).await;
}

/// Plays random histories, with repeats, late changes and reopening, against a model; one store per seed.
///
/// # Panics
///
/// If the store and the model differ; the message has the seed.
pub async fn play<S: Subject>(empty: impl AsyncFn() -> S, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        model::play(&empty().await, seed).await;
    }
}

/// Makes random changes late, again and out of order, many at once, and compares what is left with a model; one store per seed.
///
/// # Panics
///
/// If the store and the model differ; the message has the seed.
pub async fn converge<S: Subject>(empty: impl AsyncFn() -> S, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        model::converge(&empty().await, seed).await;
    }
}
