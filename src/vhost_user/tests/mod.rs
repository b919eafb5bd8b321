//! Frontends that play QEMU, Cloud Hypervisor, and worse, against a real socket and real rings.

mod frontend;
mod hostile;
mod lifecycle;
mod protocol;
mod session;
