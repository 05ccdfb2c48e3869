//! An adapter from its learner into the memory of every worker of this host.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng as _;
use serde_json::{Value, json};
use volley_link::{BulkPriority, Connected, Endpoint, Identity, LinkError, LinkRuntime, Role};
use volley_protocol::adapter::AdapterEntry;
use volley_protocol::delivery::{BulkKind, FromSink, ToSink};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::ids::{Epoch, PeerId, RunId};
use volley_protocol::learner::FromLearner;
use volley_protocol::limits::ADAPTER_BYTES_MAX;
use volley_protocol::run::{RunInfo, RunState};
use volley_protocol::snapshot::WorkerState;
use volley_protocol::version::{Hello, PROTOCOL_VERSION};
use volley_protocol::{AdapterVersion, Digest};
use volley_runtime::cluster_file::ClusterFile;
use volley_runtime::conversation::{self, Open, same_host};
use volley_runtime::greeting::{hear, link_fault, welcome};
use volley_runtime::host_adapters::HostAdapters;
use volley_runtime::process::Handoff;

use super::FanoutArgs;
use super::cluster::BenchCluster;
use super::fanout::round;
use crate::roles::launch::identity_path;

/// Adapters that are published, one after the other.
const REPEATS: usize = 5;

/// Between two looks whether it is everywhere: a look takes a tenth of it.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What is not everywhere after this long does not come.
const LIVE_WITHIN: Duration = Duration::from_secs(60);

/// Adapters with their digests.
type Shelf = Arc<Mutex<BTreeMap<Digest, Arc<Vec<u8>>>>>;

/// How often workers asked for the bytes of each adapter.
type Fetches = Arc<Mutex<BTreeMap<Digest, u64>>>;

/// A learner that trains nothing: it has adapters and publishes them.
struct Publisher {
    control: Open,
    run: RunId,
    shelf: Shelf,
    fetches: Fetches,
    newest: AdapterVersion,
    _link: LinkRuntime,
}

/// How an adapter gets to this host.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The learner, which is here too, puts the file there.
    Offered,
    /// One worker fetches it, or each, where they do not share.
    Fetched,
}

/// From a version's bytes in the learner's memory to bytes in the memory of all workers.
pub(crate) async fn measure(args: &FanoutArgs, handoff: &Handoff) -> Result<Value, Fault> {
    let bytes = (args.mib as usize) << 20;
    if bytes == 0 || bytes > ADAPTER_BYTES_MAX {
        let most = ADAPTER_BYTES_MAX >> 20;
        let message = format!("an adapter has 1 to {most} MiB");
        return Err(Fault::new(ErrorCode::InvalidRequest, message));
    }
    let cluster = BenchCluster::start(args, handoff, args.w, args.w).await?;
    cluster.workers(args.w).await?;
    let mut publisher = Publisher::start(&cluster).await?;
    publisher.live(&cluster, args.w).await?;
    let ways: &[(&str, Way)] = if same_host().bulk {
        &[("shared_view", Way::Offered), ("one_fetch", Way::Fetched)]
    } else {
        &[("private_copy", Way::Fetched)]
    };
    let mut result = serde_json::Map::new();
    for (name, way) in ways {
        let (mut all, mut fetches) = (Vec::new(), 0);
        for _ in 0..REPEATS {
            all.push(publisher.publish(&cluster, args.w, bytes, *way).await?);
            // Of this one: a worker may still be fetching an older one.
            fetches += publisher.fetches_of(publisher.newest.digest);
        }
        let figures = summary(&all, args, fetches);
        result.insert((*name).to_owned(), figures);
    }
    cluster.end().await?;
    Ok(Value::Object(result))
}

/// What one adapter took, in seconds.
#[derive(Clone, Copy)]
struct Took {
    /// Its digest, which is made before.
    naming_s: f64,
    /// Its file, where the learner puts it there.
    put_s: f64,
    /// From the bytes in the learner's memory, the file included, to all workers.
    total_s: f64,
}

fn summary(all: &[Took], args: &FanoutArgs, fetches: u64) -> Value {
    let sorted = |part: fn(&Took) -> f64| {
        let mut parts: Vec<f64> = all.iter().map(part).collect();
        parts.sort_by(f64::total_cmp);
        move |place: usize| parts.get(place).copied().unwrap_or_default()
    };
    let (total_s, put_s) = (sorted(|took| took.total_s), sorted(|took| took.put_s));
    let median_s = total_s(REPEATS / 2);
    let megabytes = f64::from(args.w) * f64::from(args.mib) * 1.048_576;
    json!({
        "s_median": round(median_s, 4),
        "s_min": round(total_s(0), 4),
        "s_max": round(total_s(REPEATS - 1), 4),
        "put_s": round(put_s(REPEATS / 2), 4),
        "put_s_max": round(put_s(REPEATS - 1), 4),
        "sha256_s": round(sorted(|took| took.naming_s)(REPEATS / 2), 4),
        "aggregate_MB_per_s": round(megabytes / median_s, 1),
        "fetches": fetches,
    })
}

impl Publisher {
    fn fetches_of(&self, digest: Digest) -> u64 {
        let counted = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        counted.get(&digest).copied().unwrap_or(0)
    }

    /// Registers with a first version, which all workers fetch.
    async fn start(cluster: &BenchCluster) -> Result<Self, Fault> {
        let identity = Identity::load(&identity_path(cluster.directory(), Role::Learner))
            .map_err(|error| link_fault(&error))?;
        let link = LinkRuntime::start().map_err(|error| link_fault(&error))?;
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut listener = Endpoint::listen(&link, listen, &identity, conversation::link_config())
            .map_err(|error| link_fault(&error))?;
        let endpoint = Endpoint::client(&link, &identity, conversation::link_config())
            .map_err(|error| link_fault(&error))?;
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            peer: PeerId(rand::random()),
            name: "learner bench".into(),
            pid: std::process::id(),
        };
        let addr = ClusterFile::read(cluster.directory())?.address;
        let control = conversation::dial(&endpoint, addr, Role::Coordinator, &hello).await?;

        let (shelf, fetches) = (Shelf::default(), Fetches::default());
        // No earlier measurement has left it on this host.
        let first = rand::random::<[u8; 32]>().to_vec();
        let newest = AdapterVersion {
            run: RunId(rand::random()),
            lineage: 0,
            step: 0,
            digest: Digest::of(&first),
        };
        let run = newest.run;
        let entry = AdapterEntry {
            version: newest,
            parent: Digest::default(),
            bytes: first.len() as u64,
        };
        let (sink, served, counted) = (listener.local_addr(), shelf.clone(), fetches.clone());
        tokio::spawn(async move {
            while let Some(connected) = listener.accept().await {
                let (shelf, fetches) = (served.clone(), counted.clone());
                tokio::spawn(serve(connected, hello.peer, shelf, fetches));
            }
        });
        let this = Self {
            control,
            run,
            shelf,
            fetches,
            newest,
            _link: link,
        };
        this.keep(newest.digest, first);
        this.say(&FromLearner::Register {
            info: RunInfo {
                run,
                name: "bench".into(),
                environment: "noop".into(),
                base: Digest::default(),
                steps_total: u64::MAX,
                rank: 1,
                retain_versions: 1,
            },
            sink,
            versions: vec![entry],
            state: RunState::Training,
        });
        Ok(this)
    }

    /// Publishes random bytes; tells how long it took until all workers had them.
    async fn publish(
        &mut self,
        cluster: &BenchCluster,
        workers: u32,
        bytes: usize,
        way: Way,
    ) -> Result<Took, Fault> {
        let mut adapter = vec![0; bytes];
        rand::rng().fill_bytes(&mut adapter);
        let naming = Instant::now();
        let digest = Digest::of(&adapter);
        let naming_s = naming.elapsed().as_secs_f64();
        let parent = self.newest.digest;
        self.newest = AdapterVersion {
            step: self.newest.step + 1,
            digest,
            ..self.newest
        };
        debug_assert_eq!(self.newest.run, self.run);
        let adapter = self.keep(digest, adapter);

        let begun = Instant::now();
        if way == Way::Offered
            && let Some(host) = HostAdapters::from_environment()
        {
            let offered = tokio::task::spawn_blocking(move || host.offer(digest, &adapter)).await;
            let offered = offered.map_err(|error| error.to_string()).flatten();
            offered.map_err(|why| Fault::new(ErrorCode::IoFailed, why))?;
        }
        let put_s = begun.elapsed().as_secs_f64();
        self.say(&FromLearner::Published(AdapterEntry {
            version: self.newest,
            parent,
            bytes: bytes as u64,
        }));
        self.live(cluster, workers).await?;
        let total_s = begun.elapsed().as_secs_f64();
        self.forget_all_but(digest);
        if let Some(host) = HostAdapters::from_environment() {
            // Nobody will come for it.
            for digest in [parent, digest] {
                host.remove(digest)
                    .map_err(|why| Fault::new(ErrorCode::IoFailed, why))?;
            }
        }
        Ok(Took {
            naming_s,
            put_s,
            total_s,
        })
    }

    /// Waits until all workers have the newest version in memory.
    async fn live(&mut self, cluster: &BenchCluster, workers: u32) -> Result<(), Fault> {
        let begun = Instant::now();
        loop {
            let snapshot = cluster.client.snapshot().await?;
            let step = self.newest.step;
            let up = snapshot
                .workers
                .iter()
                .filter(|w| w.state == WorkerState::Up);
            let there = up.filter(|worker| worker.adapter_step >= step).count();
            // At step 0 a worker without any adapter says the same: it is the fetches that tell.
            let heard = step > 0 || self.fetches_of(self.newest.digest) > 0;
            if there >= workers as usize && heard {
                return Ok(());
            }
            if begun.elapsed() > LIVE_WITHIN {
                let message = format!("{there} of {workers} workers have it after {LIVE_WITHIN:?}");
                return Err(Fault::new(ErrorCode::AdapterUnavailable, message));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn say(&self, message: &FromLearner) {
        conversation::say(&self.control.session, &self.control.sender, message);
    }

    fn keep(&self, digest: Digest, adapter: Vec<u8>) -> Arc<Vec<u8>> {
        let adapter = Arc::new(adapter);
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.insert(digest, Arc::clone(&adapter));
        adapter
    }

    fn forget_all_but(&self, newest: Digest) {
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.retain(|digest, _| *digest == newest);
    }
}

/// Answers what one worker asks for, as a learner does.
async fn serve(mut connected: Connected, peer: PeerId, shelf: Shelf, fetches: Fetches) {
    let greeted = async {
        hear(&mut connected).await?;
        let cluster = connected.session.peer().cluster_id().to_owned();
        welcome(&connected, &cluster, Epoch(0), peer).await
    };
    if let Err(fault) = greeted.await {
        tracing::warn!(%fault, "a worker was turned away");
        return;
    }
    let Connected {
        session,
        sender,
        mut receiver,
    } = connected;
    let asked = |ToSink::Fetch { digest }, permit| {
        let mut counted = fetches.lock().unwrap_or_else(PoisonError::into_inner);
        *counted.entry(digest).or_default() += 1;
        drop(counted);
        let found = shelf.lock().unwrap_or_else(PoisonError::into_inner);
        match found.get(&digest).cloned() {
            None => conversation::say(&session, &sender, &FromSink::AdapterMissing { digest }),
            Some(bytes) => {
                let session = session.clone();
                tokio::spawn(async move {
                    if let Err(error) = send(&session, digest, &bytes).await {
                        tracing::warn!(%error, "an adapter did not reach its worker");
                    }
                    drop(permit);
                });
            }
        }
        true
    };
    conversation::read(&session, &mut receiver, asked).await;
}

async fn send(
    session: &volley_link::Session,
    digest: Digest,
    bytes: &[u8],
) -> Result<(), LinkError> {
    let mut stream = session.open_bulk(BulkPriority::Background).await?;
    let mut head = vec![BulkKind::Adapter as u8];
    head.extend_from_slice(&digest.0);
    stream.write_all(&head).await?;
    stream.write_all(bytes).await?;
    stream.finish().await
}
