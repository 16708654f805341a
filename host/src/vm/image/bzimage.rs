//! Takes the kernel out of its boot wrapping.
//!
//! A distribution ships a bzImage: real-mode setup code, a stub that decompresses, and the compressed
//! vmlinux. A VMM starts a vmlinux directly (PVH), which is faster and spares the guest the
//! decompression. The layout is the boot protocol, `Documentation/arch/x86/boot.rst`:
//!
//! ```text
//!   0x1f1 setup_sects   0x202 "HdrS"   0x206 version   0x20e kernel_version
//!   0x248 payload_offset, 0x24c payload_length: counted from the protected-mode code,
//!                                               which starts at (setup_sects + 1) * 512
//! ```
//!
//! The payload is the compressed vmlinux followed by its size as a `u32` (`size_append` in
//! `scripts/Makefile.lib`; gzip's own trailer is the same four bytes). Nothing here trusts the file:
//! offsets are checked and the result is limited in size.

use super::compression::{Compression, DecompressError};
use super::elf::Elf;

/// More than any kernel, and little enough to hold in memory.
const MAX_VMLINUX: usize = 512 << 20;

/// The first version of the boot protocol with the two payload fields.
const PAYLOAD_VERSION: u16 = 0x0208;

/// Why a file is not a kernel that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExtractError {
    /// Neither an ELF file nor a bzImage.
    #[error("it is neither a bzImage nor a vmlinux")]
    NotAKernel,
    /// A bzImage of before 2008.
    #[error("its boot protocol {major}.{minor:02} is too old")]
    OldProtocol {
        /// The protocol's major version.
        major: u8,
        /// The protocol's minor version.
        minor: u8,
    },
    /// The header points outside the file.
    #[error("its header points outside the file")]
    OutOfBounds,
    /// Compressed with something else.
    #[error("it is compressed in a way that is not supported (gzip, xz, zstd and lz4 are)")]
    UnknownCompression,
    /// The payload cannot be decompressed.
    #[error("cannot decompress it")]
    Decompress(#[source] DecompressError),
    /// The payload's size is not what its trailer says.
    #[error("it decompresses to {got} bytes instead of {expected}")]
    WrongSize {
        /// What the trailer says.
        expected: usize,
        /// What came out.
        got: usize,
    },
    /// What came out is not a kernel.
    #[error("what it contains is not an ELF file for x86-64")]
    NotElf,
    /// The kernel cannot be started directly.
    #[error("it has no entry point for a VMM (a kernel built with CONFIG_PVH has)")]
    NoPvhEntry,
}

/// Returns the vmlinux that `image`, a bzImage or a vmlinux, holds.
pub(super) fn extract_vmlinux(image: Vec<u8>) -> Result<Vec<u8>, ExtractError> {
    let vmlinux = if image.starts_with(b"\x7fELF") { image } else { decompress(&image)? };
    let elf = Elf::parse(&vmlinux).ok_or(ExtractError::NotElf)?;
    if !elf.has_pvh_entry() {
        return Err(ExtractError::NoPvhEntry);
    }
    Ok(vmlinux)
}

/// The release (`uname -r`) that a bzImage names in its header; a vmlinux has none at a fixed place.
pub(super) fn release(image: &[u8]) -> Option<String> {
    let header = Header::parse(image).ok()?;
    // "pointer to a NUL-terminated human-readable kernel version number string, less 0x200"
    let text = image.get(usize::from(header.u16(0x20e).ok()?).checked_add(0x200)?..)?;
    let end = text.iter().take(512).position(|byte| *byte == 0)?;
    let release = std::str::from_utf8(&text[..end]).ok()?.split(' ').next()?;
    // It becomes part of a path.
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-~".contains(c);
    (release.starts_with(|c: char| c.is_ascii_digit()) && release.chars().all(plain))
        .then(|| release.to_owned())
}

fn decompress(image: &[u8]) -> Result<Vec<u8>, ExtractError> {
    let payload = Header::parse(image)?.payload()?;
    let (packed, size) = payload.split_last_chunk::<4>().ok_or(ExtractError::OutOfBounds)?;
    let expected = u32::from_le_bytes(*size) as usize;
    let Some(format) = Compression::detect(packed) else {
        // A kernel may be stored as it is (CONFIG_KERNEL_UNCOMPRESSED).
        return if packed.starts_with(b"\x7fELF") {
            Ok(packed.to_vec())
        } else {
            Err(ExtractError::UnknownCompression)
        };
    };
    let packed = if format == Compression::Gzip { payload } else { packed };
    let vmlinux = format.decompress(packed, MAX_VMLINUX).map_err(ExtractError::Decompress)?;
    if vmlinux.len() != expected {
        return Err(ExtractError::WrongSize { expected, got: vmlinux.len() });
    }
    Ok(vmlinux)
}

/// A bzImage whose signature and protocol version have been checked.
struct Header<'a> {
    image: &'a [u8],
}

impl<'a> Header<'a> {
    fn parse(image: &'a [u8]) -> Result<Self, ExtractError> {
        if image.get(0x202..0x206) != Some(b"HdrS") {
            return Err(ExtractError::NotAKernel);
        }
        let header = Self { image };
        let version = header.u16(0x206)?;
        if version < PAYLOAD_VERSION {
            let [minor, major] = version.to_le_bytes();
            return Err(ExtractError::OldProtocol { major, minor });
        }
        Ok(header)
    }

    fn payload(&self) -> Result<&'a [u8], ExtractError> {
        let sectors = match self.field::<1>(0x1f1)? {
            // "For backwards compatibility, if the setup_sects field contains 0, the real value is 4."
            [0] => 4,
            [sectors] => usize::from(sectors),
        };
        let start = (sectors + 1) * 512;
        let offset = u32::from_le_bytes(self.field(0x248)?) as usize;
        let length = u32::from_le_bytes(self.field(0x24c)?) as usize;
        let start = start.checked_add(offset).ok_or(ExtractError::OutOfBounds)?;
        let end = start.checked_add(length).ok_or(ExtractError::OutOfBounds)?;
        self.image.get(start..end).ok_or(ExtractError::OutOfBounds)
    }

    fn u16(&self, at: usize) -> Result<u16, ExtractError> {
        self.field(at).map(u16::from_le_bytes)
    }

    fn field<const N: usize>(&self, at: usize) -> Result<[u8; N], ExtractError> {
        self.image.get(at..).and_then(|rest| rest.first_chunk().copied()).ok_or(ExtractError::OutOfBounds)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::compression::tests::{ALL, compress};
    use super::super::elf;
    use super::*;
    use proptest::prelude::*;

    /// A bzImage of one setup sector around `packed`, which carries its own trailer.
    fn wrap(packed: &[u8], release: &str) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&64_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(packed.len() as u32).to_le_bytes());
        let text = format!("{release} (builder@example.org) #1 SMP\0");
        image[0x300..0x300 + text.len()].copy_from_slice(text.as_bytes());
        image.extend_from_slice(&[0x90; 64]);
        image.extend_from_slice(packed);
        image.extend_from_slice(&[0; 32]);
        image
    }

    /// A bzImage of `vmlinux`.
    pub(in super::super) fn bzimage(format: Compression, vmlinux: &[u8], release: &str) -> Vec<u8> {
        let mut packed = compress(format, vmlinux);
        if format != Compression::Gzip {
            packed.extend_from_slice(&(vmlinux.len() as u32).to_le_bytes());
        }
        wrap(&packed, release)
    }

    #[test]
    fn a_kernel_comes_out_of_every_wrapping() {
        let mut kernel = elf::tests::kernel();
        kernel.extend((0..60_000).map(|i| (i % 251) as u8));
        for format in ALL {
            let image = bzimage(format, &kernel, "6.1.0-1-cloud-amd64");
            assert_eq!(release(&image).as_deref(), Some("6.1.0-1-cloud-amd64"));
            assert!(extract_vmlinux(image).unwrap() == kernel, "{format}");
        }
        assert!(extract_vmlinux(kernel.clone()).unwrap() == kernel, "as it is");
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let refusal = |image: Vec<u8>| extract_vmlinux(image).unwrap_err();
        assert!(matches!(refusal(b"#!/bin/sh".to_vec()), ExtractError::NotAKernel));
        assert!(matches!(refusal(wrap(b"BZh9 and more", "6.1")), ExtractError::UnknownCompression));
        assert!(matches!(refusal(b"\x7fELF".to_vec()), ExtractError::NotElf));
        assert!(matches!(refusal(elf::tests::static_program(b"x")), ExtractError::NoPvhEntry));

        let good = bzimage(Compression::Lz4Legacy, &elf::tests::kernel(), "6.1");
        let mut old = good.clone();
        old[0x206] = 7;
        assert!(matches!(refusal(old), ExtractError::OldProtocol { major: 2, minor: 7 }));
        let mut cut = good.clone();
        cut.truncate(1100);
        assert!(matches!(refusal(cut), ExtractError::OutOfBounds));
        let mut huge = good;
        huge[0x248..0x250].fill(0xff);
        assert!(matches!(refusal(huge), ExtractError::OutOfBounds));
    }

    #[test]
    fn a_wrong_size_is_noticed() {
        let mut packed = compress(Compression::Xz, &elf::tests::kernel());
        packed.extend_from_slice(&7_u32.to_le_bytes());
        assert!(matches!(
            extract_vmlinux(wrap(&packed, "6.1")).unwrap_err(),
            ExtractError::WrongSize { expected: 7, .. }
        ));
    }

    #[test]
    fn a_release_cannot_leave_its_directory() {
        for hostile in ["../../etc", "6.1/../x", "", "amd64"] {
            assert_eq!(release(&wrap(b"", hostile)), None, "{hostile:?}");
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(data in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = release(&data);
            let _ = extract_vmlinux(data);
        }

        #[test]
        fn a_damaged_header_never_panics(
            damage in proptest::collection::vec((0x1f1_usize..0x260, any::<u8>()), 1..8), length in 0_usize..1500,
        ) {
            let mut image = bzimage(Compression::Lz4Legacy, &elf::tests::kernel(), "6.1.0");
            for (at, byte) in damage { image[at] = byte; }
            image.truncate(length);
            let _ = release(&image);
            let _ = extract_vmlinux(image);
        }
    }
}
