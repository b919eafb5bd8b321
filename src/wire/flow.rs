//! A hash of a frame's flow.
