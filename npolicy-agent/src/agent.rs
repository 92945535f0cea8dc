//! Wires the stages and owns the tasks.
