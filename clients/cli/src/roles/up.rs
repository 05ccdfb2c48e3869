//! `volley up`: a cluster on this machine that stays up.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use volley_engine::config::{Compute, ModelConfig};
use volley_engine::text::{ChatTemplate, Tokenizer};
use volley_protocol::fault::{ErrorCode, Fault};
use volley_runtime::process::Handoff;

use super::launch::{END_WITHIN, LocalCluster};
use super::{duration, serve};

/// The demo model, so that a cluster answers on a machine that has nothing else.
const EMBEDDED_MODEL: [(&str, &[u8]); 6] = [
    (
        "config.json",
        include_bytes!("../../../../examples/models/tiny-base/config.json"),
    ),
    (
        "generation_config.json",
        include_bytes!("../../../../examples/models/tiny-base/generation_config.json"),
    ),
    (
        "tokenizer.json",
        include_bytes!("../../../../examples/models/tiny-base/tokenizer.json"),
    ),
    (
        "tokenizer_config.json",
        include_bytes!("../../../../examples/models/tiny-base/tokenizer_config.json"),
    ),
    (
        "chat_template.jinja",
        include_bytes!("../../../../examples/models/tiny-base/chat_template.jinja"),
    ),
    (
        "model.safetensors",
        include_bytes!("../../../../examples/models/tiny-base/model.safetensors"),
    ),
];

/// Starts a cluster on this machine and keeps it up. Workers come and go with the work.
#[derive(Args, Clone, Debug)]
pub(crate) struct UpArgs {
    /// Model folder (Hugging Face layout). Default: the small demo model inside this program.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Play a scripted policy, without a model.
    #[arg(long, conflicts_with = "model")]
    scripted: bool,
    /// Most workers.
    #[arg(long, value_name = "N", default_value_t = 2)]
    workers: u32,
    /// Directory for everything that outlives the cluster.
    #[arg(long, value_name = "DIR", default_value = "volley-data")]
    data_dir: PathBuf,
    /// Address to listen on. Default: where it listened last, or a free port of this machine.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Concurrent episodes of each worker.
    #[arg(long, value_name = "N", default_value_t = 32)]
    slots: u32,
    /// Threads of each worker's policy.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = crate::threads)]
    threads: usize,
    /// Number format of the workers' matrix products: f32 or bf16.
    #[arg(long, value_name = "FORMAT", default_value = "f32", value_parser = crate::compute)]
    compute: Compute,
    /// Workers that were not needed for this long are removed.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
    idle_window: Duration,
}

/// Keeps the cluster up until asked to end.
pub(crate) fn run(args: UpArgs, handoff: &Handoff) -> Result<(), Fault> {
    serve::block_on(async {
        let model = match (args.model, args.scripted) {
            (_, true) => None,
            (Some(model), false) => Some(model),
            (None, false) => Some(unpack_model(&args.data_dir)?),
        };
        if let Some(model) = &model {
            check_model(model)?;
        }
        let cluster = LocalCluster {
            data_dir: args.data_dir,
            name: "local".into(),
            listen: args.listen,
            model,
            workers: args.workers,
            min_workers: 0,
            keep_warm: 0,
            slots: args.slots,
            threads: args.threads,
            compute: args.compute.name(),
            idle_window_ms: args.idle_window.as_millis() as u64,
            logs: None,
        };
        let asked = serve::when_asked_to_end(handoff.lifelines())?;
        let (mut coordinator, client) = cluster.start(handoff.lifelines()).await?;
        let snapshot = client.snapshot().await?;
        let mut talk = std::io::stderr().lock();
        // Nobody reads a closed standard error.
        let _ = writeln!(
            talk,
            "cluster {} is up (coordinator pid {}), workers start with the work\n\
             try: volley map arithmetic --seeds 0..16      look: volley monitor",
            snapshot.cluster, snapshot.pid
        );
        drop(talk);
        tokio::select! {
            ended = coordinator.ended() => {
                ended.map(drop)?;
                Err(Fault::new(ErrorCode::RoleFailed, "the coordinator ended by itself"))
            }
            _ = asked => coordinator.stop(END_WITHIN).await.map(drop),
        }
    })
}

/// Looks at everything of a model but its weights: a slip of the finger should not become workers
/// that end one after the other.
fn check_model(directory: &Path) -> Result<(), Fault> {
    let checked = ModelConfig::load(directory)
        .and_then(|_| Tokenizer::load(directory))
        .and_then(|_| ChatTemplate::load(directory));
    checked.map(drop).map_err(|error| Fault::from(&error))
}

/// Writes the embedded model beside the cluster's data, once.
fn unpack_model(data_dir: &Path) -> Result<PathBuf, Fault> {
    let directory = data_dir.join("models").join("tiny-base");
    for (name, bytes) in EMBEDDED_MODEL {
        let path = directory.join(name);
        let there = std::fs::metadata(&path).is_ok_and(|file| file.len() == bytes.len() as u64);
        if !there {
            let written =
                std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&path, bytes));
            written.map_err(|error| {
                Fault::new(ErrorCode::IoFailed, format!("{}: {error}", path.display()))
            })?;
        }
    }
    Ok(directory)
}
