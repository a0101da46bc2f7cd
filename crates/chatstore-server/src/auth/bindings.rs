//! Where a key may be used: from which addresses, and from whose pages.

use std::net::IpAddr;

use axum::http::{HeaderMap, header};
use chatstore_core::api_keys::KeySettings;
use ipnet::{IpNet, Ipv4Net};

use crate::client_address::ClientAddress;
use crate::error::{ApiError, Code};

/// The places a key is tied to, read once.
#[derive(Debug)]
pub(super) struct Bindings {
    /// `None` allows every address.
    addresses: Option<Vec<IpNet>>,
    /// Empty allows every origin.
    origins: Vec<String>,
}

impl Bindings {
    pub(super) fn of(settings: &KeySettings) -> Self {
        let ranges = &settings.allowed_addresses;
        // A range that cannot be read contains nothing; it does not untie the key.
        let addresses = ranges.iter().filter_map(|range| parse_address_range(range)).collect();
        Self { addresses: (!ranges.is_empty()).then_some(addresses), origins: settings.allowed_origins.clone() }
    }

    /// Lets a request pass that comes from where the key may be used. Only browsers say whose page they act for: a
    /// request without `Origin` passes.
    ///
    /// # Errors
    /// 403 `address_not_allowed`, `origin_not_allowed`.
    pub(super) fn check(&self, address: ClientAddress, headers: &HeaderMap) -> Result<(), ApiError> {
        if let Some(ranges) = &self.addresses {
            let address = address.0.map(|address| address.to_canonical());
            if !address.is_some_and(|address| ranges.iter().any(|range| range.contains(&address))) {
                return Err(ApiError::new(
                    Code::AddressNotAllowed,
                    "The key may be used from certain addresses alone, and this request comes from another.",
                ));
            }
        }
        let is_allowed = |origin: &[u8]| self.origins.iter().any(|allowed| allowed.as_bytes() == origin);
        let mut origins = headers.get_all(header::ORIGIN).iter();
        if self.origins.is_empty() || origins.all(|origin| is_allowed(origin.as_bytes())) {
            return Ok(());
        }
        Err(ApiError::new(
            Code::OriginNotAllowed,
            "The key may be used from the pages of certain origins alone, and this request comes from another's.",
        ))
    }
}

/// Reads an address, or a range such as `203.0.113.0/24`. IPv4 in the form of IPv6 (`::ffff:…`) is IPv4.
pub fn parse_address_range(text: &str) -> Option<IpNet> {
    let range = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address.to_canonical()),
        Err(_) => text.parse::<IpNet>().ok()?,
    };
    match range.addr() {
        IpAddr::V6(address) if range.prefix_len() >= 96 && address.to_ipv4_mapped().is_some() => {
            Ipv4Net::new(address.to_ipv4_mapped()?, range.prefix_len() - 96).ok().map(IpNet::V4)
        }
        _ => Some(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn allowed(ranges: &[&str], address: Option<&str>) -> bool {
        let allowed_addresses = ranges.iter().map(|range| (*range).to_owned()).collect();
        let bindings = Bindings::of(&KeySettings { allowed_addresses, ..KeySettings::default() });
        let address = ClientAddress(address.map(|address| address.parse().unwrap()));
        bindings.check(address, &HeaderMap::new()).is_ok()
    }

    #[test]
    fn an_address_must_be_in_a_range() {
        assert!(allowed(&[], Some("203.0.113.9")) && allowed(&[], None));
        for (range, address, is_allowed) in [
            ("203.0.113.0/24", "203.0.113.255", true),
            ("203.0.113.0/24", "203.0.114.0", false),
            ("203.0.113.9", "203.0.113.9", true),
            ("203.0.113.9", "203.0.113.8", false),
            ("203.0.113.0/24", "::ffff:203.0.113.1", true),
            ("::ffff:203.0.113.0/120", "203.0.113.1", true),
            ("::ffff:203.0.113.9", "203.0.113.9", true),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("2001:db8::1", "2001:db8::1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "203.0.113.1", false),
            ("nowhere", "203.0.113.1", false),
        ] {
            assert_eq!(allowed(&[range], Some(address)), is_allowed, "{address} in {range}");
            assert!(!allowed(&[range], None), "an unknown address is in no range");
        }
        assert!(allowed(&["nowhere", "10.0.0.0/8"], Some("10.1.2.3")));
    }

    #[test]
    fn what_is_no_range_is_not_read() {
        for text in ["", "x", "203.0.113.0/33", "203.0.113", "::/129", "203.0.113.0/24 ", "a.example"] {
            assert_eq!(parse_address_range(text), None, "{text}");
        }
    }

    #[test]
    fn an_origin_must_be_one_of_them_exactly() {
        let allowed_origins = vec!["https://a.example".to_owned(), "https://b.example:8443".to_owned()];
        let tied = Bindings::of(&KeySettings { allowed_origins, ..KeySettings::default() });
        let free = Bindings::of(&KeySettings::default());
        let check = |bindings: &Bindings, origins: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for origin in origins {
                headers.append(header::ORIGIN, HeaderValue::from_static(origin));
            }
            bindings.check(ClientAddress(None), &headers).map_err(|error| error.code)
        };
        for origins in [&[][..], &["https://a.example"], &["https://b.example:8443"]] {
            assert_eq!(check(&tied, origins), Ok(()));
        }
        for origins in [
            &["null"][..],
            &[""],
            &["https://A.example"],
            &["http://a.example"],
            &["https://a.example/"],
            &["https://a.example.evil.example"],
            &["https://b.example"],
            &["https://a.example", "https://evil.example"],
        ] {
            assert_eq!(check(&tied, origins), Err(Code::OriginNotAllowed), "{origins:?}");
            assert_eq!(check(&free, origins), Ok(()));
        }
    }
}
