//! The worked cases as scenarios: one step each, in the cluster that they share.

use std::collections::BTreeSet;

use anyhow::Context as _;
use npolicy_common::Family;

use super::expect::{Expected, Port};
use super::objects::Objects;
use super::packets::Setting;
use super::scenario::{Scenario, Step};
use crate::cases;

/// Every worked case, as `worked/NAME`. Rows that no answer is expected of are left out.
pub(super) fn all() -> anyhow::Result<Vec<Scenario>> {
    let mut scenarios = Vec::new();
    for case in cases::all()? {
        let Some(rest) = case.name.strip_prefix("worked/") else { continue };
        let number: String = rest.chars().skip(1).take_while(char::is_ascii_digit).collect();
        let mut objects = Objects::default();
        for object in case.objects()? {
            objects.apply(object).with_context(|| case.name.clone())?;
        }
        let mut expected = Vec::new();
        for row in case.rows.iter().filter(|row| row.expect != "error") {
            let port = match row.port {
                Some(port) => format!("{}/{port}", row.protocol),
                None => row.protocol.clone(),
            };
            expected.push(Expected {
                from: row.from.clone(),
                to: row.to.clone(),
                port: port.parse::<Port>()?,
                // Every pod, node and Service has an IPv4 address.
                family: Some(if row.family.as_deref() == Some("IPv6") { Family::V6 } else { Family::V4 }),
                is_accepted: row.expect == "Accept",
            });
        }
        let steps = vec![Step { objects: objects.clone(), expected }];
        let ids: BTreeSet<_> = [format!("W{number}")].into();
        let (packets, ports, node_ports) = (Some(Setting::Worked), Vec::new(), Vec::new());
        scenarios.push(Scenario {
            name: case.name,
            ids: ids.into_iter().collect(),
            packets,
            ports,
            node_ports,
            start: objects,
            steps,
        });
    }
    Ok(scenarios)
}
