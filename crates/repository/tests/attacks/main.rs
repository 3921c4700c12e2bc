//! The attacks of the TUF specification (1.0, section 1.5.2), and what a broken server does, against the whole way of a
//! node: from the trust root in its OS image to the bytes in its slot, over https on loopback.
//!
//! Each test is named after its attack. Each asserts the typed refusal, that nothing unchecked reached the slot, and,
//! where an honest server could be the cause, that the node recovers by itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, unreachable_pub)]

mod channel;
mod damage;
mod keys;
mod network;
mod node;
mod prune;
mod publisher;
mod teams;
mod time;
