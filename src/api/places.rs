//! Places that everybody shares, counted by a name: connections by address, open requests by owner. One name may have so
//! many at once, so that nobody takes them all.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::response::Response;
use http_body::Body as _;
use http_body_util::BodyExt;

/// Counts by name.
#[derive(Debug)]
pub(super) struct Places<K: Hash + Eq> {
    num_max: usize,
    // A std mutex: held for a map operation only.
    taken: Mutex<HashMap<K, usize>>,
}

/// One place; dropping it leaves the place to the next.
#[derive(Debug)]
pub(super) struct Place<K: Hash + Eq + Clone> {
    /// Without one, nothing is counted.
    of: Option<(Arc<Places<K>>, K)>,
}

impl<K: Hash + Eq + Clone> Places<K> {
    /// At most `num_max` for each name; 0 is no bound.
    pub(super) fn new(num_max: usize) -> Arc<Self> {
        Arc::new(Self { num_max, taken: Mutex::default() })
    }

    /// The most for one name.
    pub(super) fn num_max(&self) -> usize {
        self.num_max
    }

    /// A place for `name`, or for everybody without a name; none if the name has as many as may be.
    pub(super) fn enter(self: &Arc<Self>, name: Option<K>) -> Option<Place<K>> {
        let Some(name) = name.filter(|_| self.num_max > 0) else { return Some(Place { of: None }) };
        let mut taken = self.lock();
        let num = taken.entry(name.clone()).or_default();
        if *num >= self.num_max {
            return None;
        }
        *num += 1;
        drop(taken);
        Some(Place { of: Some((self.clone(), name)) })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq + Clone> Drop for Place<K> {
    fn drop(&mut self) {
        let Some((places, name)) = &self.of else { return };
        let mut taken = places.lock();
        if let Some(num) = taken.get_mut(name) {
            *num -= 1;
            if *num == 0 {
                taken.remove(name);
            }
        }
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Place<K> {
    /// Keeps the place until the answer's body has been sent. One whose length is known is there already.
    pub(super) fn until_sent(self, response: Response) -> Response {
        if response.body().size_hint().exact().is_some() {
            return response;
        }
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _place = &self;
                frame
            }))
        })
    }
}

/// By what a peer's connections are counted: its address, of IPv6 the 64 bits that a network hands out as one. `None` for
/// this machine, whose proxies bring everybody's connections.
pub(super) fn peer_of(address: IpAddr) -> Option<IpAddr> {
    match address.to_canonical() {
        address if address.is_loopback() => None,
        IpAddr::V6(address) => Some(IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64))),
        address => Some(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_so_many_places_and_no_name_has_all() {
        let places = Places::new(2);
        let first = places.enter(Some("a"));
        let second = places.enter(Some("a"));
        assert!(first.is_some() && second.is_some() && places.enter(Some("a")).is_none());
        assert!(places.enter(Some("b")).is_some());
        let unnamed: Vec<_> = (0..5).map(|_| places.enter(None)).collect();
        assert!(unnamed.iter().all(Option::is_some));
        drop(first);
        assert!(places.enter(Some("a")).is_some());
        drop(second);
        assert!(places.lock().is_empty());
        let unbounded = Places::new(0);
        assert!((0..5).map(|_| unbounded.enter(Some(1))).all(|place| place.is_some()));
    }

    #[test]
    fn a_peer_is_an_address_or_half_of_one() {
        #[track_caller]
        fn check(address: &str, expect: Option<&str>) {
            let parse = |text: &str| text.parse::<IpAddr>().expect("an address");
            assert_eq!(peer_of(parse(address)), expect.map(parse), "{address}");
        }
        check("127.0.0.1", None);
        check("::1", None);
        check("::ffff:127.0.0.1", None);
        check("192.0.2.7", Some("192.0.2.7"));
        check("::ffff:192.0.2.7", Some("192.0.2.7"));
        check("2001:db8:1:2:3:4:5:6", Some("2001:db8:1:2::"));
    }
}
