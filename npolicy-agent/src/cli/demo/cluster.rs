//! The demo's cluster: pods that serve, and the agent that guards them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::progress::step;
use super::world::World;
use crate::observe::Format;
use crate::rig::{
    AgentOptions, AgentProcess, AgentSource, BpfFs, Layout, Listeners, Node, NodeSettings, PodSettings, SctpMeans,
    Service,
};

/// A node with its pods and a running agent. Dropped in the order of the fields: the agent first.
pub(super) struct Cluster {
    pub(super) agent: AgentProcess,
    _listeners: Vec<Listeners>,
    pub(super) node: Node,
    pub(super) pins: BpfFs,
    pub(super) sctp: SctpMeans,
    manifests: PathBuf,
    scratch: PathBuf,
}

/// How long the agent may take to publish.
const AGENT_PATIENCE: Duration = Duration::from_secs(60);

impl Cluster {
    /// Makes the pods, writes their addresses into the manifests, starts the agent and waits until it enforces. Files go
    /// below `scratch`.
    pub(super) fn start(
        pods: Vec<PodSettings>,
        world: &mut World,
        services: &[Service],
        layout: Layout,
        drop_format: Format,
        scratch: &Path,
    ) -> anyhow::Result<Self> {
        let manifests = scratch.join("manifests");
        fs::create_dir(&manifests).with_context(|| format!("make directory {}", manifests.display()))?;
        let sctp = SctpMeans::find();
        let made = pods.len();
        let (node, listeners) = step(&format!("making {made} {}", if made == 1 { "pod" } else { "pods" }), || {
            let mut node = Node::new(NodeSettings { name: "demo".into(), number: 1, layout })?;
            let mut listeners = Vec::new();
            for settings in pods {
                listeners.push(Listeners::start(node.add_pod(settings)?, services, sctp)?);
            }
            Ok((node, listeners))
        })?;
        world.set_addresses(node.pods().map(|pod| (pod.key.clone(), pod.addresses().collect())));
        world.write(&manifests, scratch)?;

        let pins = BpfFs::new()?;
        let options = AgentOptions {
            program: "/proc/self/exe".into(),
            source: AgentSource::Manifests(manifests.clone()),
            pin_dir: pins.pin_dir(),
            drop_log: drop_log(scratch),
            drop_format,
            ready_file: scratch.join("ready.json"),
            node_name: None,
            pod_cidrs: Vec::new(),
            flows: None,
        };
        let agent = step("starting the agent, which finds the pods and enforces", || {
            let agent = AgentProcess::start(&node, options)?;
            agent.wait_published(AGENT_PATIENCE, |published| published.identified >= made)?;
            Ok(agent)
        })?;
        Ok(Self { agent, _listeners: listeners, node, pins, sctp, manifests, scratch: scratch.into() })
    }

    /// Changes the manifests under the running agent, and waits until it enforces them.
    pub(super) fn rewrite(&self, world: &World) -> anyhow::Result<()> {
        let before = self.agent.published()?.map(|published| published.manifests);
        world.write(&self.manifests, &self.scratch)?;
        self.agent.wait_published(AGENT_PATIENCE, |published| Some(published.manifests) != before)?;
        Ok(())
    }

    /// The directory that the agent reads.
    pub(super) fn manifests(&self) -> &Path {
        &self.manifests
    }
}

/// Where the agent writes its drop log.
pub(super) fn drop_log(scratch: &Path) -> PathBuf {
    scratch.join("drops.log")
}
