//! The policy engine: exact forward, backward, sampling and optimiser on the CPU
