//! The metrics of embedding models.

use std::time::Duration;

use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_histogram, histogram};

use super::turns::Ended;

const REQUESTS: &str = "parlance_embedding_requests_total";
const TEXTS: &str = "parlance_embedding_texts_total";
const TOKENS: &str = "parlance_embedding_tokens_total";
const STEPS: &str = "parlance_embedding_steps_total";
const DURATION: &str = "parlance_embedding_duration_seconds";

/// The bucket bounds, in seconds, of the duration: from one sentence to a full request on a slow machine.
pub(crate) const DURATION_BUCKETS: (&str, &[f64]) =
    (DURATION, &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0]);

/// Describes them to the process's recorder.
pub(crate) fn describe() {
    describe_counter!(REQUESTS, "Ended embedding requests by outcome");
    describe_counter!(TEXTS, "Embedded texts");
    describe_counter!(TOKENS, "Tokens of embedded texts");
    describe_counter!(STEPS, "Batches of an embedding model");
    describe_histogram!(DURATION, Unit::Seconds, "From submission of an embedding request to its vectors");
}

/// One replica's handles.
pub(super) struct EmbeddingMetrics {
    done: Counter,
    cancelled: Counter,
    failed: Counter,
    texts: Counter,
    tokens: Counter,
    steps: Counter,
    duration: Histogram,
}

impl EmbeddingMetrics {
    pub(super) fn new(model: &str) -> Self {
        let name = || model.to_owned();
        let ended = |outcome: &'static str| counter!(REQUESTS, "model_name" => name(), "outcome" => outcome);
        Self {
            done: ended("done"),
            cancelled: ended("cancelled"),
            failed: ended("failed"),
            texts: counter!(TEXTS, "model_name" => name()),
            tokens: counter!(TOKENS, "model_name" => name()),
            steps: counter!(STEPS, "model_name" => name()),
            duration: histogram!(DURATION, "model_name" => name()),
        }
    }

    pub(super) fn computed(&self, texts: usize, tokens: usize) {
        self.steps.increment(1);
        self.texts.increment(texts as u64);
        self.tokens.increment(tokens as u64);
    }

    pub(super) fn ended(&self, how: Ended, since_submission: Duration) {
        match how {
            Ended::Done => {
                self.done.increment(1);
                self.duration.record(since_submission);
            }
            Ended::Cancelled => self.cancelled.increment(1),
            Ended::Failed => self.failed.increment(1),
        }
    }
}
