//! Layers, checks and messages of the configuration.

use std::path::Path;

use super::*;

fn load(file: &str, environment: &[(&str, &str)], overrides: Overrides) -> Result<Config, Vec<String>> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("parlance.toml");
    std::fs::write(&path, file).expect("written");
    let overrides = Overrides { config: Some(path), ..overrides };
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let base = [("PARLANCE_DATA".to_owned(), "/d".to_owned()), ("PARLANCE_MODEL_DIR".to_owned(), "/m".to_owned())];
    Config::from_layers(&overrides, base.into_iter().chain(environment)).map_err(|failure| {
        assert_eq!(failure.exit, Exit::Usage);
        failure.lines
    })
}

fn refused(file: &str) -> String {
    load(file, &[], Overrides::default()).expect_err(file).join("\n")
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = "listen = '127.0.0.1:1'\ndata = '/file'\n[node]\nname = 'file'\nzone = 'file'\n[limits]\nstateless = 3";
    let environment = [("PARLANCE_NODE__NAME", "env"), ("PARLANCE_LISTEN", "127.0.0.1:2")];
    let overrides = Overrides { listen: Some("127.0.0.1:3".into()), ..Overrides::default() };
    let config = load(file, &environment, overrides).expect("valid");
    assert_eq!(config.listen.port(), 3);
    assert_eq!(config.node.name, "env");
    assert_eq!(config.node.zone.as_deref(), Some("file"));
    assert_eq!(config.data, Path::new("/d"));
    assert_eq!(config.limits.node.stateless, 3);
    assert_eq!(config.limits.node.open_turns, 10_000);
    let shown = config.to_toml();
    let origin = |key: &str| {
        let line = shown.lines().find(|line| line.starts_with(key)).expect(key);
        line.rsplit_once("# ").expect("an origin").1.to_owned()
    };
    assert_eq!(origin("listen"), "--listen");
    assert_eq!(origin("name"), "PARLANCE_NODE__NAME");
    assert!(origin("stateless").ends_with("parlance.toml"));
    assert_eq!(origin("open_turns "), "default");
}

#[test]
fn what_is_shown_is_a_configuration_again() {
    let file = "[models.default]\nsource = 'scripted:seed=1'\n[models.'a.b']\nsource = '/x.gguf'\nreplicas = 2\npinned = true\ndevice = 'cuda:1'\n\
                [auth]\napi_key_file = '/k'\n[tls]\ncert = '/c'\nkey = '/p'\nclient_ca = '/a'";
    let config = load(file, &[], Overrides::default()).expect("valid");
    let again = load(&config.to_toml(), &[], Overrides::default()).expect("valid again");
    assert_eq!(config.to_json(), again.to_json());
    assert_eq!(config.to_json()["models"]["a.b"]["replicas"], 2);
}

#[test]
fn events_are_published_where_there_is_a_kafka() {
    let publishes = |file: &str| load(file, &[], Overrides::default()).expect("valid").publishes_events;
    let kafka = "[log]\nkind = 'kafka'\nbrokers = ['one']\n";
    assert!(publishes(kafka) && !publishes(""));
    for off in [format!("{kafka}[events]\npublish = false"), "[events]\npublish = false".to_owned()] {
        assert!(!publishes(&off));
    }
    let told = refused("[events]\npublish = true");
    for part in ["events.publish = true", "parlance.toml", "the log is local", "Set log.kind = \"kafka\", or remove it"]
    {
        assert!(told.contains(part), "no {part:?} in {told}");
    }
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_name() {
    let told = refused("lisen = '127.0.0.1:1'\n[limits]\nbody_byte = 1\n[nodes]\nname = 'a'\n[models.x]\nsorce = 'y'");
    for meant in ["`listen`", "`limits.body_bytes`", "[node]", "`models.x.source`"] {
        assert!(told.contains(&format!("Did you mean {meant}?")), "{told}");
    }
    assert_eq!(told.lines().count(), 4);
}

#[test]
fn unknown_variables_are_refused_and_an_orchestrators_own_are_left_alone() {
    let told = load("", &[("PARLANCE_NODE__NAM", "x"), ("PARLANCE_LISTN", "y")], Overrides::default());
    let told = told.expect_err("two slips").join("\n");
    assert!(told.contains("PARLANCE_NODE__NAM names no key. Did you mean PARLANCE_NODE__NAME?"), "{told}");
    assert!(told.contains("PARLANCE_LISTN names no key. Did you mean PARLANCE_LISTEN?"), "{told}");
    let foreign = [("PARLANCE_SERVICE_HOST", "x"), ("PARLANCE_PORT", "y"), ("PARLANCE_LOG", "debug"), ("HOME", "/")];
    assert!(load("", &foreign, Overrides::default()).is_ok());
}

#[test]
fn every_wrong_value_is_told_at_once_with_key_value_and_remedy() {
    let told = refused(
        "listen = 'localhost'\n[node]\nname = 'a b'\n[log]\nkind = 'rabbit'\nshards = 0\nbrokers = ['k:9092']\n\
         [limits]\nbody_bytes = -1\nturn_deadline_s = 'soon'\n[models.a]\nsource = 'x y'\nreplicas = 99\nprecision = 'int3'\ndevice = 'gpu'\n\
         kept_tokens = -1\nspeculation = 'on'\n\
         [tls]\ncert = '/c'",
    );
    for part in [
        "listen = \"localhost\"",
        "is not an address. Write an IP address and a port",
        "node.name = \"a b\"",
        "log.kind = \"rabbit\"",
        "log.shards = 0",
        "from 1 to 4096",
        "is for log.kind = \"kafka\". Set that, or remove it",
        "limits.body_bytes = -1",
        "`limits.turn_deadline_s` must be a whole number, not a string",
        "models.a.source = \"x y\"",
        "models.a.replicas = 99",
        "models.a.precision = \"int3\" is not a precision. Choose auto, f32, f16, bf16, int8 or int4",
        "models.a.device = \"gpu\" is not a device. Choose auto, cpu, cuda, cuda:NUMBER or wgpu",
        "models.a.kept_tokens = -1 is out of range. Choose a number from 0 to",
        "models.a.speculation = \"on\" is unknown. Choose auto or off",
        "tls.cert is set but tls.key (--tls-key) is not",
    ] {
        assert!(told.contains(part), "no {part:?} in:\n{told}");
    }
    assert_eq!(told.lines().count(), 14, "{told}");
}

#[test]
fn broken_files_are_told_with_the_line() {
    assert!(refused("listen = '127.0.0.1:1'\n[node\n").contains("line 2"), "{}", refused("listen = 'a'\n[node\n"));
    assert!(refused("node = 3").contains("`node` is a section"));
    let missing = Overrides { config: Some("/nowhere/parlance.toml".into()), ..Overrides::default() };
    let told = Config::from_layers(&missing, std::iter::empty()).expect_err("no such file").lines.join("\n");
    assert!(told.contains("cannot read the configuration /nowhere/parlance.toml"), "{told}");
}

#[test]
fn other_machines_are_served_only_with_keys_and_tls_or_on_demand() {
    let open = "listen = '0.0.0.0:8080'\n";
    let keys = "[auth]\napi_key_file = '/k'\n";
    let tls = "[tls]\ncert = '/c'\nkey = '/p'\n";
    for (file, missing) in [
        (open.to_owned(), "without API keys and TLS"),
        (format!("{open}{keys}"), "without TLS"),
        (format!("{open}{tls}"), "without API keys"),
    ] {
        assert!(refused(&file).contains(missing), "{file}");
    }
    assert!(load(&format!("{open}{keys}{tls}"), &[], Overrides::default()).is_ok());
    assert!(load(open, &[], Overrides { insecure: true, ..Overrides::default() }).is_ok());
    for loopback in ["listen = '127.9.9.9:1'", "listen = '[::1]:1'"] {
        assert!(load(loopback, &[], Overrides::default()).is_ok(), "{loopback}");
    }
}

#[test]
fn the_model_flag_is_the_model_named_default() {
    let overrides = Overrides { model: Some("scripted:token_ms=5".into()), ..Overrides::default() };
    let config = load("[models.other]\nsource = '/x.gguf'", &[], overrides).expect("valid");
    assert_eq!(config.models.keys().collect::<Vec<_>>(), ["default", "other"]);
    assert_eq!(config.models["default"].source, ModelSource::Scripted("scripted:token_ms=5".into()));
    let unnamed = load("", &[], Overrides::default()).expect("valid");
    assert_eq!(unnamed.models["default"].source, ModelSource::Named("smollm2-135m-instruct".into()));
}

#[test]
fn an_empty_section_is_the_model_of_that_name() {
    let config = load("[models.default]\n[models.all-minilm-l6-v2]\n", &[], Overrides::default()).expect("valid");
    let sources = config.models.values().map(|model| model.source.to_string()).collect::<Vec<_>>();
    assert_eq!(sources, ["all-minilm-l6-v2", "smollm2-135m-instruct"]);
    assert!(load("[models.'a b']", &[], Overrides::default()).is_err());
}

const SHARED: &str = "[log]\nkind = 'kafka'\nbrokers = ['one:9092', 'two']\n\
                      [records]\nkind = 'scylla'\ncontact_points = ['three']\n";

#[test]
fn the_log_and_the_records_can_be_in_servers() {
    let config = load(SHARED, &[], Overrides::default()).expect("valid");
    let LogConfig::Kafka(kafka) = &config.log else { panic!("{:?}", config.log) };
    assert_eq!(kafka.brokers, ["one:9092", "two"]);
    assert_eq!((&*kafka.topic_prefix, kafka.shards, kafka.replication), ("parlance", 64, 3));
    assert_eq!((&kafka.tls, &kafka.user), (&None, &None));
    let RecordsConfig::Scylla(scylla) = &config.records else { panic!("{:?}", config.records) };
    assert_eq!((&*scylla.contact_points[0], &*scylla.keyspace, scylla.replication), ("three", "parlance", 3));
    let secured =
        SHARED.replace("[records]\n", "tls = true\nuser = 'u'\npassword_file = '/p'\n[records]\nca = '/ca'\n");
    let shown = load(&secured, &[], Overrides::default()).expect("valid").to_toml();
    for line in [
        "kind = \"kafka\"",
        "tls = true",
        "user = \"u\"",
        "password_file = \"/p\"",
        "sasl = \"scram-sha-512\"",
        "ca = \"/ca\"",
    ] {
        assert!(shown.contains(line), "no {line} in:\n{shown}");
    }
    let again = load(&shown, &[], Overrides::default()).expect("what is shown is a configuration");
    assert_eq!(again.to_json(), load(&secured, &[], Overrides::default()).expect("valid").to_json());
}

#[test]
fn a_tenants_rate_can_be_counted_in_redis() {
    let file = "[cache]\nkind = 'redis'\nurl = 'redis://r:1'\nuser = 'u'\npassword_file = '/p'\n[limits]\nturns_per_minute_per_tenant = 60\n";
    let config = load(file, &[], Overrides::default()).expect("valid");
    let CacheConfig::Redis { url, user: Some(_), timeout } = &config.cache else { panic!("{:?}", config.cache) };
    assert_eq!((&**url, *timeout), ("redis://r:1", Duration::from_millis(50)));
    let rate = config.limits.node.turn_rate.expect("a rate");
    assert_eq!((rate.tokens.get(), rate.per, rate.burst.get()), (60, Duration::from_secs(60), 60));
    let again = load(&config.to_toml(), &[], Overrides::default()).expect("what is shown is a configuration");
    assert_eq!(config.to_json(), again.to_json());
    let secret = refused("[cache]\nkind = 'redis'\nurl = 'redis://:secret@r:1'");
    assert!(
        secret.contains("Set cache.user and cache.password_file instead") && !secret.contains("secret@"),
        "{secret}"
    );
    let none = load("", &[], Overrides::default()).expect("valid");
    assert_eq!((none.cache, none.limits.node.turn_rate), (CacheConfig::Local, None));
}

#[test]
fn half_of_a_server_is_told() {
    for (text, told) in [
        ("[log]\nkind = 'kafka'", "log.brokers = [] (default) names nobody"),
        ("[log]\nkind = 'kafka'\nbrokers = ['a,b']", "log.brokers = \"a,b\""),
        ("[log]\nkind = 'kafka'\nbrokers = ['a']\ntopic_prefix = 'a/b'", "cannot begin a topic's name"),
        ("[log]\nkind = 'kafka'\nbrokers = ['a']\ncert = '/c'", "log.cert and log.key go together"),
        ("[log]\nkind = 'kafka'\nbrokers = ['a']\nuser = 'u'", "log.user and log.password_file go together"),
        ("[log]\nkind = 'kafka'\nbrokers = ['a']\nuser = 'u'\npassword_file = '/p'\nsasl = 'plain'", "in the clear"),
        ("[log]\nkind = 'kafka'\nbrokers = ['a']\nsasl = 'md5'", "Choose scram-sha-512, scram-sha-256 or plain"),
        ("[records]\nkind = 'scylla'", "records.contact_points = [] (default) names nobody"),
        ("[records]\nkeyspace = 'k'", "is for records.kind = \"scylla\""),
        ("[records]\nkind = 'scylla'\ncontact_points = ['a']\nserver_name = 'b'", "no records.ca"),
        ("[log]\nreplication = 3", "log.replication"),
        ("[cache]\nkind = 'redis'", "cache.kind = \"redis\" needs cache.url"),
        ("[cache]\nurl = 'redis://r'", "is for cache.kind = \"redis\""),
        ("[limits]\nturn_burst_per_tenant = 3", "goes with limits.turns_per_minute_per_tenant"),
        ("[log]\nkind = 'kafka'\nbrokers = ['a']\nreplication = 0", "from 1 to 9"),
    ] {
        assert!(refused(text).contains(told), "{text}: {}", refused(text));
    }
}

/// The least that a node of a cluster says.
const CLUSTERED: &str = "[node]\nname = 'a'\n[cluster]\nca = '/ca'\ncert = '/c'\nkey = '/k'\n";

fn clustered(more: &str) -> String {
    format!("{CLUSTERED}{more}\n{SHARED}")
}

#[test]
fn a_node_is_one_of_several_by_any_key_of_the_cluster() {
    assert!(load(SHARED, &[], Overrides::default()).expect("valid").cluster.is_none());
    let config = load(&clustered("listen = '127.0.0.1:7'"), &[], Overrides::default()).expect("valid");
    let cluster = config.cluster.expect("a cluster");
    assert_eq!((cluster.id.as_str(), cluster.node.as_str(), &cluster.seeds), ("parlance", "a", &Vec::new()));
    assert_eq!((cluster.weight.get(), cluster.moves_at_once), (1, 4));
    assert_eq!(cluster.timing, parlance_cluster_node::transport::Timing::default());
    assert_eq!(cluster.detector, parlance_cluster_node::detector::Options::default());
    assert_eq!(cluster.membership, parlance_cluster_node::membership::Options::default());
    let file = clustered("listen = '127.0.0.1:7'\nseeds = ['file']\nheartbeat_ms = 100\nsuspicion_threshold = 9");
    let overrides = Overrides {
        cluster_listen: Some("0.0.0.0:0".into()),
        seeds: Some("b:1, [::1]:2,file:/seeds".into()),
        zone: Some("z".into()),
        ..Overrides::default()
    };
    let config = load(&file, &[("PARLANCE_CLUSTER__ID", "other")], overrides).expect("valid");
    let cluster = config.cluster.as_ref().expect("a cluster");
    assert_eq!((cluster.id.as_str(), cluster.listen.port()), ("other", 0));
    let seeds: Vec<String> = cluster.seeds.iter().map(ToString::to_string).collect();
    assert_eq!(seeds, ["b:1", "[::1]:2", "file:/seeds"]);
    assert_eq!(
        (cluster.timing.heartbeat, cluster.detector.interval),
        (Duration::from_millis(100), cluster.timing.heartbeat)
    );
    assert_eq!(cluster.detector.threshold, 9.0);
    assert!(
        config
            .to_toml()
            .lines()
            .any(|line| line.starts_with("listen = \"0.0.0.0:0\"") && line.ends_with("# --cluster-listen"))
    );
}

#[test]
fn what_is_shown_of_a_cluster_is_a_configuration_again() {
    let file = clustered(
        "listen = '0.0.0.0:0'\nseeds = ['b:1', 'file:/s']\nweight = 7\nmoves_at_once = 2\ndown_after_ms = 900",
    );
    let config = load(&file, &[], Overrides::default()).expect("valid");
    let again = load(&config.to_toml(), &[], Overrides::default()).expect("valid again");
    assert_eq!(config.to_json(), again.to_json());
    assert_eq!(config.to_json()["cluster"]["weight"], 7);
}

#[test]
fn a_node_is_advertised_where_it_listens_or_as_configured() {
    let advertised = |keys: &str| {
        let config = load(&clustered(keys), &[], Overrides::default()).expect(keys);
        config.cluster.expect("a cluster").advertised(99).to_string()
    };
    assert_eq!(advertised("listen = '10.0.0.1:7'"), "10.0.0.1:7");
    assert_eq!(advertised("listen = '[fd00::1]:0'"), "[fd00::1]:99");
    assert_eq!(advertised("listen = '10.0.0.1:7'\nadvertise = 'a.example:8'"), "a.example:8");
    let host = crate::platform::host_name().expect("a name");
    assert_eq!(advertised(""), format!("{host}:7946"));
    assert_eq!(advertised("listen = '[::]:0'"), format!("{host}:99"));
}

#[test]
fn what_a_cluster_lacks_is_told_with_the_remedy() {
    for (keys, told) in [
        ("id = 'My cluster'", "cluster.id = \"My cluster\""),
        ("listen = 'here'", "cluster.listen = \"here\""),
        ("advertise = 'a'", "is not where a node can be reached. Write HOST:PORT"),
        ("advertise = '0.0.0.0:1'", "cluster.advertise = \"0.0.0.0:1\""),
        ("advertise = '[::]:1'", "cluster.advertise = \"[::]:1\""),
        ("seeds = ['a:1', 'b']", "cluster.seeds = \"b\""),
        ("seeds = ['a:0']", "is not where nodes can be found"),
        ("seeds = ['::1:7']", "cluster.seeds"),
        ("seeds = ['a b:1']", "cluster.seeds"),
        ("seeds = ['file:']", "or file:PATH"),
        ("weight = 0", "from 1 to 1000000"),
        ("moves_at_once = 65", "from 1 to 64"),
        ("heartbeat_ms = 625", "cluster.silence_ms = 1250 (default) is not longer than two heartbeats, 1250 ms"),
        ("down_after_ms = 1", "cluster.down_after_ms"),
        ("suspicion_threshold = 0", "cluster.suspicion_threshold"),
    ] {
        let told_all = refused(&clustered(keys));
        assert!(told_all.contains(told) && told_all.lines().count() == 1, "{keys}: {told_all}");
    }
    let lonely = refused("[node]\nname = 'Box_1'\nzone = 'Z'\n[cluster]\nseeds = ['b:1']\ncert = '/c'");
    for part in [
        "log.kind = \"local\" (default) is one node's own, and cluster.cert (",
        "Set log.kind = \"kafka\"",
        "Set records.kind = \"scylla\"",
        "node.name = \"Box_1\"",
        "node.zone = \"Z\"",
        "lower-case letters, digits and hyphens",
        "cluster.ca and cluster.key must be set",
        "`parlance cert node`",
    ] {
        assert!(lonely.contains(part), "no {part:?} in:\n{lonely}");
    }
    assert_eq!(lonely.lines().count(), 5, "{lonely}");
}
