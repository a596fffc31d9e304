//! [`searches`]: what each route's answers are searched for.
//!
//! An API may keep what one caller sent it and show that to another: a list of calls, a page for
//! debugging, an error that a queue kept. So an answer is searched for every key that is written to the
//! same API, whichever route writes it, and on routes that write none.
//!
//! It lacks hubs, and an API that has several names: those are several APIs here, but a key that is written to
//! two of them is searched for at both.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use wire::scrub::Scrubber;

use crate::credential::Credential;
use crate::route::Route;
use crate::upstream::CredentialId;

/// Keys that are searched for in one answer. Each makes the search a little slower. An API to which more
/// are written is taken for one with a key per tenant: its answers are searched for the route's own key
/// alone.
pub const KEYS_SEARCHED_MAX: usize = 64;

/// The search of each route's answers, in the order of `routes`; `None` where there is nothing that
/// could be found.
pub(crate) fn searches<'r>(
    routes: impl Iterator<Item = &'r Route> + Clone,
) -> Vec<Option<Arc<Scrubber>>> {
    let mut apis: HashMap<String, Keys<'r>> = HashMap::new();
    for route in routes.clone().filter(|route| is_searched(route)) {
        let keys = apis.entry(api(route)).or_default();
        if let Some((id, credential)) = &route.credential {
            keys.add(*id, credential);
        }
    }
    let searches: HashMap<String, Option<Arc<Scrubber>>> = apis
        .into_iter()
        .map(|(api, keys)| (api, keys.search()))
        .collect();
    routes
        .map(|route| {
            if !is_searched(route) {
                return None;
            }
            let own = route.credential.as_ref().map(|(_, own)| own.scrubber());
            let search = searches[&api(route)].as_ref().or(own);
            search.filter(|search| !search.is_empty()).cloned()
        })
        .collect()
}

/// A hub has searched its answers itself, and what is written for it is its own token, which it never
/// passes on.
fn is_searched(route: &Route) -> bool {
    !route.upstream.is_hub
}

/// Name and port.
fn api(route: &Route) -> String {
    route.upstream.host.to_ascii_lowercase()
}

/// The keys that are written to one API, in the order of its routes.
#[derive(Default)]
struct Keys<'r> {
    known: HashSet<CredentialId>,
    list: Vec<&'r Credential>,
}

impl<'r> Keys<'r> {
    fn add(&mut self, id: CredentialId, credential: &'r Credential) {
        if self.known.insert(id) {
            self.list.push(credential);
        }
    }

    /// One search for all of them; `None` if they are too many, or none.
    fn search(&self) -> Option<Arc<Scrubber>> {
        match &self.list[..] {
            [] => None,
            [one] => Some(Arc::clone(one.scrubber())),
            some if some.len() <= KEYS_SEARCHED_MAX => {
                let each = some.iter().map(|credential| &**credential.scrubber());
                Some(Arc::new(Scrubber::of_all(each)))
            }
            _ => None,
        }
    }
}
