//! Real traffic between network namespaces: does it match the table?

mod agent;
mod cluster;
mod demo;
mod nodes;
mod rig;
