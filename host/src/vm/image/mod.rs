//! vm/image
