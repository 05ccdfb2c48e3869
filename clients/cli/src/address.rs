//! Which cluster a command talks to, and as whom.

use std::net::ToSocketAddrs as _;
use std::path::Path;

use volley_client::ClusterAddress;
use volley_link::Identity;
use volley_protocol::{ErrorCode, Fault};
use volley_runtime::cluster_file::ClusterFile;
use volley_runtime::env_vars::VOLLEY_ADDR;
use volley_runtime::greeting::link_fault;

use crate::args::ClusterArgs;

/// For commands that may change something.
pub(crate) fn discover(cluster: &ClusterArgs) -> Result<ClusterAddress, Fault> {
    address(cluster, |file| &file.client_identity)
}

/// For those that only look: a monitor's certificate allows nothing else.
pub(crate) fn discover_to_watch(cluster: &ClusterArgs) -> Result<ClusterAddress, Fault> {
    address(cluster, |file| &file.monitor_identity)
}

fn address(
    cluster: &ClusterArgs,
    known: impl Fn(&ClusterFile) -> &Path,
) -> Result<ClusterAddress, Fault> {
    let told = cluster.addr.clone().or_else(|| VOLLEY_ADDR.text());
    if let (Some(told), Some(file)) = (&told, &cluster.identity) {
        let addr = resolve(told)?;
        let identity = load(file)?;
        return Ok(ClusterAddress { addr, identity });
    }
    let file = ClusterFile::discover(told.as_deref())?;
    let identity = load(cluster.identity.as_deref().unwrap_or_else(|| known(&file)))?;
    Ok(ClusterAddress {
        addr: file.address,
        identity,
    })
}

fn load(file: &Path) -> Result<Identity, Fault> {
    Identity::load(file).map_err(|error| link_fault(&error))
}

fn resolve(told: &str) -> Result<std::net::SocketAddr, Fault> {
    let bad = |why: String| {
        Fault::new(
            ErrorCode::InvalidRequest,
            format!("`{told}` is no address: {why}"),
        )
        .with_hint("an address is HOST:PORT, such as 127.0.0.1:7400")
    };
    let mut found = told
        .to_socket_addrs()
        .map_err(|error| bad(error.to_string()))?;
    found
        .next()
        .ok_or_else(|| bad("the name has none".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_an_identity_needs_no_cluster_here() {
        let cluster = |addr: &str| ClusterArgs {
            addr: Some(addr.into()),
            identity: Some("no/such/file".into()),
        };
        let fault = discover(&cluster("nonsense")).expect_err("no address");
        assert_eq!(fault.code, ErrorCode::InvalidRequest);
        let fault = discover(&cluster("127.0.0.1:1")).expect_err("no identity");
        assert_eq!(fault.code, ErrorCode::IoFailed, "{fault}");
    }
}
