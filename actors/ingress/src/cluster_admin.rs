//! `/admin/v1/nodes` and `/admin/v1/shards`: the cluster as this node sees it, and what an operator wants of it.

use axum::{
    Extension, Json,
    extract::{Path, Request, State},
};
use http::StatusCode;
use parlance_actors_runtime::{ClusterRefusal, ClusterView, Node, NodeSeen, ShardSeen};
use serde_json::{Value, json};

use crate::{
    api_error::ApiError,
    app::Shared,
    auth::{Peer, require_operator},
    body::read_json,
    generation,
    json::parse_object,
};

/// Lists the nodes. One that is alone lists itself.
pub(crate) async fn nodes(State(app): State<Shared>) -> Json<Value> {
    let data: Vec<Value> = match app.node.cluster() {
        Some(view) => view.nodes.iter().map(node).collect(),
        None => vec![node(&alone(&app.node))],
    };
    Json(json!({ "object": "list", "data": data }))
}

/// Lists the shards, and who owns and follows them.
pub(crate) async fn shards(State(app): State<Shared>) -> Json<Value> {
    let status = app.node.status();
    let data: Vec<Value> = match app.node.cluster() {
        Some(view) => view.shards.iter().map(shard).collect(),
        None => (0..status.shards).map(|number| shard(&owned(number, &status.node))).collect(),
    };
    Json(json!({ "object": "list", "data": data }))
}

/// Has a node give up its shards.
pub(crate) async fn drain(
    State(app): State<Shared>,
    peer: Option<Extension<Peer>>,
    Path(name): Path<String>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    require_operator(peer.map(|Extension(peer)| peer))?;
    app.node.drain_node(&name, true).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "name": name, "duty": "draining" }))))
}

/// Has a node take shards again.
pub(crate) async fn undrain(
    State(app): State<Shared>,
    peer: Option<Extension<Peer>>,
    Path(name): Path<String>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    require_operator(peer.map(|Extension(peer)| peer))?;
    app.node.drain_node(&name, false).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "name": name, "duty": "serving" }))))
}

/// Has a shard handed over.
pub(crate) async fn move_shard(
    State(app): State<Shared>,
    peer: Option<Extension<Peer>>,
    Path(number): Path<String>,
    request: Request,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    require_operator(peer.map(|Extension(peer)| peer))?;
    let number: u32 = number.parse().map_err(|_| {
        ApiError::invalid(Some("shard".into()), format!("'{number}' is no number of a shard; they are counted from 0."))
    })?;
    let (_, body) = read_json(request, &app.limits).await?;
    let mut body = parse_object(&body)?;
    let to = body.required_string("to")?;
    generation::check_rest(&body)?;
    app.node.move_shard(number, &to).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "shard": number, "to": to }))))
}

/// What the node's status says of its cluster.
pub(crate) fn summary(view: &ClusterView) -> Value {
    json!({
        "id": view.id,
        "alive": view.count("alive"),
        "suspected": view.count("suspected"),
        "down": view.count("down"),
    })
}

fn alone(node: &Node) -> NodeSeen {
    let status = node.status();
    NodeSeen {
        name: status.node,
        boot: status.boot,
        zone: None,
        weight: 1,
        duty: if node.is_draining() { "draining" } else { "serving" },
        standing: "alive",
        address: String::new(),
        shards: status.shards_owned,
        is_self: true,
        linked: false,
    }
}

fn owned(shard: usize, node: &str) -> ShardSeen {
    let shard = u16::try_from(shard).unwrap_or(u16::MAX);
    ShardSeen { shard, owner: Some(node.to_owned()), standby: None, warm: false, state: "owned" }
}

fn node(seen: &NodeSeen) -> Value {
    json!({
        "name": seen.name,
        "boot": seen.boot,
        "zone": seen.zone,
        "weight": seen.weight,
        "duty": seen.duty,
        "standing": seen.standing,
        "address": seen.address,
        "shards": seen.shards,
        "self": seen.is_self,
        "linked": seen.linked,
    })
}

fn shard(seen: &ShardSeen) -> Value {
    json!({
        "shard": seen.shard,
        "owner": seen.owner,
        "standby": seen.standby,
        "warm": seen.warm,
        "state": seen.state,
    })
}

impl From<ClusterRefusal> for ApiError {
    fn from(refusal: ClusterRefusal) -> Self {
        let message = crate::api_error::sentence(&refusal.to_string());
        match refusal {
            ClusterRefusal::NoSuchNode { .. } => Self::not_found("node_not_found", message).about("node"),
            ClusterRefusal::NoSuchShard { .. } => Self::not_found("shard_not_found", message).about("shard"),
            ClusterRefusal::NotNow(_) => Self::new(StatusCode::CONFLICT, "not_now", message),
            ClusterRefusal::Alone => Self::new(StatusCode::CONFLICT, "not_in_a_cluster", message),
        }
    }
}
