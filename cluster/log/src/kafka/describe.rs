//! What the brokers say of a topic, its id among it: rdkafka has no call for that yet, so this asks librdkafka itself.
//!
//! The only unsafe code of this crate. Every pointer that librdkafka hands out lives as long as the event it came with.

use std::{
    ffi::{CStr, CString, c_char},
    ptr, slice,
    time::Duration,
};

use rdkafka::{bindings as rd, client::Client, error::KafkaError, types::RDKafkaErrorCode};

use super::context::Context;

/// A topic as the brokers know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TopicDescription {
    /// Never given to another topic, not even to one of the same name.
    pub(super) id: String,
    pub(super) partitions: Vec<PartitionDescription>,
}

/// One partition: which broker leads it, on how many it is, and on how many of these it is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PartitionDescription {
    pub(super) has_leader: bool,
    pub(super) replicas: usize,
    pub(super) in_sync: usize,
}

/// Asks for `topic`; `None` if there is none. Blocks for at most `timeout`.
///
/// # Errors
///
/// What keeps the brokers from answering.
pub(super) fn describe(
    client: &Client<Context>,
    topic: &str,
    timeout: Duration,
) -> Result<Option<TopicDescription>, KafkaError> {
    let name = CString::new(topic)?;
    let event = Event::ask(client, &name, timeout)?;
    // SAFETY: the event is alive, and of this kind by its creation; librdkafka gives null for another.
    let result = unsafe { rd::rd_kafka_event_DescribeTopics_result(event.event) };
    let mut count = 0;
    // SAFETY: a result of this kind, which lives as long as its event.
    let topics = unsafe { list(rd::rd_kafka_DescribeTopics_result_topics(result, &mut count), count) };
    let Some(&described) = topics.first() else { return Ok(None) };
    // SAFETY: as above. There is always an error, if only the one that says "none".
    let code = unsafe { rd::rd_kafka_error_code(rd::rd_kafka_TopicDescription_error(described)) };
    match RDKafkaErrorCode::from(code) {
        RDKafkaErrorCode::NoError => {}
        RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => return Ok(None),
        code => return Err(KafkaError::AdminOp(code)),
    }
    // SAFETY: as above; the string lives as long as the id.
    let id = unsafe { CStr::from_ptr(rd::rd_kafka_Uuid_base64str(rd::rd_kafka_TopicDescription_topic_id(described))) };
    // SAFETY: as above.
    let partitions = unsafe { list(rd::rd_kafka_TopicDescription_partitions(described, &mut count), count) };
    let partitions = partitions.iter().map(|&partition| partition_of(partition)).collect();
    Ok(Some(TopicDescription { id: id.to_string_lossy().into_owned(), partitions }))
}

fn partition_of(partition: *const rd::rd_kafka_TopicPartitionInfo_t) -> PartitionDescription {
    let (mut replicas, mut in_sync) = (0, 0);
    // SAFETY: a partition of a result whose event is alive. A leader is null where there is none.
    let has_leader = unsafe {
        rd::rd_kafka_TopicPartitionInfo_replicas(partition, &mut replicas);
        rd::rd_kafka_TopicPartitionInfo_isr(partition, &mut in_sync);
        let leader = rd::rd_kafka_TopicPartitionInfo_leader(partition);
        !leader.is_null() && rd::rd_kafka_Node_id(leader) >= 0
    };
    PartitionDescription { has_leader, replicas, in_sync }
}

/// # Safety
///
/// `first` points to `count` pointers that live for `'a`, or `count` is 0.
unsafe fn list<'a, T>(first: *mut *const T, count: usize) -> &'a [*const T] {
    if count == 0 || first.is_null() {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { slice::from_raw_parts(first, count) }
}

/// An answer of librdkafka and the queue that it came by.
struct Event {
    queue: *mut rd::rd_kafka_queue_t,
    event: *mut rd::rd_kafka_event_t,
}

impl Event {
    fn ask(client: &Client<Context>, topic: &CStr, timeout: Duration) -> Result<Self, KafkaError> {
        let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        let handle = client.native_ptr();
        // SAFETY: the client outlives the call; what is made here is destroyed here, the queue and the event by `drop`.
        let answer = unsafe {
            let mut answer = Self { queue: rd::rd_kafka_queue_new(handle), event: ptr::null_mut() };
            let mut names = [topic.as_ptr().cast::<c_char>()];
            let topics = rd::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
            let kind = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
            let options = rd::rd_kafka_AdminOptions_new(handle, kind);
            rd::rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, ptr::null_mut(), 0);
            rd::rd_kafka_DescribeTopics(handle, topics, options, answer.queue);
            rd::rd_kafka_AdminOptions_destroy(options);
            rd::rd_kafka_TopicCollection_destroy(topics);
            // The request times out by itself; the rest is for a client that is busy.
            answer.event = rd::rd_kafka_queue_poll(answer.queue, timeout_ms.saturating_add(500));
            answer
        };
        if answer.event.is_null() {
            return Err(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut));
        }
        // SAFETY: the event is alive.
        match RDKafkaErrorCode::from(unsafe { rd::rd_kafka_event_error(answer.event) }) {
            RDKafkaErrorCode::NoError => Ok(answer),
            code => Err(KafkaError::AdminOp(code)),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: both were made by `ask` and are used by nobody else. An event may be null.
        unsafe {
            if !self.event.is_null() {
                rd::rd_kafka_event_destroy(self.event);
            }
            rd::rd_kafka_queue_destroy(self.queue);
        }
    }
}
