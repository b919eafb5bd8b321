//! Ringswitch: an in-host network switch for virtual machines.
//!
//! One process serves the NIC of every guest of a host over vhost-user. A frame between two
//! guests of the host is copied once, from the sender's TX buffers to the receiver's RX buffers.
//!
//! # Code map
//!
//! Imports go only towards the left; modules of one group never import each other:
//!
//! `sys wire config api | mem table logs | frame | ring | stage port vhost_user | worker | control | main`
//!
//! | module | job |
//! |---|---|
//! | [`sys`] | system calls as safe types: epoll, taps, sockets, signals |
//! | [`wire`] | views of Ethernet, IP, TCP, UDP and the virtio-net header; checksums; segmentation |
//! | [`config`] | raw settings to validated settings |
//! | [`api`] | what the API says: types |
//! | [`mem`] | guest memory: regions, translation, segments, the copy, the dirty log |
//! | [`table`] | the MAC table |
//! | [`logs`] | the log: forms, limits |
//! | [`frame`] | `Frame`, `Burst`, `Verdict`, `DropReason`, `PortId` |
//! | [`ring`] | virtqueues, device side |
//! | [`vhost_user`] | the protocol: messages to ring and memory changes |
//! | [`port`] | vhost-user and TAP ports: bursts in, bursts out, offload conversion |
//! | [`stage`] | decisions over a burst |
//! | [`worker`] | the poll loop, the pipeline, statistics |
//! | [`control`] | builds the switch from settings, runs it, ends it |
//!
//! `unsafe` is allowed in `sys`, `mem` and `ring` only.
#![deny(unsafe_code)]

pub mod api;
pub mod config;
pub mod control;
pub mod frame;
pub mod logs;
#[allow(unsafe_code)]
pub mod mem;
pub mod port;
#[allow(unsafe_code)]
pub mod ring;
pub mod stage;
#[allow(unsafe_code)]
pub mod sys;
pub mod table;
pub mod vhost_user;
pub mod wire;
pub mod worker;
