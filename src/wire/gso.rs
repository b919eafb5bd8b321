//! Segmentation and checksum completion.
