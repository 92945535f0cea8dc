//! What policy says, from the manifests alone: by the engine that answers `npolicy can`.

use std::path::Path;

use npolicy_common::{Family, Verdict};

use crate::compile::{End, Engine, Protocol, Question, Unanswerable};
use crate::model::PodKey;
use crate::rig::{self, Service};
use crate::watch::manifests::{ManifestError, Manifests};

/// A directory of manifests, compiled for questions.
pub(super) struct Expected {
    engine: Engine,
}

impl Expected {
    /// Reads a directory.
    pub(super) fn read(directory: &Path) -> Result<Self, ManifestError> {
        let manifests = Manifests::read(&[directory.to_owned()])?;
        Ok(Self { engine: Engine::new(manifests.state()) })
    }

    /// What policy says of one connection.
    pub(super) fn verdict(
        &mut self,
        from: &PodKey,
        to: &PodKey,
        service: Service,
        family: Family,
    ) -> Result<Verdict, Unanswerable> {
        let protocol = match service.protocol {
            rig::Protocol::Tcp => Protocol::Tcp(service.port),
            rig::Protocol::Udp => Protocol::Udp(service.port),
            rig::Protocol::Sctp => Protocol::Sctp(service.port),
            rig::Protocol::Icmp => Protocol::Icmp,
        };
        let (from, to) = (End::Pod(from.clone()), End::Pod(to.clone()));
        self.engine.verdict(&Question { from, to, protocol, family: Some(family) })
    }
}
