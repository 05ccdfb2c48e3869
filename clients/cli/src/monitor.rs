//! `volley monitor`: one screen that answers whether it learns, whether it is busy and what is
//! broken.
//!
//! ```text
//! ClusterSnapshot ──> view (pure) ──┬─> overview: the live screen
//!                                   └─> plain: --once, for probes and pipes
//! ```

mod head;
mod keymap;
mod live;
mod look;
mod model;
mod overview;
mod panels;
mod plain;
mod view;
mod workers;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;

use std::io::{IsTerminal as _, stdout};
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::sleep;
use volley_client::{Client, ClientOptions};
use volley_protocol::snapshot::ClusterSnapshot;
use volley_protocol::{ErrorCode, Fault};

use crate::address;
use crate::args::{ClusterArgs, FormatArgs};
use crate::errors::{FAILED, Stop};
use crate::json as objects;
use crate::output::Output;
use look::Look;
use view::Health;

/// Between snapshots of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// A monitor tells soon that the coordinator is gone; it does not wait like one who has work.
const ABSENCE: Duration = Duration::from_secs(1);

/// Watch a cluster: does it learn, is it busy, what is broken?
///
/// Exit status with --once and --json: 0 healthy, 1 degraded, 69 unreachable.
#[derive(Debug, Args)]
pub(crate) struct MonitorArgs {
    /// Coordinator, HOST:PORT. Default: VOLLEY_ADDR, else the newest cluster on this machine.
    #[arg(value_name = "ADDR", conflicts_with = "addr")]
    address: Option<String>,
    /// Print a plain table and leave; so it does when standard output is no terminal.
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    format: FormatArgs,
    /// With --json: one object each second until interrupted.
    #[arg(long, requires = "json", conflicts_with = "once")]
    watch: bool,
    /// Only characters that every terminal has.
    #[arg(long)]
    ascii: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(crate) async fn run(args: MonitorArgs, output: &Output) -> Result<(), Stop> {
    let mut cluster = args.cluster.clone();
    cluster.addr = cluster.addr.or(args.address);
    let address = address::discover_to_watch(&cluster)?;
    let options = ClientOptions {
        name: "volley monitor".into(),
        absence: ABSENCE,
        ..ClientOptions::default()
    };
    if args.watch {
        let client = Client::start(address, &options)?;
        return watch(&client, output).await;
    }
    let on_screen = stdout().is_terminal() && !is_dumb();
    if on_screen && !args.once && !args.format.json {
        let client = Client::start(address, &options)?;
        let look = Look::new(output.colour(), args.ascii);
        return live::run(client, look).await;
    }
    let client = Client::connect_with(address, options).await?;
    let snapshot = client.snapshot().await?;
    client.close().await;
    let health = Health::of(&snapshot);
    if args.format.json {
        output.json(&objects::snapshot(&snapshot, health.word()))?;
    } else {
        plain::lines(&snapshot)
            .into_iter()
            .try_for_each(|line| output.data(line))?;
    }
    conclude(health)
}

fn conclude(health: Health) -> Result<(), Stop> {
    match health {
        Health::Healthy => Ok(()),
        Health::Degraded => Err(Stop::Status(FAILED)),
        Health::Unreachable => Err(Stop::Status(
            ErrorCode::CoordinatorUnreachable.exit_status(),
        )),
    }
}

/// One object each second, whether the cluster is there or not.
async fn watch(client: &Client, output: &Output) -> Result<(), Stop> {
    loop {
        match client.snapshot().await {
            Ok(snapshot) => output.json(&told(&snapshot))?,
            Err(fault) if is_absence(&fault) => output.json(&json!({
                "schema": "volley.snapshot/1",
                "health": Health::Unreachable.word(),
                "error": objects::fault(&fault),
            }))?,
            Err(fault) => return Err(fault.into()),
        }
        output.flush()?;
        sleep(WATCH_EVERY).await;
    }
}

fn told(snapshot: &ClusterSnapshot) -> serde_json::Value {
    objects::snapshot(snapshot, Health::of(snapshot).word())
}

/// Will it perhaps go better soon?
fn is_absence(fault: &Fault) -> bool {
    matches!(
        fault.code,
        ErrorCode::CoordinatorUnreachable | ErrorCode::PeerLost
    )
}

/// A terminal that cannot move its cursor.
fn is_dumb() -> bool {
    volley_runtime::env_vars::TERM
        .text()
        .is_some_and(|term| term == "dumb")
}
