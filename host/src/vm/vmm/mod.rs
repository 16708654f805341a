//! vm/vmm
