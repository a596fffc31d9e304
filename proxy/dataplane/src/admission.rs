//! [`Admission`]: how many exchanges a core has under way at once, and whose they are.
//!
//! The bound alone would be whoever comes first: one caller with enough connections and a
//! slow upstream holds all places, and everybody else is refused. So a caller may hold
//! [`SHARE`] times as many places as would still be free, and the last free place is for a
//! caller that has none. One caller alone gets seven eighths of them; the more there are,
//! the less each gets, and there is always something left for the next. (The idea is that
//! of dynamic thresholds in switches that share a buffer: Choudhury and Hahne, 1998.)
//!
//! A caller is an address. What it lacks: a queue. Whoever is refused is told so at once.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

/// A caller may hold so many times the places that are free. Past it: 503, as for everybody
/// when there are none.
const SHARE: usize = 7;

/// One core's places.
#[derive(Default)]
pub struct Admission {
    taken: Cell<usize>,
    /// Those that each caller holds. Invariant: there is an entry for every [`Member`], and none besides.
    callers: RefCell<HashMap<IpAddr, Rc<Cell<usize>>>>,
}

/// A connection, on behalf of its caller: so that an exchange does not have to look for it.
pub struct Member {
    admission: Rc<Admission>,
    address: IpAddr,
    held: Rc<Cell<usize>>,
}

/// An exchange's place; given back when dropped.
pub struct Place<'m>(&'m Member);

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    /// How many this caller holds.
    pub held: usize,
}

impl Admission {
    /// One more connection of the caller at `address`.
    pub fn member(self: &Rc<Self>, address: IpAddr) -> Member {
        let held = Rc::clone(self.callers.borrow_mut().entry(address).or_default());
        Member {
            admission: Rc::clone(self),
            address,
            held,
        }
    }
}

impl Member {
    /// A place among `places_max`.
    ///
    /// # Errors
    /// [`Full`]: none is free, or this caller holds its share.
    pub fn enter(&self, places_max: usize) -> Result<Place<'_>, Full> {
        let (taken, held) = (self.admission.taken.get(), self.held.get());
        if !admits(places_max.saturating_sub(taken), held) {
            return Err(Full { held });
        }
        self.admission.taken.set(taken + 1);
        self.held.set(held + 1);
        Ok(Place(self))
    }
}

/// Whether a caller that holds `held` places may take one of those that are `free`.
fn admits(free: usize, held: usize) -> bool {
    free > 0 && (held == 0 || held < (free - 1).saturating_mul(SHARE))
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Member {
            admission, held, ..
        } = self.0;
        admission.taken.set(admission.taken.get() - 1);
        held.set(held.get() - 1);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // Ours and the map's: nobody else has it.
        if Rc::strong_count(&self.held) == 2 {
            self.admission.callers.borrow_mut().remove(&self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    /// As many as it gets.
    fn flood(member: &Member, places_max: usize) -> Vec<Place<'_>> {
        std::iter::from_fn(|| member.enter(places_max).ok()).collect()
    }

    #[test]
    fn one_caller_gets_most_and_leaves_something() {
        for (places_max, gets) in [
            (1, 1),
            (2, 1),
            (3, 2),
            (8, 7),
            (20, 17),
            (1_000, 875),
            (8_192, 7_168),
        ] {
            let admission = Rc::<Admission>::default();
            let one = admission.member(address(1));
            let places = flood(&one, places_max);
            assert!(
                places.len().abs_diff(gets) <= 1,
                "{} of {places_max}",
                places.len()
            );
            assert!(places.len() < places_max.max(2), "{places_max}");
        }
    }

    /// However many flood a core, who comes next is served, as long as there are fewer callers than places.
    #[test]
    fn who_has_none_gets_one_of_the_last() {
        for places_max in [2, 3, 10, 100, 8_192] {
            for flooders in [1, 2, 3, 10, 50].into_iter().filter(|n| *n < places_max) {
                let admission = Rc::<Admission>::default();
                let members: Vec<_> = (0..flooders as u32)
                    .map(|number| admission.member(address(number)))
                    .collect();
                let mut places = Vec::new();
                loop {
                    let before = places.len();
                    places.extend(members.iter().filter_map(|one| one.enter(places_max).ok()));
                    if places.len() == before {
                        break;
                    }
                }
                assert!(
                    places.len() < places_max,
                    "{flooders} took all {places_max}"
                );
                let newcomer = admission.member(address(1_000));
                assert!(newcomer.enter(places_max).is_ok());
                // Among themselves they are equal: nobody has twice what another one has.
                let held = || members.iter().map(|one| one.held.get());
                assert!(held().max() <= held().min().map(|least| 2 * least + 1));
            }
        }
    }

    #[test]
    fn all_connections_of_a_caller_are_one() {
        let admission = Rc::<Admission>::default();
        let (one, other) = (admission.member(address(1)), admission.member(address(1)));
        let _places = flood(&one, 8);
        let held = one.held.get();
        assert_eq!(other.enter(8).err(), Some(Full { held }));
    }

    #[test]
    fn places_come_back_and_nothing_is_left_behind() {
        let admission = Rc::<Admission>::default();
        for _ in 0..3 {
            let (one, other) = (admission.member(address(1)), admission.member(address(1)));
            let places = flood(&one, 8);
            assert_eq!(admission.taken.get(), places.len());
            drop(places);
            assert_eq!((admission.taken.get(), one.held.get()), (0, 0));
            drop(one);
            assert_eq!(admission.callers.borrow().len(), 1);
            drop(other);
            assert_eq!(admission.callers.borrow().len(), 0);
        }
    }

    /// Fewer places after a reload than are taken.
    #[test]
    fn a_lower_bound_is_kept_from_then_on() {
        let admission = Rc::<Admission>::default();
        let one = admission.member(address(1));
        let mut places = flood(&one, 100);
        let other = admission.member(address(2));
        assert!(other.enter(10).is_err());
        places.truncate(9);
        assert!(other.enter(10).is_ok());
    }
}
