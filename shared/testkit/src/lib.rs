//! Virtual clock, simulated network, fixtures: for tests only
