//! A node's composition: log, records, models, actors and the public face, from a checked configuration.
//!
//! ```text
//! bind → data directory (lock, replay) → actors → first line on stdout → serve … signal → drain → exit 0
//! ```

use std::{path::Path, sync::Arc, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use parlance_actors_ingress::{Auth, IngressOptions, Listener};
use parlance_actors_runtime::{Guards, ModelSpec, Node, NodeOptions};
use parlance_cluster_node::transport::tls::ClusterTls;
use rustls::ServerConfig;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    auth, cluster,
    config::Config,
    data,
    failure::{Failure, chain, one_line},
    models, output, secret, stores, tls,
};

/// How often the exporter forgets what no scrape has asked for.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// Bucket bounds, in seconds, of every histogram that does not bring its own: from one sync of a good disk to a turn's deadline.
const BUCKETS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0, 120.0, 300.0,
];

/// The first line on stdout. Its form is fixed: rigs and orchestrators read it.
#[derive(Serialize)]
struct Listening<'a> {
    event: &'static str,
    http: String,
    cluster: Option<String>,
    node: &'a str,
    boot: String,
}

/// What was read and checked before anything is started.
struct Checked {
    models: Vec<ModelSpec>,
    auth: Auth,
    tls: Option<Arc<ServerConfig>>,
    cluster: Option<ClusterTls>,
}

/// Runs a node until it is told to end.
///
/// # Errors
///
/// Exit code 2 if the configuration names what cannot be used, 1 if the machine refuses: a port or a directory in use.
pub(crate) fn run(config: &Config) -> Result<(), Failure> {
    let checked = check(config)?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| {
        Failure::failed(format!("cannot start threads: {error}"), "Check the limits of this user and this machine")
    })?;
    let result = runtime.block_on(serve(config, checked));
    // Nothing that still runs behind a drained node is worth waiting for.
    runtime.shutdown_background();
    result
}

fn check(config: &Config) -> Result<Checked, Failure> {
    let models = models::specs(config)?;
    let auth = match &config.api_key_file {
        None => Auth::open(),
        Some(path) => {
            let text = auth::read_key_file(path)?;
            Auth::from_key_file(&text)
                .map_err(|error| Failure::usage(format!("{}: {}", path.display(), chain(&error)), "Correct the file"))?
        }
    };
    let tls = config.tls.as_ref().map(tls::server_config).transpose()?.map(Arc::new);
    let cluster = config.cluster.as_ref().map(tls::cluster_identity).transpose()?;
    Ok(Checked { models, auth, tls, cluster })
}

async fn serve(config: &Config, checked: Checked) -> Result<(), Failure> {
    let metrics = install_metrics()?;
    let listener = bind(config).await?;
    let address = listener.address();
    make_data_dir(&config.data)?;
    let log = stores::open_log(config).await?;
    // Behind the lock: what seals a directory holds it.
    data::seal::refuse(&config.data)?;
    let events = stores::open_events(config).await?;
    let records = stores::open_records(config).await?;
    let limiter = stores::open_limiter(config)?;
    let user_secret = secret::load(&config.data.join("user-secret"))?;
    let cluster = match (&config.cluster, checked.cluster) {
        (Some(cluster), Some(tls)) => Some(cluster::listen(cluster, tls).await?),
        _ => None,
    };
    let cluster_address = cluster.as_ref().map(|cluster| cluster.address.to_string());
    let node = Node::start(NodeOptions {
        node: config.node.name.clone(),
        log,
        records,
        models: checked.models,
        memory: config.limits.memory,
        sources: Some(models::sources(config)),
        guards: Guards::default(),
        limiter,
        limits: config.limits.node.clone(),
        cluster: cluster.map(|cluster| cluster.options),
        events,
    })
    .await
    .map_err(|error| Failure::failed(chain(&error), "Start it again; the log says more"))?;
    let scheme = if checked.tls.is_some() { "https" } else { "http" };
    let options = IngressOptions {
        auth: checked.auth,
        tls: checked.tls,
        limits: config.limits.ingress.clone(),
        cors_origins: config.cors_origins.clone(),
        metrics: Some(metrics),
        user_secret,
    };
    let stop = drain_on_signal(node.clone(), config.limits.ingress.drain_timeout)?;
    output::json(&Listening {
        event: "listening",
        http: address.to_string(),
        cluster: cluster_address,
        node: node.name(),
        boot: node.boot(),
    });
    output::greet(format!("Chat at {scheme}://{address}/ or with `parlance chat`. Ctrl-C ends the node."));
    tracing::info!(%address, node = node.name(), zone = config.node.zone, "node started");
    let (failed, ending) = (node.clone(), node.clone());
    tokio::select! {
        served = parlance_actors_ingress::serve(listener, options, node, stop) => {
            served.map_err(|error| Failure::failed(chain(&error), "Start the node again"))?;
        }
        () = ended_by_itself(failed) => {
            let remedy = "The log above says why; mend it and start the node again";
            return Err(Failure::failed("the node's actors failed again and again", remedy));
        }
    }
    ending.stop().await;
    tracing::info!("node ended");
    Ok(())
}

/// Completes when the supervision tree gave up. A node that drains ends too, but as it was told to.
async fn ended_by_itself(node: Node) {
    node.ended().await;
    if node.is_draining() {
        std::future::pending().await
    }
}

async fn bind(config: &Config) -> Result<Listener, Failure> {
    let bound = parlance_actors_ingress::bind(config.listen).await;
    // Every variant names its remedy.
    bound.map_err(|error| Failure { exit: crate::failure::Exit::Failed, lines: vec![one_line(&error.to_string())] })
}

/// Makes the directory and its name durable: a power loss takes all that lies in a directory with its name.
fn make_data_dir(data: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    let named = |dir: &&Path| !dir.as_os_str().is_empty();
    let missing: Vec<&Path> = data.ancestors().filter(named).take_while(|dir| !dir.exists()).collect();
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data);
    made.and_then(|()| missing.into_iter().try_for_each(sync_name)).map_err(|error| {
        Failure::failed(
            format!("cannot use the data directory {}: {error}", data.display()),
            "Choose a directory that you may write with --data",
        )
    })
}

fn sync_name(path: &Path) -> std::io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(parent)?.sync_all()
}

fn install_metrics() -> Result<PrometheusHandle, Failure> {
    let failed = |error: metrics_exporter_prometheus::BuildError| {
        Failure::failed(format!("cannot set up metrics: {}", chain(&error)), "Start the node again")
    };
    let own = parlance_inference_engine::HISTOGRAM_BUCKETS;
    let builder = own.into_iter().try_fold(
        PrometheusBuilder::new().set_buckets(BUCKETS).map_err(failed)?,
        |builder, (name, buckets)| {
            builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets).map_err(failed)
        },
    )?;
    let handle = builder.install_recorder().map_err(failed)?;
    parlance_inference_engine::describe_metrics();
    parlance_actors_runtime::metrics::describe();
    let upkeep = handle.clone();
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(METRICS_UPKEEP);
        loop {
            interval.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

/// Completes once the first signal came and the node has drained. A second signal ends the process at once.
fn drain_on_signal(node: Node, deadline: Duration) -> Result<impl Future<Output = ()>, Failure> {
    let listen =
        |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot wait for signals: {error}"), "Try again"));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let (first, told) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut either = async || tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} };
        either().await;
        // The receiver lives as long as the node serves.
        let _ = first.send(());
        either().await;
        output::note("Second signal: ending at once. Open turns are answered at the next start.");
        std::process::exit(crate::failure::Exit::Failed as i32);
    });
    Ok(async move {
        if told.await.is_err() {
            // The task that waits for signals ends only with the process.
            return std::future::pending().await;
        }
        tracing::info!(deadline_s = deadline.as_secs(), "draining");
        node.quiesce(deadline).await;
    })
}

/// A connection is a descriptor, and the soft limit of a login shell is far below our bound on connections.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // With the old limit the node serves fewer connections and says so when they are used up.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}
