//! Unix sockets: listening, connecting, passing descriptors.
