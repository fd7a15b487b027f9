//! A broker that wants TLS and a password.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use parlance_cluster_log::{KafkaConfig, KafkaSasl, KafkaTls, LogError, SaslMechanism, conformance::append_one};
use parlance_cluster_protocol::Offset;
use tempfile::TempDir;

use crate::support::{Broker, SHARD, config, fresh_topic, open, refused};

/// A certificate for this machine that vouches for itself, and its key.
fn identity() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate can be made");
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn settings(directory: &Path, port: u16, (certificate, key): &(String, String)) -> Vec<String> {
    let store = directory.join("broker.pem");
    std::fs::write(&store, format!("{key}{certificate}")).expect("it can be written");
    // The broker tries to reach itself.
    let trusted = directory.join("trusted.pem");
    std::fs::write(&trusted, certificate).expect("it can be written");
    let users = "username=\"broker\" password=\"b\" user_broker=\"b\" user_parlance=\"s3cret\"";
    let module = "org.apache.kafka.common.security.plain.PlainLoginModule";
    vec![
        format!("listeners=SASL_SSL://127.0.0.1:{port},CONTROLLER://127.0.0.1:{}", port + 1),
        format!("advertised.listeners=SASL_SSL://127.0.0.1:{port}"),
        "listener.security.protocol.map=SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT".into(),
        "inter.broker.listener.name=SASL_SSL".into(),
        "sasl.enabled.mechanisms=PLAIN".into(),
        "sasl.mechanism.inter.broker.protocol=PLAIN".into(),
        format!("listener.name.sasl_ssl.plain.sasl.jaas.config={module} required {users};"),
        "ssl.keystore.type=PEM".into(),
        format!("ssl.keystore.location={}", store.display()),
        "ssl.truststore.type=PEM".into(),
        format!("ssl.truststore.location={}", trusted.display()),
    ]
}

fn authority(directory: &TempDir, name: &str, certificate: &str) -> PathBuf {
    let path = directory.path().join(name);
    std::fs::write(&path, certificate).expect("it can be written");
    path
}

fn secure(broker: &Broker, ca: &Path, password: &str) -> KafkaConfig {
    let sasl = KafkaSasl { mechanism: SaslMechanism::Plain, user: "parlance".into(), password: password.into() };
    KafkaConfig {
        tls: Some(KafkaTls { ca: Some(ca.into()), identity: None }),
        sasl: Some(sasl),
        open_timeout: Duration::from_secs(3),
        ..config(&broker.address(), &fresh_topic())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_is_shown_to_the_broker_that_the_authority_vouches_for() {
    let (ours, other) = (identity(), identity());
    let broker = Broker::start_with(|directory, port| settings(directory, port, &ours));
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let ca = authority(&directory, "ca.pem", &ours.0);
    let log = open(KafkaConfig { open_timeout: Duration::from_secs(20), ..secure(&broker, &ca, "s3cret") }).await;
    assert_eq!(append_one(&log, SHARD, "in secret").await, Offset(0));
    let wrong_authority = secure(&broker, &authority(&directory, "other.pem", &other.0), "s3cret");
    for refusing in
        [secure(&broker, &ca, "wr0ng"), wrong_authority, KafkaConfig { sasl: None, ..secure(&broker, &ca, "") }]
    {
        let error = refused(refusing).await;
        assert!(matches!(error, LogError::Unreachable { .. }), "{error}");
        assert!(!error.to_string().contains("wr0ng") && !error.to_string().contains("s3cret"), "{error}");
    }
}
