//! Prints the effective configuration.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{ClusterConfig, Config};

/// One key: its section, its name and its value in JSON form, which for strings, numbers, flags and lists is TOML as well.
type Row = (String, &'static str, Value);

fn rows(config: &Config) -> Vec<Row> {
    let top = |key, value| (String::new(), key, value);
    let mut rows = vec![
        top("listen", json!(config.listen.to_string())),
        top("data", json!(config.data)),
        top("model_dir", json!(config.model_dir)),
        ("node".into(), "name", json!(config.node.name)),
        ("node".into(), "zone", json!(config.node.zone)),
    ];
    let cluster = config.cluster.iter().flat_map(ClusterConfig::rows);
    rows.extend(cluster.map(|(key, value)| ("cluster".into(), key, value)));
    rows.extend(config.log.rows().into_iter().map(|(key, value)| ("log".into(), key, value)));
    rows.push(("events".into(), "publish", json!(config.publishes_events)));
    rows.extend(config.records.rows().into_iter().map(|(key, value)| ("records".into(), key, value)));
    rows.extend(config.cache.rows().into_iter().map(|(key, value)| ("cache".into(), key, value)));
    for (name, model) in &config.models {
        let section = format!("models.{}", quoted(name));
        rows.push((section.clone(), "source", json!(model.source.to_string())));
        rows.push((section.clone(), "device", json!(model.device.to_string())));
        rows.push((section.clone(), "precision", json!(model.precision.to_string())));
        rows.push((section.clone(), "lanes", json!(model.lanes)));
        rows.push((section.clone(), "context_tokens", json!(model.context_tokens)));
        rows.push((section.clone(), "cache_tokens", json!(model.cache_tokens)));
        rows.push((section.clone(), "kept_tokens", json!(model.kept_tokens)));
        rows.push((section.clone(), "speculation", json!(model.speculation.to_string())));
        let target = model.target_first_token.map(|target| target.as_millis() as u64);
        rows.push((section.clone(), "target_first_token_ms", json!(target)));
        rows.push((section.clone(), "replicas", json!(model.replicas)));
        rows.push((section.clone(), "pinned", json!(model.pinned)));
        rows.push((section, "preload", json!(model.preload)));
    }
    rows.extend(limits(config).map(|(key, value)| ("limits".into(), key, value)));
    rows.push(("auth".into(), "api_key_file", json!(config.api_key_file)));
    rows.push(("auth".into(), "cors_origins", json!(config.cors_origins)));
    if let Some(tls) = &config.tls {
        rows.push(("tls".into(), "cert", json!(tls.cert)));
        rows.push(("tls".into(), "key", json!(tls.key)));
        rows.push(("tls".into(), "client_ca", json!(tls.client_ca)));
    }
    rows.retain(|(_, _, value)| !value.is_null());
    rows
}

fn limits(config: &Config) -> impl Iterator<Item = (&'static str, Value)> {
    let (node, ingress) = (&config.limits.node, &config.limits.ingress);
    [
        ("connections", json!(ingress.connections)),
        ("websockets", json!(ingress.websockets)),
        ("body_bytes", json!(ingress.body_bytes)),
        ("header_bytes", json!(ingress.header_bytes)),
        ("header_timeout_s", json!(ingress.header_timeout.as_secs())),
        ("body_timeout_s", json!(ingress.body_timeout.as_secs())),
        ("idle_timeout_s", json!(ingress.idle_timeout.as_secs())),
        ("stall_timeout_s", json!(ingress.stall_timeout.as_secs())),
        ("drain_s", json!(ingress.drain_timeout.as_secs())),
        ("open_turns", json!(node.open_turns)),
        ("open_turns_per_tenant", json!(node.open_turns_per_tenant)),
        ("turns_per_minute_per_tenant", json!(node.turn_rate.map(|rate| rate.tokens))),
        ("turn_burst_per_tenant", json!(node.turn_rate.map(|rate| rate.burst))),
        ("queued_turns_per_session", json!(node.queued_turns_per_session)),
        ("live_sessions", json!(node.live_sessions)),
        ("session_idle_s", json!(node.session_idle.as_secs())),
        ("turn_deadline_s", json!(node.turn_deadline.as_secs())),
        ("projection_lag", json!(node.projection_lag)),
        ("history_bytes", json!(node.history_bytes)),
        ("stateless", json!(node.stateless)),
        ("model_memory_mib", json!(config.limits.memory.budget_bytes >> 20)),
        ("evict_idle_models", json!(config.limits.memory.evict_idle)),
        ("model_wait_s", json!(node.model_wait.as_secs())),
        ("model_drain_s", json!(node.model_drain.as_secs())),
    ]
    .into_iter()
}

fn quoted(name: &str) -> String {
    let bare = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if bare { name.to_owned() } else { format!("{name:?}") }
}

pub(super) fn to_toml(config: &Config) -> String {
    let mut text = String::new();
    let mut open = String::new();
    for (section, key, value) in rows(config) {
        if section != open {
            let _ = write!(text, "\n[{section}]\n");
            open.clone_from(&section);
        }
        let path = if section.is_empty() { key.to_owned() } else { format!("{}.{key}", section.replace('"', "")) };
        let origin = config.origins.get(&path).map_or("default", String::as_str);
        let _ = writeln!(text, "{:40} # {origin}", format!("{key} = {value}"));
    }
    text
}

pub(super) fn to_json(config: &Config) -> Value {
    let mut root = serde_json::Map::new();
    for (section, key, value) in rows(config) {
        match section.strip_prefix("models.").map(|name| name.trim_matches('"').to_owned()) {
            Some(name) => {
                let models = root.entry("models").or_insert_with(|| json!({}));
                models[name][key] = value;
            }
            None if section.is_empty() => {
                root.insert(key.to_owned(), value);
            }
            None => root.entry(section).or_insert_with(|| json!({}))[key] = value,
        }
    }
    Value::Object(root)
}
