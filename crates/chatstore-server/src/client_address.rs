//! Where a request comes from: the peer, or what trusted proxies say of it.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, HeaderName, header};

use crate::listener::Peer;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of the client, as far as it can be believed: nothing over a Unix socket without proxies. IPv4 in the
/// form of IPv6 is IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub Option<IpAddr>);

impl ClientAddress {
    /// The peer, or with `trusted_proxies` the entry that many from the right of `X-Forwarded-For` or `Forwarded`.
    ///
    /// Where that entry is missing or unreadable, and where both headers are there and disagree, it is the peer: never
    /// an address that a client could have written itself.
    pub fn of(peer: Option<&Peer>, headers: &HeaderMap, trusted_proxies: usize) -> Self {
        let peer = peer.and_then(|peer| peer.0).map(|address| address.ip());
        let forwarded = trusted_proxies.checked_sub(1).and_then(|nth| forwarded(headers, nth));
        Self(forwarded.or(peer).map(|address| address.to_canonical()))
    }

    /// Nothing, where proxies are trusted and what stands in the headers cannot be believed. A client may cause that,
    /// by a header that its proxy does not know, and must gain nothing by being taken for the proxy.
    #[must_use]
    pub fn undisputed(self, headers: &HeaderMap, trusted_proxies: usize) -> Self {
        let is_told = headers.contains_key(&X_FORWARDED_FOR) || headers.contains_key(header::FORWARDED);
        let is_believed = |nth| forwarded(headers, nth).is_some();
        let is_disputed = is_told && trusted_proxies.checked_sub(1).is_some_and(|nth| !is_believed(nth));
        Self(self.0.filter(|_| !is_disputed))
    }
}

/// What the `nth` proxy from here says, counted from 0.
fn forwarded(headers: &HeaderMap, nth: usize) -> Option<IpAddr> {
    let listed = || nth_from_right(headers, &X_FORWARDED_FOR, false, nth).and_then(address);
    let standard = || nth_from_right(headers, &header::FORWARDED, true, nth).and_then(forwarded_for);
    match (headers.contains_key(&X_FORWARDED_FOR), headers.contains_key(header::FORWARDED)) {
        (true, true) => listed().filter(|address| standard() == Some(*address)),
        (true, false) => listed(),
        (false, _) => standard(),
    }
}

/// An entry of a list that stands in one or more lines. It is read from the right, so that nothing a client wrote on
/// the left, such as a quote that never ends, can change what the proxies wrote.
fn nth_from_right<'a>(headers: &'a HeaderMap, name: &HeaderName, is_quoted: bool, nth: usize) -> Option<&'a str> {
    let lines = headers.get_all(name).iter().rev();
    let entry = lines.flat_map(|line| EntriesFromRight { rest: Some(line.as_bytes()), is_quoted }).nth(nth)?;
    std::str::from_utf8(entry).ok().map(str::trim)
}

/// The entries between commas, the last one first. An empty one is one, too: it stands for a client that a proxy did
/// not know.
struct EntriesFromRight<'a> {
    rest: Option<&'a [u8]>,
    /// Whether a comma between quotes separates nothing.
    is_quoted: bool,
}

impl<'a> Iterator for EntriesFromRight<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest.take()?;
        let mut in_quotes = false;
        for (at, byte) in rest.iter().enumerate().rev() {
            match byte {
                b'"' if self.is_quoted && !is_escaped(&rest[..at]) => in_quotes = !in_quotes,
                b',' if !in_quotes => {
                    self.rest = Some(&rest[..at]);
                    return Some(&rest[at + 1..]);
                }
                _ => {}
            }
        }
        Some(rest)
    }
}

/// Whether a byte after `before` is escaped by a backslash.
fn is_escaped(before: &[u8]) -> bool {
    before.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// The address in an element of `Forwarded` (RFC 7239): that of its one parameter `for`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut found = None;
    let mut rest = element;
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = parameter_value(after)?;
        if name.trim().eq_ignore_ascii_case("for") && found.replace(value).is_some() {
            return None;
        }
        rest = after;
    }
    address(&found?)
}

/// A token or a quoted string, and what follows its semicolon.
fn parameter_value(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_once(';').unwrap_or((text, ""));
        return Some((Cow::Borrowed(value.trim()), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => {
                let rest = quoted[at + 1..].trim_start();
                let rest = if rest.is_empty() { rest } else { rest.strip_prefix(';')? };
                return Some((Cow::Owned(value), rest));
            }
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// An address with or without a port; one of IPv6 with a port stands in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    bare.parse().ok().or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    const PEER: &str = "10.0.0.9";

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn of(lines: &[(&'static str, &str)], trusted_proxies: usize) -> String {
        let peer = Peer(Some(SocketAddr::new(PEER.parse().unwrap(), 4711)));
        ClientAddress::of(Some(&peer), &headers(lines), trusted_proxies).0.unwrap().to_string()
    }

    #[test]
    fn without_proxies_it_is_the_peer_whatever_headers_say() {
        let lines = [("x-forwarded-for", "203.0.113.1"), ("forwarded", "for=203.0.113.1")];
        assert_eq!(of(&lines, 0), PEER);
        let mapped = Peer(Some("[::ffff:192.0.2.7]:80".parse().unwrap()));
        assert_eq!(ClientAddress::of(Some(&mapped), &HeaderMap::new(), 0).0, "192.0.2.7".parse().ok());
        assert_eq!(ClientAddress::of(Some(&Peer(None)), &headers(&lines), 0).0, None);
        assert_eq!(ClientAddress::of(None, &HeaderMap::new(), 0).0, None);
    }

    #[test]
    fn behind_proxies_it_is_the_entry_that_many_from_the_right() {
        let one = [("x-forwarded-for", "6.6.6.6, 198.51.100.2,203.0.113.1")];
        assert_eq!(of(&one, 1), "203.0.113.1");
        assert_eq!(of(&one, 2), "198.51.100.2");
        let lines = [("x-forwarded-for", "6.6.6.6, 198.51.100.2"), ("x-forwarded-for", "203.0.113.1")];
        assert_eq!(of(&lines, 1), "203.0.113.1");
        assert_eq!(of(&lines, 2), "198.51.100.2");
        let standard =
            [("forwarded", "for=6.6.6.6, For=\"198.51.100.2:80\";proto=https"), ("forwarded", "by=_x;for=203.0.113.1")];
        assert_eq!(of(&standard, 1), "203.0.113.1");
        assert_eq!(of(&standard, 2), "198.51.100.2");
        let socket = ClientAddress::of(Some(&Peer(None)), &headers(&one), 1);
        assert_eq!(socket.0, "203.0.113.1".parse().ok());
    }

    #[test]
    fn every_form_of_an_address_is_read() {
        for (text, expected) in [
            ("203.0.113.1", "203.0.113.1"),
            ("203.0.113.1:8080", "203.0.113.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("::ffff:203.0.113.1", "203.0.113.1"),
            ("[::ffff:203.0.113.1]:1", "203.0.113.1"),
        ] {
            assert_eq!(of(&[("x-forwarded-for", text)], 1), expected, "{text}");
            assert_eq!(of(&[("forwarded", &format!("for=\"{text}\""))], 1), expected, "{text}");
        }
        assert_eq!(of(&[("forwarded", r#"host="a,\"b;for=6.6.6.6"; for="2\03.0.113.1""#)], 1), "203.0.113.1");
    }

    #[test]
    fn what_is_missing_or_unreadable_is_the_peer() {
        for entry in
            ["", " ", "unknown", "_hidden", "203.0.113", "203.0.113.1:x", "[::1", "::1]:80", "a.example", "\u{E9}"]
        {
            assert_eq!(of(&[("x-forwarded-for", &format!("6.6.6.6,{entry}"))], 1), PEER, "{entry:?}");
            assert_eq!(of(&[("forwarded", &format!("for=6.6.6.6,for={entry}"))], 1), PEER, "{entry:?}");
        }
        for element in ["for", "for=\"1.1.1.1", "for=1.1.1.1;for=2.2.2.2", "by=1.1.1.1", "for=\"1.1.1.1\"x", "1.1.1.1"]
        {
            assert_eq!(of(&[("forwarded", element)], 1), PEER, "{element}");
        }
        assert_eq!(of(&[("x-forwarded-for", "203.0.113.1")], 2), PEER);
        assert_eq!(of(&[], 1), PEER);
        assert_eq!(of(&[("x-forwarded-for", "203.0.113.1")], usize::MAX), PEER);
    }

    #[test]
    fn headers_that_disagree_are_not_believed() {
        let both = |listed, standard| of(&[("x-forwarded-for", listed), ("forwarded", standard)], 1);
        assert_eq!(both("203.0.113.1", "for=203.0.113.1"), "203.0.113.1");
        assert_eq!(both("::ffff:203.0.113.1", "for=203.0.113.1"), "203.0.113.1");
        assert_eq!(both("203.0.113.1", "for=6.6.6.6"), PEER);
        assert_eq!(both("203.0.113.1", "for=unknown"), PEER);
        assert_eq!(both("", "for=203.0.113.1"), PEER);
        let peer = ClientAddress(PEER.parse().ok());
        let disputed = headers(&[("x-forwarded-for", "203.0.113.1"), ("forwarded", "for=6.6.6.6")]);
        assert_eq!(peer.undisputed(&disputed, 1).0, None);
        assert_eq!(peer.undisputed(&disputed, 0), peer);
        assert_eq!(peer.undisputed(&headers(&[("x-forwarded-for", "203.0.113.1")]), 1), peer);
        assert_eq!(peer.undisputed(&headers(&[("x-forwarded-for", "unknown")]), 1).0, None);
        assert_eq!(peer.undisputed(&HeaderMap::new(), 1), peer);
    }

    #[test]
    fn long_lists_are_read_no_further_than_needed() {
        let mut entries = EntriesFromRight { rest: Some(&[b','; 1_000]), is_quoted: true };
        assert_eq!(entries.nth(1), Some(&b""[..]));
        assert_eq!(entries.rest.map(<[u8]>::len), Some(998));
        assert_eq!(entries.count(), 999);
    }

    proptest! {
        #[test]
        fn nothing_a_client_writes_on_the_left_changes_the_result(
            forged in "[ -~]{0,60}", lines in prop::collection::vec("[ -~]{0,40}", 0..4), quoted in any::<bool>(), proxies in 1usize..4,
        ) {
            let own = (0..proxies).rev().map(|n| format!("198.51.100.{n}"));
            let (name, own): (_, Vec<String>) = if quoted {
                ("forwarded", own.map(|address| format!("for=\"{address}:80\";host=\"a,b\\\"\"")).collect())
            } else {
                ("x-forwarded-for", own.collect())
            };
            let expected = format!("198.51.100.{}", proxies - 1);
            prop_assert_eq!(of(&[(name, &own.join(", "))], proxies), expected.clone());
            let joined = format!("{forged}, {}", own.join(", "));
            let mut all: Vec<(&'static str, &str)> = lines.iter().map(|line| (name, line.as_str())).collect();
            all.push((name, &joined));
            prop_assert_eq!(of(&all, proxies), expected.clone());
            // Proxies may add lines of their own, too.
            all.pop();
            all.extend(own.iter().map(|line| (name, line.as_str())));
            prop_assert_eq!(of(&all, proxies), expected);
        }
    }
}
