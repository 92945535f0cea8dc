//! Stage 4: from rulesets to the kernel. Alone in changing kernel state.
