//! The engine's metrics, under the names that existing boards read (`vllm:*`, label `model_name`).
//!
//! Handles are made once per replica, so that recording costs an atomic operation. A replica made before the process's
//! recorder is installed records nothing.

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::{Finish, TokenUsage, embedding};

const RUNNING: &str = "vllm:num_requests_running";
const WAITING: &str = "vllm:num_requests_waiting";
const KV_USAGE: &str = "vllm:kv_cache_usage_perc";
const PREFIX_QUERIES: &str = "vllm:prefix_cache_queries_total";
const PREFIX_HITS: &str = "vllm:prefix_cache_hits_total";
const GUESSED: &str = "vllm:spec_decode_num_draft_tokens_total";
const GUESSED_RIGHT: &str = "vllm:spec_decode_num_accepted_tokens_total";
const PROMPT_TOKENS: &str = "vllm:prompt_tokens_total";
const GENERATION_TOKENS: &str = "vllm:generation_tokens_total";
const SUCCESS: &str = "vllm:request_success_total";
const TIME_TO_FIRST_TOKEN: &str = "vllm:time_to_first_token_seconds";
const INTER_TOKEN: &str = "vllm:inter_token_latency_seconds";
const END_TO_END: &str = "vllm:e2e_request_latency_seconds";

/// The bucket bounds, in seconds, that the exporter is given for each histogram of this crate.
pub const HISTOGRAM_BUCKETS: [(&str, &[f64]); 4] = [
    (
        TIME_TO_FIRST_TOKEN,
        &[0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0],
    ),
    (
        INTER_TOKEN,
        &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0],
    ),
    (
        END_TO_END,
        &[0.005, 0.025, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 240.0],
    ),
    embedding::DURATION_BUCKETS,
];

/// Describes the engine's metrics to the process's recorder. Once, after it is installed.
pub fn describe_metrics() {
    embedding::describe();
    describe_gauge!(RUNNING, "Requests that hold a lane");
    describe_gauge!(WAITING, "Requests that wait for a lane");
    describe_gauge!(KV_USAGE, "Share of the KV cache that running requests hold or are promised; 1 is all of it");
    describe_counter!(PREFIX_QUERIES, "Prompt tokens that were looked up in the KV cache");
    describe_counter!(PREFIX_HITS, "Prompt tokens that were found in the KV cache");
    describe_counter!(GUESSED, "Guessed tokens that were checked");
    describe_counter!(GUESSED_RIGHT, "Guessed tokens that were right");
    describe_counter!(PROMPT_TOKENS, "Prompt tokens of requests that ran");
    describe_counter!(GENERATION_TOKENS, "Generated tokens");
    describe_counter!(SUCCESS, "Ended requests by reason");
    describe_histogram!(TIME_TO_FIRST_TOKEN, Unit::Seconds, "From submission to the first token");
    describe_histogram!(INTER_TOKEN, Unit::Seconds, "Between two tokens of one request");
    describe_histogram!(END_TO_END, Unit::Seconds, "From submission to the end of the reply");
}

/// One replica's handles.
pub(crate) struct ReplicaMetrics {
    pub(crate) running: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) kv_usage: Gauge,
    prefix_queries: Counter,
    prefix_hits: Counter,
    guessed: Counter,
    guessed_right: Counter,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    stop: Counter,
    length: Counter,
    abort: Counter,
    error: Counter,
    time_to_first_token: Histogram,
    inter_token: Histogram,
    end_to_end: Histogram,
}

impl ReplicaMetrics {
    pub(crate) fn new(model: &str) -> Self {
        let name = || model.to_owned();
        let ended = |reason: &'static str| counter!(SUCCESS, "model_name" => name(), "finished_reason" => reason);
        Self {
            running: gauge!(RUNNING, "model_name" => name()),
            waiting: gauge!(WAITING, "model_name" => name()),
            kv_usage: gauge!(KV_USAGE, "model_name" => name()),
            prefix_queries: counter!(PREFIX_QUERIES, "model_name" => name()),
            prefix_hits: counter!(PREFIX_HITS, "model_name" => name()),
            guessed: counter!(GUESSED, "model_name" => name()),
            guessed_right: counter!(GUESSED_RIGHT, "model_name" => name()),
            prompt_tokens: counter!(PROMPT_TOKENS, "model_name" => name()),
            generation_tokens: counter!(GENERATION_TOKENS, "model_name" => name()),
            stop: ended("stop"),
            length: ended("length"),
            abort: ended("abort"),
            error: ended("error"),
            time_to_first_token: histogram!(TIME_TO_FIRST_TOKEN, "model_name" => name()),
            inter_token: histogram!(INTER_TOKEN, "model_name" => name()),
            end_to_end: histogram!(END_TO_END, "model_name" => name()),
        }
    }

    pub(crate) fn looked_up_prefix(&self, prompt: u32, found: u32) {
        self.prompt_tokens.increment(prompt.into());
        self.prefix_queries.increment(prompt.into());
        self.found_prefix(found);
    }

    pub(crate) fn found_prefix(&self, tokens: u32) {
        self.prefix_hits.increment(tokens.into());
    }

    pub(crate) fn guessed(&self, tokens: usize, right: usize) {
        self.guessed.increment(tokens as u64);
        self.guessed_right.increment(right as u64);
    }

    pub(crate) fn first_token(&self, since_submission: Duration) {
        self.time_to_first_token.record(since_submission);
    }

    pub(crate) fn next_token(&self, since_last: Duration) {
        self.inter_token.record(since_last);
    }

    pub(crate) fn finished(&self, finish: Finish, usage: TokenUsage, since_submission: Duration) {
        self.generation_tokens.increment(usage.completion.into());
        self.end_to_end.record(since_submission);
        match finish {
            Finish::Stop => self.stop.increment(1),
            Finish::Length => self.length.increment(1),
        }
    }

    pub(crate) fn cancelled(&self, generated: u32) {
        self.generation_tokens.increment(generated.into());
        self.abort.increment(1);
    }

    pub(crate) fn failed(&self, generated: u32) {
        self.generation_tokens.increment(generated.into());
        self.error.increment(1);
    }
}
