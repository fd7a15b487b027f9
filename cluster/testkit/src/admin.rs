//! What nodes tell of themselves and of the cluster.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::cluster::Cluster;

/// One scrape of a node's metrics.
#[derive(Debug, Clone, Default)]
pub struct Metrics(String);

impl Metrics {
    /// From Prometheus' text format.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The sum of all series of this name whose labels have every one of `labels`, each like `cause="claimed"`; 0 where there are none.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let value = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let (series, value) = rest.rsplit_once(' ')?;
            let is_it = series.is_empty() || series.starts_with('{');
            (is_it && labels.iter().all(|label| series.contains(label))).then(|| value.parse::<f64>().ok())?
        };
        self.0.lines().filter_map(value).sum()
    }
}

impl Cluster {
    /// `GET /admin/v1/status` of a node.
    ///
    /// # Errors
    ///
    /// As [`Cluster::get_json`], here and below.
    pub async fn status(&self, name: &str) -> Result<Value, String> {
        self.get_json(name, "/admin/v1/status").await
    }

    /// The cluster's nodes as one of them sees them: `name`, `shards`, `standing`, `duty` and more of each.
    ///
    /// # Errors
    ///
    /// See [`Self::status`].
    pub async fn nodes(&self, name: &str) -> Result<Vec<Value>, String> {
        self.list(name, "/admin/v1/nodes").await
    }

    /// The shards as one node sees them: `shard`, `owner`, `standby`, `warm` and `state` of each.
    ///
    /// # Errors
    ///
    /// See [`Self::status`].
    pub async fn shards(&self, name: &str) -> Result<Vec<Value>, String> {
        self.list(name, "/admin/v1/shards").await
    }

    /// A node's metrics.
    ///
    /// # Errors
    ///
    /// See [`Self::status`].
    pub async fn metrics(&self, name: &str) -> Result<Metrics, String> {
        self.get(name, "/metrics").await.map(|(_, text)| Metrics::new(text))
    }

    async fn list(&self, name: &str, path: &str) -> Result<Vec<Value>, String> {
        match self.get_json(name, path).await? {
            Value::Object(mut answer) => match answer.remove("data") {
                Some(Value::Array(list)) => Ok(list),
                _ => Err(format!("{name} lists nothing at {path}")),
            },
            other => Err(format!("{name} lists nothing at {path}: {other}")),
        }
    }

    /// The owner of each shard, as one node sees it; a shard without an owner is left out.
    ///
    /// # Errors
    ///
    /// See [`Self::status`].
    pub async fn owners(&self, name: &str) -> Result<BTreeMap<u64, String>, String> {
        Ok(owners(&self.shards(name).await?))
    }
}

fn owners(shards: &[Value]) -> BTreeMap<u64, String> {
    shards.iter().filter_map(|line| Some((line["shard"].as_u64()?, line["owner"].as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn series_are_summed_by_name_and_labels() {
        let metrics = Metrics::new(
            "# TYPE moves_total counter\nmoves_total{cause=\"claimed\",x=\"1\"} 2\nmoves_total{cause=\"released\"} 3\n\
             moves_total_other 5\nplain 7\n",
        );
        assert_eq!(metrics.sum("moves_total", &[]), 5.0);
        assert_eq!(metrics.sum("moves_total", &["cause=\"claimed\""]), 2.0);
        assert_eq!(metrics.sum("plain", &[]), 7.0);
        assert_eq!(metrics.sum("nothing", &[]), 0.0);
    }

    #[test]
    fn a_shard_without_an_owner_has_none() {
        let shards = [json!({ "shard": 0, "owner": "a" }), json!({ "shard": 1, "owner": null })];
        assert_eq!(owners(&shards), BTreeMap::from([(0, "a".to_owned())]));
    }
}
