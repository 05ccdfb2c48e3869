//! Environments: the trait and the bundled tasks
