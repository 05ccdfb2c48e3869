//! Where workers come from. The core says "start one" and "end that one"; a provisioner knows how.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use volley_coordinator_core::Input;
use volley_link::{ClusterCa, Role};
use volley_protocol::Fault;
use volley_runtime::greeting::link_fault;
use volley_runtime::process::{Child, ChildLog, ChildSpec, Lifelines};

/// Starts and ends worker processes. Outcomes come back as inputs for the core.
pub trait Provisioner: Send {
    /// Starts a worker that names `provision` when it registers.
    fn start(&mut self, provision: u64);
    /// Ends a worker that did not end by itself.
    fn kill(&mut self, provision: u64, pid: u32);
    /// Asks all of them to finish, deliver and end: the coordinator is leaving for good.
    fn shut_down(&mut self);
    /// Workers that have not ended.
    fn running(&self) -> usize;
}

/// What a worker process is started with, besides who it is.
#[derive(Clone, Debug)]
pub struct WorkerTemplate {
    /// Model folder; `None` is the scripted policy.
    pub model: Option<PathBuf>,
    /// Concurrent episodes.
    pub slots: u32,
    /// Threads of its policy.
    pub threads: usize,
    /// Number format of its matrix products, as `volley worker --compute` takes it.
    pub compute: String,
    /// Folder for its log; `None` is the coordinator's own standard error.
    pub logs: Option<PathBuf>,
}

/// Workers as processes of this machine: children of the coordinator, each in a process group of
/// its own, watched by pidfd. They outlive a killed coordinator (they hold warm weights) and come
/// back to the next one; the death of the launcher above ends them.
pub(crate) struct ProcessProvisioner {
    template: WorkerTemplate,
    coordinator: SocketAddr,
    ca: ClusterCa,
    launchers: Lifelines,
    to_core: Arc<dyn Fn(Input) + Send + Sync>,
    orders: Arc<Mutex<BTreeMap<u64, mpsc::UnboundedSender<Order>>>>,
}

/// What a worker's watcher is told. At most two are ever sent to one worker.
#[derive(Clone, Copy, Debug)]
enum Order {
    Kill,
    Leave,
}

impl std::fmt::Debug for ProcessProvisioner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessProvisioner")
            .field("template", &self.template)
            .finish_non_exhaustive()
    }
}

impl ProcessProvisioner {
    /// A provisioner whose workers dial `coordinator`. `launchers` are handed on to them.
    pub(crate) fn new(
        template: WorkerTemplate,
        coordinator: SocketAddr,
        ca: ClusterCa,
        launchers: Lifelines,
        to_core: Arc<dyn Fn(Input) + Send + Sync>,
    ) -> Self {
        let orders = Arc::default();
        Self {
            template,
            coordinator,
            ca,
            launchers,
            to_core,
            orders,
        }
    }

    fn spawn(&self, provision: u64) -> Result<Child, Fault> {
        // The upper half of the number is the coordinator's epoch.
        let name = format!("worker-{}.{}", provision >> 32, provision & 0xffff_ffff);
        let identity = self
            .ca
            .issue(Role::Worker, &name)
            .map_err(|error| link_fault(&error))?;
        let template = &self.template;
        let mut args = vec![
            "worker".to_owned(),
            format!("--coordinator={}", self.coordinator),
            format!("--name={name}"),
            format!("--provision={provision}"),
            format!("--slots={}", template.slots),
            format!("--threads={}", template.threads),
            format!("--compute={}", template.compute),
        ];
        match &template.model {
            Some(model) => args.push(format!("--model={}", model.display())),
            None => args.push("--scripted".to_owned()),
        }
        let log = match &template.logs {
            Some(logs) => ChildLog::File(logs.join(format!("{name}.log"))),
            None => ChildLog::Inherit,
        };
        let spec = ChildSpec::role(name, args)?
            .identity(identity.to_bytes())
            .lifelines(self.launchers.clone())
            .log(log);
        Child::spawn(spec)
    }
}

impl Provisioner for ProcessProvisioner {
    fn start(&mut self, provision: u64) {
        let child = match self.spawn(provision) {
            Ok(child) => child,
            Err(fault) => {
                let reason = fault.to_string();
                return (self.to_core)(Input::ProvisionFailed { provision, reason });
            }
        };
        let (order, orders) = mpsc::unbounded_channel();
        lock(&self.orders).insert(provision, order);
        let (table, to_core) = (Arc::clone(&self.orders), Arc::clone(&self.to_core));
        tokio::spawn(async move {
            let pid = child.pid();
            watch(child, orders).await;
            lock(&table).remove(&provision);
            to_core(Input::WorkerExited { provision, pid });
        });
    }

    fn kill(&mut self, provision: u64, pid: u32) {
        match lock(&self.orders).get(&provision) {
            // A watcher that is gone has reported the end.
            Some(order) => drop(order.send(Order::Kill)),
            // A worker of the coordinator's earlier life is no child of this one; it notices by
            // itself that it is not wanted.
            None => tracing::warn!(provision, pid, "a worker that is no child cannot be killed"),
        }
    }

    fn shut_down(&mut self) {
        for order in lock(&self.orders).values() {
            // A watcher that is gone has reported the end.
            let _ = order.send(Order::Leave);
        }
    }

    fn running(&self) -> usize {
        lock(&self.orders).len()
    }
}

/// Waits for a worker's end and carries out orders meanwhile.
async fn watch(mut child: Child, mut orders: mpsc::UnboundedReceiver<Order>) {
    loop {
        let order = tokio::select! {
            ended = child.wait() => {
                match ended {
                    Ok(status) => tracing::info!(name = child.name(), %status, "worker ended"),
                    Err(error) => tracing::error!(%error, "a worker cannot be waited for"),
                }
                return;
            }
            order = orders.recv() => order,
        };
        match order {
            Some(Order::Kill) | None => child.kill(),
            Some(Order::Leave) => child.terminate(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // The table is whole between any two operations on it, so a panic elsewhere spoils nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
