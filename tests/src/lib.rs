//! Simulation, goldens, real-process end-to-end tests
