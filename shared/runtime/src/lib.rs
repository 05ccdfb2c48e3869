//! What every role's shell uses: configuration, store, segment files, run directory, processes
