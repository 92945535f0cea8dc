//! Stage 5: from the kernel to people. Only reads.
