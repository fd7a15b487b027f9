//! Whatever is written can be read, and whatever is read does no harm.

use bytes::Bytes;
use parlance_cluster_protocol::{
    Adopted, AdoptedItem, AdoptedKey, AdoptedTurn, AttemptStarted, Entry, FinishReason, GenerationOptions, History,
    Item, ItemsAdded, KeyBound, ModelTag, Origin, OutputFormat, Progress, Replied, Role, ServiceTier, SessionEvent,
    SessionKey, SessionOpened, SessionRecord, SessionUpdated, TimestampMs, TurnAccepted, TurnFailed, TurnId, Usage,
};
use proptest::{collection, option, prelude::*};

fn session() -> impl Strategy<Value = SessionKey> {
    proptest::array::uniform5("\\PC{0,20}").prop_map(|[tenant, channel, account, chat, thread]| SessionKey {
        tenant,
        channel,
        account,
        chat,
        thread,
    })
}

fn turn() -> impl Strategy<Value = TurnId> {
    any::<u128>().prop_map(TurnId)
}

fn time() -> impl Strategy<Value = TimestampMs> {
    any::<u64>().prop_map(TimestampMs)
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["\\PC{0,40}", Just(String::new()), Just("\0\n\u{10ffff}".to_owned())]
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let role = prop_oneof![Just(Role::System), Just(Role::User), Just(Role::Assistant), Just(Role::Tool)];
    collection::vec((role, text()).prop_map(|(role, text)| Item { role, text }), 0..4)
}

fn model() -> impl Strategy<Value = ModelTag> {
    (text(), text(), text()).prop_map(|(name, digest, numerics)| ModelTag { name, digest, numerics })
}

fn options() -> impl Strategy<Value = GenerationOptions> {
    let number = || option::of(proptest::num::f32::NORMAL | proptest::num::f32::ZERO);
    let count = || option::of(any::<u32>());
    let penalties = (number(), number(), number());
    let schema = (text(), text()).prop_map(|(name, schema)| OutputFormat::JsonSchema { name, schema });
    let format = option::of(prop_oneof![Just(OutputFormat::JsonObject), schema]);
    let tier = prop_oneof![Just(ServiceTier::Default), Just(ServiceTier::Flex), Just(ServiceTier::Priority)];
    let sampling = (number(), number(), count(), number());
    (text(), count(), sampling, penalties, collection::vec(text(), 0..4), (format, tier)).prop_map(
        |(model, max_tokens, (temperature, top_p, top_k, min_p), penalties, stop, (format, tier))| GenerationOptions {
            model,
            max_tokens,
            temperature,
            top_p,
            top_k,
            min_p,
            repetition_penalty: penalties.0,
            presence_penalty: penalties.1,
            frequency_penalty: penalties.2,
            stop,
            format,
            tier,
        },
    )
}

fn accepted() -> impl Strategy<Value = TurnAccepted> {
    let origin = prop_oneof![
        Just(Origin::ChatCompletion),
        Just(Origin::Response),
        Just(Origin::WebSocket),
        Just(Origin::Channel)
    ];
    let history = prop_oneof![Just(History::Session), Just(History::Given)];
    let identity = (turn(), text(), option::of(any::<[u8; 32]>()), option::of(turn()), option::of(text()));
    (identity, items(), history, options(), any::<u64>(), origin, time()).prop_map(
        |((turn, event_id, body_hash, regenerates, instructions), input, history, options, seed, origin, deadline)| {
            TurnAccepted {
                turn,
                event_id,
                body_hash,
                input,
                history,
                options,
                seed,
                origin,
                regenerates,
                instructions,
                deadline,
            }
        },
    )
}

fn replied() -> impl Strategy<Value = Replied> {
    let finish = prop_oneof![Just(FinishReason::Stop), Just(FinishReason::Length), Just(FinishReason::Cancelled)];
    (turn(), any::<u32>(), text(), finish, any::<[u32; 3]>(), model()).prop_map(
        |(turn, attempt, text, finish, [prompt_tokens, completion_tokens, cached_tokens], model)| Replied {
            turn,
            attempt,
            text,
            finish,
            usage: Usage { prompt_tokens, completion_tokens, cached_tokens },
            model,
        },
    )
}

fn adopted() -> impl Strategy<Value = Adopted> {
    let row = || collection::vec(any::<u8>(), 0..9).prop_map(Bytes::from);
    let keys = collection::vec((text(), row()).prop_map(|(event_id, row)| AdoptedKey { event_id, row }), 0..3);
    let items = collection::vec((any::<u64>(), row()).prop_map(|(index, row)| AdoptedItem { index, row }), 0..3);
    let open = collection::vec((turn(), time()).prop_map(|(turn, deadline)| AdoptedTurn { turn, deadline }), 0..3);
    let state = (row(), any::<u64>());
    let rows = (collection::vec(turn(), 0..3), keys, items, open);
    (any::<[u8; 32]>(), any::<u32>(), any::<bool>(), state, rows).prop_map(
        |(digest, part, last, (state, state_left), (turns, keys, items, open))| Adopted {
            digest,
            part,
            last,
            state,
            state_left,
            turns,
            keys,
            items,
            open,
        },
    )
}

fn event() -> impl Strategy<Value = SessionEvent> {
    let labels = || collection::btree_map(text(), text(), 0..4);
    prop_oneof![
        (labels(), option::of(text()), items()).prop_map(|(metadata, system_prompt, items)| SessionEvent::Opened(
            SessionOpened { metadata, system_prompt, items }
        )),
        (option::of(labels()), option::of(text()))
            .prop_map(|(metadata, system_prompt)| SessionEvent::Updated(SessionUpdated { metadata, system_prompt })),
        items().prop_map(|items| SessionEvent::ItemsAdded(ItemsAdded { items })),
        (any::<[u8; 32]>(), session(), turn(), time()).prop_map(|(body_hash, target, turn, expires_at)| {
            SessionEvent::KeyBound(KeyBound { body_hash, target, turn, expires_at })
        }),
        accepted().prop_map(SessionEvent::TurnAccepted),
        (turn(), any::<u32>())
            .prop_map(|(turn, attempt)| SessionEvent::AttemptStarted(AttemptStarted { turn, attempt })),
        (turn(), any::<u32>(), model(), any::<u32>(), collection::vec(any::<u32>(), 0..9)).prop_map(
            |(turn, attempt, model, from, tokens)| SessionEvent::Progress(Progress {
                turn,
                attempt,
                model,
                from,
                tokens
            })
        ),
        replied().prop_map(SessionEvent::Replied),
        (turn(), any::<u32>(), text(), text()).prop_map(|(turn, attempt, code, message)| SessionEvent::TurnFailed(
            TurnFailed { turn, attempt, code, message }
        )),
        Just(SessionEvent::Deleted),
        adopted().prop_map(SessionEvent::Adopted),
    ]
}

fn record() -> impl Strategy<Value = SessionRecord> {
    (session(), option::of(any::<[u8; 32]>()), any::<u32>(), time(), event())
        .prop_map(|(session, user, key_id, at, event)| SessionRecord { session, user, key_id, at, event })
}

proptest! {
    #[test]
    fn records_round_trip(record in record()) {
        prop_assert_eq!(SessionRecord::decode(record.encode()), Ok(record));
    }

    #[test]
    fn any_bytes_decode_or_are_refused(bytes in collection::vec(any::<u8>(), 0..200)) {
        if let Ok(entry) = Entry::decode(Bytes::from(bytes.clone())) {
            prop_assert_eq!(Entry::decode(entry.encode()), Ok(entry));
        }
        if let Ok(record) = SessionRecord::decode(Bytes::from(bytes)) {
            prop_assert_eq!(SessionRecord::decode(record.encode()), Ok(record));
        }
    }

    #[test]
    fn a_damaged_record_decodes_or_is_refused(record in record(), at in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let mut bytes = record.encode().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        // NaN is not equal to itself, so only the bytes are compared.
        if let Ok(record) = SessionRecord::decode(bytes.into()) {
            let again = SessionRecord::decode(record.encode()).map(|record| record.encode());
            prop_assert_eq!(again, Ok(record.encode()));
        }
    }
}
