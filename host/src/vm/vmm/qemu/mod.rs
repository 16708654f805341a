//! QEMU: the portable VMM.
