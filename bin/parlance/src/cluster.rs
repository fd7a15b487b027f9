//! This node's part in its cluster, from a checked configuration.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use futures_util::FutureExt as _;
use parlance_actors_runtime::{ClusterOptions, Connect};
use parlance_cluster_node::{
    identity::{BootId, Incarnation},
    links::Links,
    membership::Versions,
    transport::{self, Transport, tls::ClusterTls},
};

use crate::{
    config::{ClusterConfig, Seed},
    failure::{Failure, chain},
};

/// A node that listens for others and has not met any.
pub(crate) struct Listening {
    pub(crate) options: ClusterOptions,
    /// Where it listens.
    pub(crate) address: std::net::SocketAddr,
}

/// Listens for other nodes. They are answered once the node has started.
///
/// # Errors
///
/// Exit code 1 if the address cannot be listened on.
pub(crate) async fn listen(config: &ClusterConfig, tls: ClusterTls) -> Result<Listening, Failure> {
    let failed = |error: &dyn std::error::Error| {
        Failure::failed(chain(error), "Choose another address with cluster.listen, or stop who uses it")
    };
    let listener = Transport::bind(config.listen).await.map_err(|error| failed(&error))?;
    let address = listener.local_addr().map_err(|error| failed(&error))?;
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let boot = BootId::at(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX));
    let me = Incarnation { name: config.node.clone(), boot };
    let transport = transport::Options {
        me: me.clone(),
        cluster: config.id.clone(),
        tls,
        versions: transport::VERSIONS,
        timing: config.timing.clone(),
    };
    let options = ClusterOptions {
        id: config.id.to_string(),
        me,
        zone: config.zone.clone(),
        weight: config.weight,
        address: config.advertised(address.port()).to_string(),
        seeds: config.seeds.iter().map(Seed::to_string).collect(),
        versions: Versions { oldest: *transport::VERSIONS.start(), newest: *transport::VERSIONS.end() },
        detector: config.detector.clone(),
        membership: config.membership.clone(),
        moves_at_once: config.moves_at_once,
        connect: connect(transport, listener),
    };
    Ok(Listening { options, address })
}

/// A transport is started once: ractor's registries are the process's own.
fn connect(options: transport::Options, listener: tokio::net::TcpListener) -> Connect {
    let listener = Mutex::new(Some(listener));
    Arc::new(move |handler, observer| {
        let listener = listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        let options = options.clone();
        async move {
            let listener = listener.ok_or("the links of a node are started once")?;
            let started = Transport::start(options, listener, handler, observer).await;
            let links: Arc<dyn Links> = Arc::new(started.map_err(|error| chain(&error))?);
            Ok(links)
        }
        .boxed()
    })
}
