//! The client library: submit, results, snapshots, adapters
