//! The coordinator decides here: queue, leases, retries, roster, autoscaler; no IO
