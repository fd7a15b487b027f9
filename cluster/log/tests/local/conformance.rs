use std::sync::Arc;

use parlance_cluster_log::{LocalLog, LocalLogOptions, ShardLog, conformance};

use crate::support::{self, options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_log_keeps_the_promises_of_the_port() {
    check(support::SEGMENT_BYTES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_of_usual_size_keep_them_too() {
    check(LocalLogOptions::new("").segment_bytes).await;
}

async fn check(segment_bytes: usize) {
    conformance::check_all(|| {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        async move || {
            let options = LocalLogOptions { segment_bytes, ..options(directory.path()) };
            let log: Arc<dyn ShardLog> = Arc::new(LocalLog::open(options).expect("the log opens"));
            log
        }
    })
    .await;
}
