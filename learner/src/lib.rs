//! The learner's shell: intake segments, training step, checkpoints, adapters
