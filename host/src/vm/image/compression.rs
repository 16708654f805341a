//! Decompresses what kernels and kernel modules are packed with: gzip, xz, zstd and the legacy
//! format of lz4.
//!
//! Called by [`bzimage`](super::bzimage) for the kernel and by [`modules`](super::modules) for
//! `.ko.*` files. It works on bytes in memory, and every output has a limit, so a small file cannot
//! fill the host's memory. It does not know where the bytes come from.

use std::fmt;
use std::io::Read;

/// The magic number of the legacy lz4 format (lz4 `doc/lz4_Frame_format.md`, "Legacy frame"),
/// which is what the kernel's build uses (`lz4 -l`).
const LZ4_LEGACY_MAGIC: [u8; 4] = 0x184C_2102_u32.to_le_bytes();

/// What one block of the legacy lz4 format holds at most when decompressed.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

/// The kernel's build runs `zstd -22 --ultra` on a pipe, which asks for a window of 128 MiB; the
/// decoder's own limit is lower.
const ZSTD_WINDOW: u64 = 128 << 20;

/// What the xz decoder may use: the kernel's dictionary is up to 128 MiB.
const XZ_MEMORY: u64 = 192 << 20;

/// How some bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Xz,
    Zstd,
    Lz4Legacy,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4Legacy => "lz4",
        })
    }
}

/// Why bytes could not be decompressed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecompressError {
    /// The decoder refused the stream.
    #[error("cannot read the {format} stream")]
    Decode {
        /// What the stream claims to be.
        format: &'static str,
        /// What the decoder says.
        #[source]
        source: std::io::Error,
    },
    /// The stream ends within a block.
    #[error("the {format} stream is cut off")]
    Truncated {
        /// What the stream claims to be.
        format: &'static str,
    },
    /// More came out than is allowed.
    #[error("it holds more than {limit} bytes")]
    TooBig {
        /// The limit, in bytes.
        limit: usize,
    },
}

impl Compression {
    /// Tells by the magic number, or `None` when there is none that is known here.
    pub(super) fn detect(data: &[u8]) -> Option<Self> {
        match data {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            _ if data.starts_with(&LZ4_LEGACY_MAGIC) => Some(Self::Lz4Legacy),
            _ => None,
        }
    }

    /// Decompresses `data`, whose result may be at most `limit` bytes long.
    pub(super) fn decompress(self, data: &[u8], limit: usize) -> Result<Vec<u8>, DecompressError> {
        match self {
            Self::Gzip => read_limited("gzip", flate2::read::GzDecoder::new(data), limit),
            Self::Xz => {
                let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0)
                    .map_err(|error| DecompressError::Decode { format: "xz", source: error.into() })?;
                read_limited("xz", liblzma::read::XzDecoder::new_stream(data, stream), limit)
            }
            Self::Zstd => {
                let decoder = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(data, ZSTD_WINDOW)
                    .map_err(|error| DecompressError::Decode {
                        format: "zstd",
                        source: std::io::Error::other(error),
                    })?;
                read_limited("zstd", decoder, limit)
            }
            Self::Lz4Legacy => lz4_legacy(data, limit),
        }
    }
}

fn read_limited(format: &'static str, reader: impl Read, limit: usize) -> Result<Vec<u8>, DecompressError> {
    let mut out = Vec::new();
    // One byte more than allowed tells "exactly the limit" from "cut at the limit".
    let read = reader.take(limit as u64 + 1).read_to_end(&mut out);
    read.map_err(|source| DecompressError::Decode { format, source })?;
    if out.len() > limit {
        return Err(DecompressError::TooBig { limit });
    }
    Ok(out)
}

/// Blocks of `u32` little-endian length and data, until the input ends; the magic number may come
/// again between blocks, where files were joined.
fn lz4_legacy(mut data: &[u8], limit: usize) -> Result<Vec<u8>, DecompressError> {
    const FORMAT: &str = "lz4";
    let truncated = || DecompressError::Truncated { format: FORMAT };
    let mut out = Vec::new();
    let mut block = vec![0; LZ4_LEGACY_BLOCK];
    while !data.is_empty() {
        let (word, rest) = data.split_first_chunk::<4>().ok_or_else(truncated)?;
        if *word == LZ4_LEGACY_MAGIC {
            data = rest;
            continue;
        }
        let length = u32::from_le_bytes(*word) as usize;
        let packed = rest.get(..length).ok_or_else(truncated)?;
        let written = lz4_flex::block::decompress_into(packed, &mut block).map_err(|error| {
            DecompressError::Decode { format: FORMAT, source: std::io::Error::other(error) }
        })?;
        if out.len() + written > limit {
            return Err(DecompressError::TooBig { limit });
        }
        out.extend_from_slice(&block[..written]);
        data = &rest[length..];
    }
    Ok(out)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    pub(in super::super) const ALL: [Compression; 4] =
        [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Lz4Legacy];

    /// Packs `data` as the kernel's build would.
    pub(in super::super) fn compress(format: Compression, data: &[u8]) -> Vec<u8> {
        match format {
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Zstd => {
                ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
            }
            Compression::Lz4Legacy => {
                let mut out = LZ4_LEGACY_MAGIC.to_vec();
                for block in data.chunks(LZ4_LEGACY_BLOCK) {
                    let packed = lz4_flex::block::compress(block);
                    out.extend_from_slice(&(packed.len() as u32).to_le_bytes());
                    out.extend_from_slice(&packed);
                }
                out
            }
        }
    }

    fn sample(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i / 7 % 251) as u8).collect()
    }

    #[test]
    fn every_format_comes_back() {
        for format in ALL {
            // Longer than one lz4 block would be slow in a debug build for the others.
            let data = sample(if format == Compression::Lz4Legacy { LZ4_LEGACY_BLOCK + 77 } else { 70_000 });
            let packed = compress(format, &data);
            assert_eq!(Compression::detect(&packed), Some(format));
            assert!(format.decompress(&packed, data.len()).unwrap() == data, "{format}");
        }
    }

    /// Written by the programs that the kernel's build runs, on pipes and with its options
    /// (`scripts/Makefile.lib`, `scripts/xz_wrap.sh`): a zstd window and an xz dictionary of 128 MiB,
    /// an xz filter for x86.
    #[test]
    fn what_the_kernels_build_writes_is_read() {
        const ZSTD_22_ULTRA: &[u8] = b"\x28\xb5\x2f\xfd\x04\x88\x65\x00\x00\x28\x66\x69\x72\x6e\x20\x01\x00\x40\x50\x45\x0b\x56\x57\x37\
            \x52";
        const XZ_X86: &[u8] = b"\xfd\x37\x7a\x58\x5a\x00\x00\x01\x69\x22\xde\x36\x02\x01\x04\x00\x21\x01\x1e\x00\x05\x0c\xec\xd7\
            \xe0\x00\xc7\x00\x0b\x5d\x00\x33\x1a\x4a\xab\x9e\xd2\x5f\xa5\x65\x80\x00\x00\x00\x9d\x77\xeb\x53\
            \x00\x01\x23\xc8\x01\x00\x00\x00\x3a\x67\xb4\x23\x3e\x30\x0d\x8b\x02\x00\x00\x00\x00\x01\x59\x5a";
        const LZ4_LEGACY_9: &[u8] =
            b"\x02\x21\x4c\x18\x0f\x00\x00\x00\x5f\x66\x69\x72\x6e\x20\x05\x00\xab\x50\x66\x69\x72\x6e\x20";
        for packed in [ZSTD_22_ULTRA, XZ_X86, LZ4_LEGACY_9] {
            let format = Compression::detect(packed).unwrap();
            assert!(format.decompress(packed, 200).unwrap() == b"firn ".repeat(40), "{format}");
        }
    }

    #[test]
    fn a_limit_is_a_limit() {
        for format in ALL {
            let packed = compress(format, &sample(5000));
            let error = format.decompress(&packed, 4999).unwrap_err();
            assert!(matches!(error, DecompressError::TooBig { limit: 4999 }), "{format}: {error:?}");
        }
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        for format in ALL {
            let packed = compress(format, &sample(5000));
            assert!(format.decompress(&packed[..packed.len() - 6], 1 << 20).is_err(), "{format}");
        }
    }

    proptest! {
        #[test]
        fn noise_behind_a_magic_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            for format in ALL {
                let mut data = compress(format, b"");
                data.truncate(6);
                data.extend_from_slice(&noise);
                let _ = format.decompress(&data, 1 << 20);
            }
        }
    }
}
