use super::*;

/// Two sessions of three messages each, all acknowledged and answered, and one more that was refused and one unknown.
fn good() -> (Vec<Event>, Vec<Transcript>) {
    let mut history = Vec::new();
    let mut transcripts = Vec::new();
    for client in 0..2u32 {
        let session = format!("s{client}");
        let mut items = Vec::new();
        for n in 0..3u64 {
            let (message, turn) = (format!("{client}/{n}"), format!("t{client}{n}"));
            let text = format!("{} ok", scripted_mark(&message));
            for (step, kind) in [
                EventKind::Invoked,
                EventKind::Acknowledged { turn: turn.clone() },
                EventKind::Replied { turn: turn.clone(), text: text.clone() },
            ]
            .into_iter()
            .enumerate()
            {
                let at_us = n * 100 + step as u64 * 10 + u64::from(client);
                history.push(Event { at_us, client, session: session.clone(), message: message.clone(), kind });
            }
            items.push(RecordedItem { role: "user".into(), text: message, turn: turn.clone(), error: None });
            items.push(RecordedItem { role: "assistant".into(), text, turn, error: None });
        }
        transcripts.push(Transcript { session, items });
    }
    for (message, kind) in
        [("x", EventKind::Refused { code: "c".into() }), ("y", EventKind::Unknown { reason: "r".into() })]
    {
        for kind in [EventKind::Invoked, kind] {
            history.push(Event { at_us: 900, client: 2, session: "s2".into(), message: message.into(), kind });
        }
    }
    (history, transcripts)
}

fn violations(history: &[Event], transcripts: &[Transcript]) -> Vec<Violation> {
    check(history, transcripts, scripted_mark).violations
}

#[test]
fn a_good_run_has_no_violations_and_is_counted() {
    let (history, transcripts) = good();
    let report = check(&history, &transcripts, scripted_mark);
    assert_eq!(report.violations, []);
    let counts = [report.invoked, report.acknowledged, report.replied, report.refused, report.unknown, report.recorded];
    assert_eq!(counts, [8, 6, 6, 1, 1, 6]);
}

#[test]
fn an_unknown_message_may_be_recorded_once_and_then_needs_its_answer() {
    let (history, mut transcripts) = good();
    let user = RecordedItem { role: "user".into(), text: "y".into(), turn: "ty".into(), error: None };
    transcripts.push(Transcript { session: "s2".into(), items: vec![user] });
    assert_eq!(violations(&history, &transcripts), [Violation::Unanswered { message: "y".into() }]);
    let text = scripted_mark("y");
    transcripts[2].items.push(RecordedItem { role: "assistant".into(), text, turn: "ty".into(), error: None });
    assert_eq!(violations(&history, &transcripts), []);
}

/// One way to break a promise, and what must be said about it.
type Breach = (fn(&mut Vec<Event>, &mut Vec<Transcript>), fn(&Violation) -> bool);

#[test]
fn every_breach_is_found() {
    let breaches: [Breach; 11] = [
        (|_, records| drop(records[0].items.drain(2..4)), |v| matches!(v, Violation::Lost { .. })),
        (
            |_, records| {
                let again = records[0].items[2..4].to_vec();
                records[0].items.extend(again);
            },
            |v| matches!(v, Violation::AcceptedTwice { .. }),
        ),
        (|_, records| drop(records[0].items.remove(3)), |v| matches!(v, Violation::Unanswered { .. })),
        (
            |_, records| {
                let again = records[0].items[3].clone();
                records[0].items.insert(4, again);
            },
            |v| matches!(v, Violation::AnsweredTwice { .. }),
        ),
        (|_, records| records[1].items[1].text = "other".into(), |v| matches!(v, Violation::WrongReply { .. })),
        (|_, records| records[1].items[1].text.push('!'), |v| matches!(v, Violation::ShownOtherwise { .. })),
        (
            |_, records| {
                let first: Vec<_> = records[0].items.drain(0..2).collect();
                records[0].items.extend(first);
            },
            |v| matches!(v, Violation::OutOfOrder { .. }),
        ),
        (
            |_, records| {
                let said =
                    RecordedItem { role: "user".into(), text: "nobody said".into(), turn: "t".into(), error: None };
                records[0].items.push(said);
            },
            |v| matches!(v, Violation::Phantom { .. }),
        ),
        (
            |_, records| {
                let refused = RecordedItem { role: "user".into(), text: "x".into(), turn: "tx".into(), error: None };
                records[0].items.push(refused);
            },
            |v| matches!(v, Violation::Phantom { message } if message == "x"),
        ),
        (
            |history, _| {
                let turn = "another".to_owned();
                let again = Event { kind: EventKind::Acknowledged { turn }, ..history[1].clone() };
                history.push(again);
            },
            |v| matches!(v, Violation::TurnChanged { .. }),
        ),
        (
            |_, records| {
                let moved: Vec<_> = records[0].items.drain(4..6).collect();
                records[1].items.extend(moved);
            },
            |v| matches!(v, Violation::WrongSession { .. }),
        ),
    ];
    for (index, (breach, expected)) in breaches.into_iter().enumerate() {
        let (mut history, mut transcripts) = good();
        breach(&mut history, &mut transcripts);
        let found = violations(&history, &transcripts);
        assert!(found.iter().any(expected), "breach {index}: {found:?}");
    }
}

#[test]
fn concurrent_messages_may_be_recorded_in_either_order() {
    let (mut history, transcripts) = good();
    for event in &mut history {
        // Everything is sent before anything is acknowledged.
        event.at_us = if event.kind == EventKind::Invoked { 1 } else { 2 };
    }
    let mut turned = transcripts.clone();
    let first: Vec<_> = turned[0].items.drain(0..2).collect();
    turned[0].items.extend(first);
    assert_eq!(violations(&history, &turned), []);
}
