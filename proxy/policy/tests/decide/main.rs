//! Policy from end to end: a request's bytes go in, and a refusal or the bytes
//! that go upstream come out. The cases are tables; [`world::check`] asserts for
//! every one of them that no caller's credential goes on, that the one real key
//! is written once and no other one at all, and that nothing shows a key.

mod callers;
mod edges;
mod forwarding;
mod hosts;
mod inject;
mod key_management;
mod overrides;
mod paths;
mod searches;
mod snapshot;
mod strip;
mod world;
