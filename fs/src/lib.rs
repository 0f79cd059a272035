//! The view and its FUSE front-end.
