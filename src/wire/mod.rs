//! Views of Ethernet, IP, TCP, UDP and the virtio-net header; checksums; segmentation.
//!
//! Owns every rule about what the bytes of a frame mean. Pure functions over byte slices: no I/O,
//! no guest memory (callers pass the copy of a frame's head that was fetched once), no allocation,
//! no state, no `unsafe`.
//!
//! # Theory of operation
//!
//! 1. On ingress, [`offload::check`] turns the [`vnet::VnetHeader`] that a sender wrote into one
//!    that may go on: it promises only what the frame's own headers bear out.
//! 2. On egress, [`offload::for_receiver`] says whether a receiver takes the frame as it is. That
//!    is the common case, and no checksum is computed and nothing is cut.
//! 3. Otherwise [`gso::Plan`] describes the frames that the receiver accepts instead: the header
//!    bytes of each, and which bytes of the original are its payload. The payload itself is never
//!    touched here, so that it is still copied once, from ring to ring.
//!
//! | module | job |
//! |---|---|
//! | [`vnet`] | the virtio-net header |
//! | [`ethernet`] | MAC addresses, the Ethernet header, VLAN tags |
//! | [`headers`] | where the IP and transport headers of a frame are |
//! | [`checksum`] | the internet checksum, in pieces |
//! | [`offload`] | what a sender may ask for, what a receiver takes |
//! | [`gso`] | segmentation and checksum completion |
//! | [`flow`] | a hash of a frame's flow |
//! | [`filter`] | which frames somebody wants to see |
//! | [`hex`] | bytes as hex digits |
//! | [`summary`] | a frame in a few words |
//! | [`rarp`] | the announcement of a station that moved |

pub mod checksum;
pub mod ethernet;
pub mod filter;
pub mod flow;
pub mod gso;
pub mod headers;
pub mod hex;
pub mod offload;
pub mod rarp;
pub mod summary;
pub mod vnet;

#[cfg(test)]
mod testing;
