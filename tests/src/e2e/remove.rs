//! Taking away everything that was made.

use std::time::Duration;

use anyhow::ensure;
use futures_util::future::try_join_all;
use serde_json::json;

use super::api::{Api, OURS};
use super::translate::{PREFIX, node_label};

/// How long namespaces may take to go.
const PATIENCE: Duration = Duration::from_secs(120);

/// Removes everything that bears our label; namespaces go in the end by themselves.
///
/// # Errors
///
/// A namespace with our prefix is somebody else's, or something does not go.
pub async fn remove_all(api: &Api) -> anyhow::Result<()> {
    let mut ours = Vec::new();
    for object in api.list("Namespace", "", "").await? {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if name.starts_with(PREFIX) {
            let is_ours = object["metadata"]["labels"][OURS] == "true";
            ensure!(is_ours, "namespace {name} is there and has no label {OURS}=true: remove it, or rename it");
            ours.push(name);
        }
    }
    if api.has_cluster_policies().await? {
        for object in api.list("ClusterNetworkPolicy", "", OURS).await? {
            api.delete("ClusterNetworkPolicy", "", object["metadata"]["name"].as_str().unwrap_or_default()).await?;
        }
    }
    for object in api.list("Node", "", OURS).await? {
        let none = json!({"metadata": {"labels": {node_label("role"): null, OURS: null}}});
        api.patch("Node", "", object["metadata"]["name"].as_str().unwrap_or_default(), &none).await?;
    }
    try_join_all(ours.iter().map(|name| api.delete("Namespace", "", name))).await?;
    try_join_all(ours.iter().map(|name| api.wait_gone("Namespace", "", name, PATIENCE))).await?;
    Ok(())
}
