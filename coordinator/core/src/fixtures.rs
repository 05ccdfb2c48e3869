//! What the tests of this crate share.

use std::collections::BTreeMap;

use volley_protocol::{
    EnvSpec, JobId, JobKind, JobSpec, PolicyRef, RetryPolicy, SamplingSpec, SinkRef, Split,
};

/// A map of `rollouts` single rollouts for the relay.
pub(crate) fn spec(job: u128, rollouts: u64) -> JobSpec {
    JobSpec {
        job: JobId(job),
        name: format!("job-{job}"),
        kind: JobKind::Map,
        env: EnvSpec {
            name: "echo".into(),
            split: Split::Train,
            config: BTreeMap::new(),
        },
        first_instance: 0,
        rollouts,
        group_size: 1,
        policy: PolicyRef::Base,
        sampling: SamplingSpec::default(),
        retry: RetryPolicy::default(),
        sink: SinkRef::Relay,
        keep_ms: 0,
        take: None,
        priority: 0,
    }
}
