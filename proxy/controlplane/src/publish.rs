//! [`Publisher`]: the only place in which a snapshot or an address book is replaced.
//!
//! A reload, a renewed certificate, a rotated key and a fresh DNS answer all end
//! here, so what the cores run on changes in one way and leaves one kind of trace.

use std::sync::Arc;

use handoff::Published;
use policy::{AddressBook, Snapshot};

/// The control plane's end of what the cores read.
#[derive(Debug, Clone)]
pub struct Publisher {
    snapshots: Arc<Published<Snapshot>>,
    addresses: Arc<Published<AddressBook>>,
}

impl Publisher {
    /// Publishes to the readers of these two.
    pub fn new(
        snapshots: Arc<Published<Snapshot>>,
        addresses: Arc<Published<AddressBook>>,
    ) -> Self {
        Self {
            snapshots,
            addresses,
        }
    }

    /// Replaces the configuration that every core runs on.
    pub(crate) fn snapshot(&self, snapshot: Arc<Snapshot>) {
        self.snapshots.publish(snapshot);
    }

    /// Replaces the addresses that were found by name.
    pub(crate) fn addresses(&self, book: AddressBook) {
        self.addresses.publish(Arc::new(book));
    }

    /// What the cores run on now, or will within a tick.
    pub(crate) fn current(&self) -> Arc<Snapshot> {
        self.snapshots.load()
    }

    /// The addresses that the cores know now.
    pub(crate) fn current_addresses(&self) -> Arc<AddressBook> {
        self.addresses.load()
    }
}
