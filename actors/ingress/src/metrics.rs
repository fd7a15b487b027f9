//! The metrics of the public face.
//!
//! Handles are made once and kept, so that counting a request costs an addition. Labels come from closed sets: a route is one of
//! those that the router has, never a path that a caller chose.

use std::{sync::OnceLock, time::Duration};

use http::StatusCode;
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

/// Requests by route and status.
const REQUESTS: &str = "parlance_http_requests_total";
/// Seconds from a request's headers to its response's end, by route.
pub const REQUEST_DURATION: &str = "parlance_http_request_duration_seconds";
/// Errors by code.
const ERRORS: &str = "parlance_errors_total";
/// Requests for an answer.
const ASSISTANT_REQUESTS: &str = "assistant_requests_total";
/// Requests for an answer that failed by our fault.
const ASSISTANT_ERRORS: &str = "assistant_errors_total";
/// Open WebSockets.
const WEBSOCKETS: &str = "parlance_websockets";
/// Connections refused at the bound.
const CONNECTIONS_REFUSED: &str = "parlance_connections_refused_total";

/// The label of everything that is not a route.
pub(crate) const OTHER_ROUTE: &str = "other";

/// Status codes are counted as they are; there are not more than these.
const STATUSES: std::ops::Range<u16> = 100..600;

/// Suggested bounds of the buckets of [`REQUEST_DURATION`], in seconds: from a durable turn of a scripted model to a long stream.
pub const DURATION_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// Handles for everything that is counted per request.
#[derive(Debug)]
pub(crate) struct HttpMetrics {
    routes: Vec<RouteMetrics>,
    answers: Counter,
    failures: Counter,
    websockets: Gauge,
}

#[derive(Debug)]
struct RouteMetrics {
    route: &'static str,
    duration: Histogram,
    /// One counter per status, made when it is first seen.
    requests: Vec<OnceLock<Counter>>,
}

impl HttpMetrics {
    /// Describes the metrics and makes the handles. The recorder must be installed before.
    pub(crate) fn new(routes: &[&'static str]) -> Self {
        describe();
        let route = |&route: &&'static str| RouteMetrics {
            route,
            duration: histogram!(REQUEST_DURATION, "route" => route),
            requests: STATUSES.map(|_| OnceLock::new()).collect(),
        };
        Self {
            routes: routes.iter().chain([&OTHER_ROUTE]).map(route).collect(),
            answers: counter!(ASSISTANT_REQUESTS),
            failures: counter!(ASSISTANT_ERRORS),
            websockets: gauge!(WEBSOCKETS),
        }
    }

    /// Counts a finished request.
    pub(crate) fn request(&self, route: &str, status: StatusCode, duration: Duration) {
        let Some(metrics) = self.routes.iter().find(|metrics| metrics.route == route) else { return };
        metrics.duration.record(duration.as_secs_f64());
        let Some(slot) = metrics.requests.get(usize::from(status.as_u16() - STATUSES.start)) else { return };
        let label = || counter!(REQUESTS, "route" => metrics.route, "status" => status.as_str().to_owned());
        slot.get_or_init(label).increment(1);
    }

    /// Counts a request for an answer, over whichever face.
    pub(crate) fn answer_requested(&self) {
        self.answers.increment(1);
    }

    /// Counts an answer that failed by our fault.
    pub(crate) fn answer_failed(&self) {
        self.failures.increment(1);
    }

    /// Counts an error by its code.
    pub(crate) fn error(&self, code: &str) {
        counter!(ERRORS, "code" => code.to_owned()).increment(1);
    }

    /// Counts a WebSocket as open until the guard is dropped.
    pub(crate) fn websocket(&self) -> OpenWebSocket {
        self.websockets.increment(1.0);
        OpenWebSocket(self.websockets.clone())
    }
}

/// A WebSocket that is counted as open.
#[derive(Debug)]
pub(crate) struct OpenWebSocket(Gauge);

impl Drop for OpenWebSocket {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Counts a connection that was refused at the bound.
pub(crate) fn connection_refused() {
    counter!(CONNECTIONS_REFUSED).increment(1);
}

fn describe() {
    describe_counter!(REQUESTS, "HTTP requests by route and status");
    describe_histogram!(REQUEST_DURATION, Unit::Seconds, "from a request's headers to its response's end");
    describe_counter!(ERRORS, "errors told to callers, by code");
    describe_counter!(ASSISTANT_REQUESTS, "requests for an answer, over every face");
    describe_counter!(ASSISTANT_ERRORS, "requests for an answer that failed by the server's fault");
    describe_gauge!(WEBSOCKETS, "open WebSockets");
    describe_counter!(CONNECTIONS_REFUSED, "connections refused at the bound");
}
