//! Every key that a configuration may have. The file, the environment and the nearest-name hints all read this one table.

/// The form of a key's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Integer,
    Flag,
    List,
}

impl Kind {
    pub(super) fn describe(self) -> &'static str {
        match self {
            Kind::Text => "a string",
            Kind::Integer => "a whole number",
            Kind::Flag => "true or false",
            Kind::List => "a list of strings",
        }
    }
}

/// Stands for any name in a key's path.
pub(super) const ANY: &str = "*";

/// All keys with the form of their values, section by section.
pub(super) const KEYS: &[(&str, Kind)] = &[
    ("listen", Kind::Text),
    ("data", Kind::Text),
    ("model_dir", Kind::Text),
    ("node.name", Kind::Text),
    ("node.zone", Kind::Text),
    ("cluster.id", Kind::Text),
    ("cluster.listen", Kind::Text),
    ("cluster.advertise", Kind::Text),
    ("cluster.seeds", Kind::List),
    ("cluster.ca", Kind::Text),
    ("cluster.cert", Kind::Text),
    ("cluster.key", Kind::Text),
    ("cluster.weight", Kind::Integer),
    ("cluster.heartbeat_ms", Kind::Integer),
    ("cluster.silence_ms", Kind::Integer),
    ("cluster.suspicion_threshold", Kind::Integer),
    ("cluster.down_after_ms", Kind::Integer),
    ("cluster.moves_at_once", Kind::Integer),
    ("log.kind", Kind::Text),
    ("log.brokers", Kind::List),
    ("log.topic_prefix", Kind::Text),
    ("log.shards", Kind::Integer),
    ("log.replication", Kind::Integer),
    ("log.tls", Kind::Flag),
    ("log.ca", Kind::Text),
    ("log.cert", Kind::Text),
    ("log.key", Kind::Text),
    ("log.user", Kind::Text),
    ("log.password_file", Kind::Text),
    ("log.sasl", Kind::Text),
    ("events.publish", Kind::Flag),
    ("records.kind", Kind::Text),
    ("records.contact_points", Kind::List),
    ("records.keyspace", Kind::Text),
    ("records.replication", Kind::Integer),
    ("records.datacenter", Kind::Text),
    ("records.ca", Kind::Text),
    ("records.cert", Kind::Text),
    ("records.key", Kind::Text),
    ("records.server_name", Kind::Text),
    ("records.user", Kind::Text),
    ("records.password_file", Kind::Text),
    ("cache.kind", Kind::Text),
    ("cache.url", Kind::Text),
    ("cache.user", Kind::Text),
    ("cache.password_file", Kind::Text),
    ("cache.timeout_ms", Kind::Integer),
    ("models.*.source", Kind::Text),
    ("models.*.device", Kind::Text),
    ("models.*.precision", Kind::Text),
    ("models.*.replicas", Kind::Integer),
    ("models.*.lanes", Kind::Integer),
    ("models.*.context_tokens", Kind::Integer),
    ("models.*.cache_tokens", Kind::Integer),
    ("models.*.kept_tokens", Kind::Integer),
    ("models.*.speculation", Kind::Text),
    ("models.*.target_first_token_ms", Kind::Integer),
    ("models.*.pinned", Kind::Flag),
    ("models.*.preload", Kind::Flag),
    ("limits.connections", Kind::Integer),
    ("limits.websockets", Kind::Integer),
    ("limits.body_bytes", Kind::Integer),
    ("limits.header_bytes", Kind::Integer),
    ("limits.header_timeout_s", Kind::Integer),
    ("limits.body_timeout_s", Kind::Integer),
    ("limits.idle_timeout_s", Kind::Integer),
    ("limits.stall_timeout_s", Kind::Integer),
    ("limits.open_turns", Kind::Integer),
    ("limits.open_turns_per_tenant", Kind::Integer),
    ("limits.turns_per_minute_per_tenant", Kind::Integer),
    ("limits.turn_burst_per_tenant", Kind::Integer),
    ("limits.queued_turns_per_session", Kind::Integer),
    ("limits.live_sessions", Kind::Integer),
    ("limits.session_idle_s", Kind::Integer),
    ("limits.turn_deadline_s", Kind::Integer),
    ("limits.projection_lag", Kind::Integer),
    ("limits.history_bytes", Kind::Integer),
    ("limits.stateless", Kind::Integer),
    ("limits.drain_s", Kind::Integer),
    ("limits.model_memory_mib", Kind::Integer),
    ("limits.evict_idle_models", Kind::Flag),
    ("limits.model_wait_s", Kind::Integer),
    ("limits.model_drain_s", Kind::Integer),
    ("auth.api_key_file", Kind::Text),
    ("auth.cors_origins", Kind::List),
    ("tls.cert", Kind::Text),
    ("tls.key", Kind::Text),
    ("tls.client_ca", Kind::Text),
];

/// The kind of the key at `path`, if there is such a key.
pub(super) fn kind_of(path: &[String]) -> Option<Kind> {
    KEYS.iter().find(|(key, _)| matches(key, path)).map(|(_, kind)| *kind)
}

/// Whether `path` is a section, that is, whether keys lie below it.
pub(super) fn is_section(path: &[String]) -> bool {
    KEYS.iter().any(|(key, _)| {
        let parts: Vec<&str> = key.split('.').collect();
        parts.len() > path.len() && parts.iter().zip(path).all(|(part, name)| *part == ANY || part == name)
    })
}

fn matches(key: &str, path: &[String]) -> bool {
    let mut parts = key.split('.');
    path.iter().all(|name| parts.next().is_some_and(|part| part == ANY || part == name)) && parts.next().is_none()
}

/// The valid key that reads most like the unknown `path`.
///
/// A section that is right as far as it goes is kept, so that `limits.body` is told of `limits.body_bytes` first.
pub(super) fn nearest(path: &[String]) -> String {
    let wanted = path.join(".");
    let score = |key: &str| {
        let named = with_names_of(key, path);
        let same_section =
            named.rsplit_once('.').map(|(section, _)| section) == wanted.rsplit_once('.').map(|(s, _)| s);
        (strsim::jaro_winkler(&named, &wanted) * 1_000.0) as i64 + if same_section { 200 } else { 0 }
    };
    let best = KEYS.iter().map(|(key, _)| *key).max_by_key(|key| score(key));
    with_names_of(best.expect("the table of keys is not empty"), path)
}

/// The valid section that reads most like the unknown `path`.
pub(super) fn nearest_section(path: &[String]) -> String {
    let wanted = path.join(".");
    let sections =
        KEYS.iter().filter_map(|(key, _)| key.rsplit_once('.')).map(|(section, _)| with_names_of(section, path));
    let best = sections.max_by_key(|section| (strsim::jaro_winkler(section, &wanted) * 1_000.0) as i64);
    best.expect("the table of keys has sections")
}

/// Puts the names that the operator chose where the table says "any".
fn with_names_of(key: &str, path: &[String]) -> String {
    let chosen = |(index, part): (usize, &str)| match part {
        ANY => path.get(index).map_or_else(|| "NAME".to_owned(), Clone::clone),
        part => part.to_owned(),
    };
    key.split('.').enumerate().map(chosen).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Vec<String> {
        text.split('.').map(str::to_owned).collect()
    }

    #[test]
    fn keys_are_found_with_any_model_name() {
        assert_eq!(kind_of(&path("listen")), Some(Kind::Text));
        assert_eq!(kind_of(&path("models.small.pinned")), Some(Kind::Flag));
        assert_eq!(kind_of(&path("models.small")), None);
        assert_eq!(kind_of(&path("node")), None);
        assert!(is_section(&path("models.small")) && is_section(&path("node")) && !is_section(&path("listen")));
    }

    #[test]
    fn the_nearest_key_is_the_one_a_person_meant() {
        for (typed, meant) in [
            ("lissten", "listen"),
            ("node.nmae", "node.name"),
            ("limits.body", "limits.body_bytes"),
            ("limit.body_bytes", "limits.body_bytes"),
            ("models.small.pined", "models.small.pinned"),
            ("auth.api_key", "auth.api_key_file"),
            ("tls.certificate", "tls.cert"),
            ("log.topic", "log.topic_prefix"),
        ] {
            assert_eq!(nearest(&path(typed)), meant, "typed {typed}");
        }
    }
}
