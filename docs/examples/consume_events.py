"""Prints the events of a cluster, each once, as JSON lines.

    pip install confluent-kafka
    python consume_events.py BROKERS [TOPIC] [--cursors FILE] [--until-end]

Events come at least once. Of a slot they come in the order of their positions, but for those that come again; so the highest position of each
slot that was handled tells a repetition, and is all that a consumer has to remember, for each partition. Here it is kept in a file, written after
what it covers was printed: a crash in between repeats some lines, unless both are one transaction.
"""

import argparse
import json
import os
import sys

from confluent_kafka import Consumer, KafkaError, KafkaException, OFFSET_BEGINNING, TopicPartition

WRITE_CURSORS_EVERY = 100


def read_cursors(path):
    """By partition: the next offset to read, and the highest position of each slot that was handled."""
    if path is None or not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return {int(partition): cursor for partition, cursor in json.load(file).items()}


def write_cursors(path, cursors):
    sys.stdout.flush()
    if path is None:
        return
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(cursors, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def is_news(event, positions):
    """Whether it comes for the first time. The id is CLUSTER/SLOT/POSITION/INDEX."""
    _, slot, *position = event["id"].rsplit("/", 3)
    position = [int(number) for number in position]
    if position <= positions.get(slot, [-1, 0]):
        return False
    positions[slot] = position
    return True


def consume(arguments):
    consumer = Consumer({
        "bootstrap.servers": arguments.brokers,
        "group.id": "parlance-events-example",  # nobody joins it: partitions are assigned here
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "earliest",
    })
    topic = consumer.list_topics(arguments.topic, timeout=30).topics[arguments.topic]
    if topic.error:
        raise KafkaException(topic.error)
    cursors = read_cursors(arguments.cursors)
    start = lambda partition: cursors.get(partition, {}).get("offset", OFFSET_BEGINNING)
    consumer.assign([TopicPartition(arguments.topic, partition, start(partition)) for partition in topic.partitions])
    unfinished, unwritten = set(topic.partitions), 0
    while unfinished or not arguments.until_end:
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error():
            if message.error().code() != KafkaError._PARTITION_EOF:
                raise KafkaException(message.error())
            unfinished.discard(message.partition())
            continue
        event = json.loads(message.value())
        cursor = cursors.setdefault(message.partition(), {"positions": {}})
        if is_news(event, cursor["positions"]):
            print(json.dumps(event))
        cursor["offset"] = message.offset() + 1
        unwritten += 1
        if unwritten == WRITE_CURSORS_EVERY:
            write_cursors(arguments.cursors, cursors)
            unwritten = 0
    write_cursors(arguments.cursors, cursors)
    consumer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Prints the events of a cluster, each once, as JSON lines.")
    parser.add_argument("brokers", help="HOST:PORT, with commas between them")
    parser.add_argument("topic", nargs="?", default="parlance.events")
    parser.add_argument("--cursors", metavar="FILE", help="remembers what was printed, and goes on there")
    parser.add_argument("--until-end", action="store_true", help="ends once everything was printed")
    consume(parser.parse_args())
