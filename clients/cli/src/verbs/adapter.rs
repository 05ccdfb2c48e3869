//! `volley adapter`: the versions that a run has published.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use volley_client::Client;
use volley_engine::safetensors::SafetensorsFile;
use volley_protocol::adapter::AdapterEntry;
use volley_protocol::{ErrorCode, Fault};

use super::work::{find_run, find_version};
use crate::args::{ClusterArgs, FormatArgs};
use crate::errors::Stop;
use crate::json as objects;
use crate::output::Output;
use crate::table::{Align, Table};
use crate::text;

/// List, fetch and delete the versions of a run.
#[derive(Debug, Subcommand)]
pub(crate) enum AdapterVerb {
    /// Versions of a run, oldest first.
    List(ListArgs),
    /// Fetch a version as a PEFT folder.
    Get(GetArgs),
    /// Forget a version and delete its bytes.
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Name or id of the run.
    run: String,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// RUN@STEP, or RUN@latest.
    version: String,
    /// New folder for adapter_model.safetensors and adapter_config.json.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What the folder names as its base model.
    #[arg(long, value_name = "NAME", default_value = "")]
    base_model: String,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// RUN@STEP.
    version: String,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(crate) async fn run(verb: AdapterVerb, output: &Output) -> Result<(), Stop> {
    match verb {
        AdapterVerb::List(args) => list(args, output).await,
        AdapterVerb::Get(args) => get(args, output).await,
        AdapterVerb::Delete(args) => delete(args, output).await,
    }
}

async fn list(args: ListArgs, output: &Output) -> Result<(), Stop> {
    let client = super::connect(&args.cluster, "volley adapter").await?;
    let run = find_run(&client, &args.run).await?;
    let adapters = client.adapters(run.info.run).await?;
    client.close().await;
    if args.format.json {
        let versions: Vec<_> = adapters.entries.iter().map(objects::adapter).collect();
        let source = adapters.source.map(|addr| addr.to_string());
        return output.json(&json!({
            "schema": "volley.adapters/1",
            "run": run.info.run.to_string(),
            "name": run.info.name,
            "source": source,
            "versions": versions,
        }));
    }
    table(&adapters.entries)
        .lines()
        .into_iter()
        .try_for_each(|line| output.data(line))
}

fn table(entries: &[AdapterEntry]) -> Table {
    let columns = [
        ("STEP", Align::Right),
        ("LINEAGE", Align::Right),
        ("DIGEST", Align::Left),
        ("PARENT", Align::Left),
        ("SIZE", Align::Right),
    ];
    let mut table = Table::new(&columns);
    for entry in entries {
        let first = entry.version.step == 0;
        table.row([
            entry.version.step.to_string(),
            entry.version.lineage.to_string(),
            entry.version.digest.short(),
            if first {
                "-".to_owned()
            } else {
                entry.parent.short()
            },
            text::bytes(entry.bytes),
        ]);
    }
    table
}

async fn get(args: GetArgs, output: &Output) -> Result<(), Stop> {
    let client = super::connect(&args.cluster, "volley adapter").await?;
    let (entry, bytes) = fetch(&client, &args.version).await?;
    client.close().await;
    let config = peft_config(&bytes, &args.base_model)?;
    let weights = args.out.join("adapter_model.safetensors");
    std::fs::create_dir_all(&args.out).map_err(|error| Stop::file("create", &args.out, &error))?;
    write(&weights, &bytes)?;
    write(
        &args.out.join("adapter_config.json"),
        format!("{config:#}\n").as_bytes(),
    )?;
    if args.format.json {
        let mut object = objects::adapter(&entry);
        object["out"] = args.out.to_string_lossy().into();
        return output.json(&object);
    }
    let (step, digest) = (entry.version.step, entry.version.digest.short());
    let size = text::bytes(entry.bytes);
    output.talk(&format!(
        "step {step}, digest {digest}, {size}: checked and written to"
    ));
    output.data(args.out.display())
}

async fn fetch(client: &Client, told: &str) -> Result<(AdapterEntry, Vec<u8>), Fault> {
    let (run, step) = split(told)?;
    let (run, version) = find_version(client, run, step).await?;
    let adapters = client.adapters(run.info.run).await?;
    let entry = adapters
        .entries
        .into_iter()
        .rfind(|entry| entry.version == version);
    let (Some(entry), Some(source)) = (entry, adapters.source) else {
        let message = format!(
            "the learner of run `{}` is away, it has the bytes",
            run.info.name
        );
        return Err(Fault::new(ErrorCode::AdapterUnavailable, message)
            .with_hint("start it again: volley train --resume, or volley learner"));
    };
    let bytes = client.adapter_bytes(&entry, source).await?;
    Ok((entry, bytes))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Stop> {
    std::fs::write(path, bytes).map_err(|error| Stop::file("write", path, &error))
}

async fn delete(args: DeleteArgs, output: &Output) -> Result<(), Stop> {
    let (run, step) = split(&args.version)?;
    let client = super::connect(&args.cluster, "volley adapter").await?;
    let (run, version) = find_version(&client, run, step).await?;
    client.adapter_delete(run.info.run, version.step).await?;
    client.close().await;
    output.talk(&format!(
        "step {} of run {} is deleted",
        version.step, run.info.name
    ));
    Ok(())
}

fn split(told: &str) -> Result<(&str, &str), Fault> {
    told.split_once('@').ok_or_else(|| {
        let message = format!("`{told}` names no version: RUN@STEP is due");
        Fault::new(ErrorCode::InvalidRequest, message)
            .with_hint(format!("the newest one is {told}@latest"))
    })
}

/// The settings file that PEFT wants beside the weights. The published bytes are a safetensors
/// file with PEFT's names and the settings in its metadata.
fn peft_config(bytes: &[u8], base_model: &str) -> Result<Value, Fault> {
    let unusable = |why: &str| {
        Fault::new(
            ErrorCode::AdapterMismatch,
            format!("the version cannot be written: {why}"),
        )
    };
    let file = SafetensorsFile::from_bytes("adapter", bytes.to_vec())
        .map_err(|error| unusable(&error.to_string()))?;
    let metadata = file.metadata();
    let field = |key: &str| {
        metadata
            .get(key)
            .ok_or_else(|| unusable("it lacks its settings"))
    };
    let rank: u32 = field("rank")?
        .parse()
        .map_err(|_| unusable("its rank is no number"))?;
    let alpha: u32 = field("alpha_bits")?
        .parse()
        .map_err(|_| unusable("its alpha is no number"))?;
    // Whole module paths say exactly what is adapted, whatever the base has besides.
    let mut modules: Vec<&str> = file
        .names()
        .filter_map(|name| {
            name.strip_prefix("base_model.model.")?
                .strip_suffix(".lora_A.weight")
        })
        .collect();
    modules.sort_unstable();
    Ok(json!({
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": f32::from_bits(alpha),
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": field("rslora")? == "true",
    }))
}
