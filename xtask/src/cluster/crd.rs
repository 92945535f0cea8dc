//! The API of ClusterNetworkPolicy: its definition, out of the published module.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::ValueEnum;

use super::{build, command};

const MODULE: &str = "sigs.k8s.io/network-policy-api";
const VERSION: &str = "v0.3.0";
/// As in a go.sum.
const SUM: &str = "h1:RL6fVXiix9IW1pj0ImkW645m+EWmb3dBGCiW19bg5+k=";
const NAME: &str = "clusternetworkpolicies.policy.networking.k8s.io";

/// Which of the two definitions that are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Channel {
    /// What is stable.
    Standard,
    /// With fields that may still change.
    Experimental,
}

impl Channel {
    fn folder(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Experimental => "experimental",
        }
    }
}

/// The file of the definition.
///
/// # Errors
///
/// It cannot be fetched.
fn file(channel: Channel) -> anyhow::Result<PathBuf> {
    let sources = build::module_sources(MODULE, VERSION, SUM)?;
    Ok(sources.join(format!("config/crd/{}/policy.networking.k8s.io_clusternetworkpolicies.yaml", channel.folder())))
}

/// Adds the API to the running cluster, or replaces it; returns once it is served.
///
/// # Errors
///
/// It cannot be fetched, or the API server refuses it.
pub(super) fn apply(channel: Channel) -> anyhow::Result<()> {
    let file = file(channel)?;
    let mut apply = command::kubectl();
    // The definition is too large for the annotation of a plain apply.
    apply.args(["apply", "--server-side", "--force-conflicts", "-f"]).arg(file);
    command::quiet(&mut apply).context("apply the API of ClusterNetworkPolicy")?;
    let established = || {
        let crd = format!("crd/{NAME}");
        command::quiet(command::kubectl().args(["wait", "--for=condition=Established", &crd, "--timeout=5s"]))
    };
    command::wait_for("the API of ClusterNetworkPolicy", Duration::from_secs(30), established)?;
    Ok(())
}
