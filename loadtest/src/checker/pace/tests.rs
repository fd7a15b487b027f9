use super::*;

const S: u64 = 1_000_000;

fn event(at_s: u64, message: &str, kind: EventKind) -> Event {
    Event { at_us: at_s * S, client: 0, session: "s".into(), message: message.into(), kind }
}

/// A message that is sent, acknowledged and answered at these seconds.
fn turn(message: &str, sent_s: u64, acknowledged_s: u64, answered_s: u64) -> Vec<Event> {
    let turn = || format!("turn of {message}");
    vec![
        event(sent_s, message, EventKind::Invoked),
        event(acknowledged_s, message, EventKind::Acknowledged { turn: turn() }),
        event(answered_s, message, EventKind::Replied { turn: turn(), text: String::new() }),
    ]
}

fn trouble(from_s: u64, until_s: u64) -> Trouble {
    Trouble { from_us: from_s * S, until_us: until_s * S }
}

fn late(message: &str, calm_s: u64) -> Violation {
    Violation::AnsweredLate { message: message.into(), calm_us: calm_s * S }
}

#[test]
fn a_turn_may_wait_for_a_minute_after_the_heal_and_no_longer() {
    let troubles = [trouble(10, 100)];
    let (pace_, found) = pace(&turn("in time", 5, 6, 156), &troubles);
    assert_eq!((found, pace_.slowest_us), (vec![], 60 * S));
    let (_, found) = pace(&turn("late", 5, 6, 157), &troubles);
    assert_eq!(found, [late("late", 61)]);
}

#[test]
fn calm_between_two_troubles_counts() {
    // Two overlap, and they are given in no order.
    let troubles = [trouble(100, 200), trouble(20, 40), trouble(10, 30)];
    let (_, found) = pace(&turn("m", 10, 10, 201), &troubles);
    assert_eq!(found, [late("m", 61)]);
}

#[test]
fn a_turn_that_a_client_asks_after_in_vain_is_late() {
    let mut history = turn("m", 0, 1, 2);
    history.pop();
    history.push(event(70, "m", EventKind::Unknown { reason: "asked after in vain".into() }));
    let (_, found) = pace(&history, &[]);
    assert_eq!(found, [late("m", 69)]);
}

#[test]
fn the_answer_counts_and_not_what_a_client_does_afterwards() {
    let mut history = turn("m", 0, 1, 2);
    history.push(event(90, "m", EventKind::Unknown { reason: "an echo".into() }));
    assert_eq!(pace(&history, &[]).1, []);
}

#[test]
fn ratios_tell_how_many_were_answered_and_how_soon_after_a_trouble() {
    let mut history = turn("untouched", 0, 1, 2);
    history.extend(turn("soon", 9, 10, 30));
    history.extend(turn("slow", 9, 10, 31));
    // Refused during the trouble until it was given up.
    history.extend([
        event(11, "refused", EventKind::Invoked),
        event(50, "refused", EventKind::Refused { code: "c".into() }),
    ]);
    // Nobody knows whether it was accepted.
    let unknown = EventKind::Unknown { reason: "r".into() };
    history.extend([event(11, "unknown", EventKind::Invoked), event(12, "unknown", unknown)]);
    let (pace_, found) = pace(&history, &[trouble(10, 21)]);
    assert_eq!(found, []);
    assert_eq!(pace_, Pace { success_ratio: 0.6, affected: 3, soon_ratio: 1.0 / 3.0, slowest_us: 10 * S });
}

#[test]
fn an_empty_history_is_no_failure() {
    let (pace_, found) = pace(&[], &[]);
    assert_eq!((pace_.success_ratio, pace_.soon_ratio, found), (1.0, 1.0, vec![]));
}

#[test]
fn waits_are_told_in_the_order_of_sending() {
    let mut history = turn("b", 0, 2, 5);
    history.extend([event(7, "a", EventKind::Invoked), event(9, "a", EventKind::Unknown { reason: "r".into() })]);
    let waited = |invoked_s: u64, acknowledged_s: Option<u64>, answered_s: Option<u64>| {
        let us = |s: Option<u64>| s.map(|s| s * S);
        Waited {
            invoked_us: invoked_s * S,
            acknowledged_after_us: us(acknowledged_s),
            answered_after_us: us(answered_s),
        }
    };
    assert_eq!(waits(&history), [waited(0, Some(2), Some(5)), waited(7, None, None)]);
}
