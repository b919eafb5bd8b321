//! A guest without a machine: a vhost-user frontend with real rings in a memfd.
