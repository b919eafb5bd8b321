//! vhost_user
