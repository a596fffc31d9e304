//! Claviger's promises, each kept by the real binary: one file per promise. The
//! proxy, the mock API and the clients are processes of their own; nothing in here
//! shares a line with the code under test.

mod harness;
