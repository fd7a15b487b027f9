//! The embedded store against the conformance suite.

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};
use parlance_cluster_records::{LocalOptions, LocalRecords, RecordStore, conformance};
use tempfile::TempDir;

struct Embedded {
    dir: TempDir,
    options: LocalOptions,
}

impl conformance::Subject for Embedded {
    fn open(&self) -> BoxFuture<'_, Arc<dyn RecordStore>> {
        async {
            let store = LocalRecords::open_with(self.dir.path(), self.options).expect("an intact store opens");
            Arc::new(store) as Arc<dyn RecordStore>
        }
        .boxed()
    }
}

fn embedded(options: LocalOptions) -> Embedded {
    Embedded { dir: tempfile::tempdir().expect("the system has a place for temporary files"), options }
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    conformance::run(async || embedded(LocalOptions::default())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agrees_with_the_model() {
    conformance::play(async || embedded(LocalOptions::default()), 0..8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn late_and_repeated_changes_converge() {
    conformance::converge(async || embedded(LocalOptions::default()), 0..64).await;
}

/// With memtables this small, most rows lie in tables.
#[tokio::test(flavor = "multi_thread")]
async fn agrees_with_the_model_when_rows_lie_in_tables() {
    let options = LocalOptions { memtable_bytes: 1_024, ..LocalOptions::default() };
    conformance::play(async || embedded(options), 100..104).await;
}
