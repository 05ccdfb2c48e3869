//! Dials to learners, numbered. A dial and a hang-up may cross: what an aborted dial had already
//! put into the driver's mailbox must not be taken for news of the next dial to the same address,
//! or a session would be kept that nobody reads.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::task::JoinHandle;

/// One dial and the session that may come of it; no other dial of this process has its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DialId(u64);

/// The dial of each address that is under way, or whose session is open.
#[derive(Debug, Default)]
pub(crate) struct Dials {
    last: u64,
    current: BTreeMap<SocketAddr, (DialId, JoinHandle<()>)>,
}

impl Dials {
    /// Begins a dial unless one is under way or its session is open.
    pub(crate) fn begin(&mut self, addr: SocketAddr, dial: impl FnOnce(DialId) -> JoinHandle<()>) {
        if self.current.contains_key(&addr) {
            return;
        }
        self.last += 1;
        let id = DialId(self.last);
        self.current.insert(addr, (id, dial(id)));
    }

    /// Is it the dial that counts for this address?
    pub(crate) fn is_current(&self, addr: SocketAddr, id: DialId) -> bool {
        self.current
            .get(&addr)
            .is_some_and(|(current, _)| *current == id)
    }

    /// That dial, or its session, has ended. False when a newer one, or none, is current.
    pub(crate) fn ended(&mut self, addr: SocketAddr, id: DialId) -> bool {
        let current = self.is_current(addr, id);
        if current {
            self.current.remove(&addr);
        }
        debug_assert!(!self.is_current(addr, id));
        current
    }

    /// Gives up the dial of this address, or stops reading its session.
    pub(crate) fn hang_up(&mut self, addr: SocketAddr) {
        if let Some((_, task)) = self.current.remove(&addr) {
            task.abort();
        }
        debug_assert!(!self.current.contains_key(&addr));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_an_older_dial_says_is_no_news() {
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut numbers = Vec::new();
        let mut dials = Dials::default();
        let mut begin = |dials: &mut Dials| {
            dials.begin(addr, |id| {
                numbers.push(id);
                tokio::spawn(std::future::pending())
            });
        };
        begin(&mut dials);
        begin(&mut dials);
        dials.hang_up(addr);
        begin(&mut dials);
        let [old, new] = numbers[..] else {
            panic!("a dial under way is not begun again: {numbers:?}");
        };
        assert!(!dials.is_current(addr, old) && dials.is_current(addr, new));
        assert!(!dials.ended(addr, old), "its end is not the newer one's");
        assert!(dials.is_current(addr, new));
        assert!(dials.ended(addr, new) && !dials.is_current(addr, new));
    }
}
