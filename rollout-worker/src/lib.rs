//! The rollout worker: a warm policy, slots, episodes, delivery to sinks
