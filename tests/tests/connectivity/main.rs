//! Real traffic between network namespaces: does it match the table?

mod rig;
