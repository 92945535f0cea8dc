//! Builders, harness and scenarios of the suites.
