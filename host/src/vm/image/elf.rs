//! The little that is asked of ELF files here: is it a static program, has a kernel an entry point
//! for a VMM, what does a module say about itself.
//!
//! Layouts are those of the System V ABI ("ELF-64 Object File Format"). Every offset is checked, and
//! a file that makes no sense simply has nothing to offer: the callers turn `None` into their errors.

const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const EM_X86_64: u16 = 62;

/// The note that holds the 32-bit entry point for a direct boot (`XEN_ELFNOTE_PHYS32_ENTRY`,
/// `include/xen/interface/elfnote.h`). QEMU and cloud-hypervisor start a vmlinux through it only.
const PVH_ENTRY: u32 = 18;

/// A 64-bit little-endian x86-64 ELF file in memory.
pub(super) struct Elf<'a> {
    data: &'a [u8],
}

/// One table entry that points at bytes: a segment or a section.
struct Extent<'a> {
    kind: u32,
    name: u32,
    data: &'a [u8],
}

impl<'a> Elf<'a> {
    /// `None` when `data` is not an ELF file for x86-64.
    pub(super) fn parse(data: &'a [u8]) -> Option<Self> {
        let elf = Self { data };
        let known = data.starts_with(b"\x7fELF\x02\x01\x01") && elf.u16(18)? == EM_X86_64 && data.len() >= 64;
        known.then_some(elf)
    }

    /// Whether the program asks for a dynamic linker.
    pub(super) fn has_interpreter(&self) -> bool {
        self.segments().any(|segment| segment.kind == PT_INTERP)
    }

    /// Whether the kernel can be started by a VMM without its bzImage wrapping.
    pub(super) fn has_pvh_entry(&self) -> bool {
        self.segments().filter(|segment| segment.kind == PT_NOTE).any(|segment| notes_hold_pvh(segment.data))
    }

    /// The bytes of the section called `name`.
    pub(super) fn section(&self, name: &str) -> Option<&'a [u8]> {
        let names = self.sections().nth(usize::from(self.u16(62)?))?.data;
        self.sections()
            .find(|section| {
                names
                    .get(section.name as usize..)
                    .and_then(|rest| rest.strip_prefix(name.as_bytes()))
                    .is_some_and(|rest| rest.first() == Some(&0))
            })
            .map(|section| section.data)
    }

    fn segments(&self) -> impl Iterator<Item = Extent<'a>> {
        self.table(32, 54, 56, |elf, at| {
            Some(Extent {
                kind: elf.u32(at)?,
                name: 0,
                data: elf.bytes(elf.u64(at + 8)?, elf.u64(at + 32)?)?,
            })
        })
    }

    fn sections(&self) -> impl Iterator<Item = Extent<'a>> {
        self.table(40, 58, 60, |elf, at| {
            let (kind, name) = (elf.u32(at + 4)?, elf.u32(at)?);
            // A section without bytes in the file keeps its place: section numbers count it.
            let data = elf.bytes(elf.u64(at + 24)?, elf.u64(at + 32)?).unwrap_or_default();
            Some(Extent { kind, name, data })
        })
    }

    /// Walks a table whose offset, entry size and entry count stand at these places of the header.
    fn table(
        &self,
        offset: usize,
        size: usize,
        count: usize,
        entry: impl Fn(&Elf<'a>, usize) -> Option<Extent<'a>>,
    ) -> impl Iterator<Item = Extent<'a>> {
        let start = self.u64(offset).and_then(|start| usize::try_from(start).ok()).unwrap_or(usize::MAX);
        let size = usize::from(self.u16(size).unwrap_or_default());
        let count = usize::from(self.u16(count).unwrap_or_default());
        let elf = Elf { data: self.data };
        (0..count).map_while(move |index| {
            let at = start.checked_add(index.checked_mul(size)?)?;
            (at < elf.data.len()).then(|| entry(&elf, at)).flatten()
        })
    }

    fn bytes(&self, offset: u64, length: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(offset).ok()?;
        self.data.get(start..start.checked_add(usize::try_from(length).ok()?)?)
    }

    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.data.get(at..)?.first_chunk().copied()
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }
}

/// Notes are `name length, data length, type`, then both padded to four bytes.
fn notes_hold_pvh(mut notes: &[u8]) -> bool {
    let word = |notes: &[u8], at: usize| notes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes);
    while let (Some(name), Some(data), Some(kind)) = (word(notes, 0), word(notes, 4), word(notes, 8)) {
        if kind == PVH_ENTRY && notes[12..].starts_with(b"Xen\0") {
            return true;
        }
        let next = 12 + (name as usize).next_multiple_of(4) + (data as usize).next_multiple_of(4);
        notes = notes.get(next..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(segments: u16, sections: u16) -> Vec<u8> {
        let mut out = vec![0; 64];
        out[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        out[18..20].copy_from_slice(&EM_X86_64.to_le_bytes());
        out[54..56].copy_from_slice(&56_u16.to_le_bytes());
        out[56..58].copy_from_slice(&segments.to_le_bytes());
        out[58..60].copy_from_slice(&64_u16.to_le_bytes());
        out[60..62].copy_from_slice(&sections.to_le_bytes());
        out
    }

    /// A program or kernel with one segment.
    fn with_segment(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut out = header(1, 0);
        out[32..40].copy_from_slice(&64_u64.to_le_bytes());
        let mut segment = vec![0; 56];
        segment[..4].copy_from_slice(&kind.to_le_bytes());
        segment[8..16].copy_from_slice(&120_u64.to_le_bytes());
        segment[32..40].copy_from_slice(&(data.len() as u64).to_le_bytes());
        out.extend_from_slice(&segment);
        out.extend_from_slice(data);
        out
    }

    /// The smallest thing that passes for a kernel.
    pub(in super::super) fn kernel() -> Vec<u8> {
        let mut note = Vec::new();
        for word in [4, 4, PVH_ENTRY] {
            note.extend_from_slice(&word.to_le_bytes());
        }
        note.extend_from_slice(b"Xen\0\0\0\0\x01");
        with_segment(PT_NOTE, &note)
    }

    /// The smallest thing that passes for a static program; `content` tells two apart.
    pub(in super::super) fn static_program(content: &[u8]) -> Vec<u8> {
        with_segment(1, content)
    }

    /// A program that needs a dynamic linker.
    pub(in super::super) fn dynamic_program() -> Vec<u8> {
        with_segment(PT_INTERP, b"/lib64/ld-linux-x86-64.so.2\0")
    }

    /// A kernel module that says `info` about itself, as `key=value` strings.
    pub(in super::super) fn module(info: &[&str]) -> Vec<u8> {
        let names = b"\0.modinfo\0";
        let info: Vec<u8> = info.iter().flat_map(|line| line.bytes().chain([0])).collect();
        let mut out = header(0, 2);
        out[40..48].copy_from_slice(&64_u64.to_le_bytes());
        let at = 64 + 128;
        for (name, offset, length) in [(0_u32, at, names.len()), (1, at + names.len(), info.len())] {
            let mut section = vec![0; 64];
            section[..4].copy_from_slice(&name.to_le_bytes());
            section[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
            section[32..40].copy_from_slice(&(length as u64).to_le_bytes());
            out.extend_from_slice(&section);
        }
        out.extend_from_slice(names);
        out.extend_from_slice(&info);
        out
    }

    #[test]
    fn a_kernel_and_programs_are_told_apart() {
        let (kernel, fixed, dynamic) = (kernel(), static_program(b"x"), dynamic_program());
        assert!(Elf::parse(&kernel).unwrap().has_pvh_entry());
        assert!(!Elf::parse(&fixed).unwrap().has_pvh_entry());
        assert!(!Elf::parse(&fixed).unwrap().has_interpreter());
        assert!(Elf::parse(&dynamic).unwrap().has_interpreter());
    }

    #[test]
    fn a_section_is_found_by_its_whole_name() {
        let module = module(&["depends=virtio"]);
        let elf = Elf::parse(&module).unwrap();
        assert_eq!(elf.section(".modinfo"), Some(&b"depends=virtio\0"[..]));
        assert_eq!(elf.section(".modin"), None);
    }

    proptest! {
        #[test]
        fn a_damaged_file_never_panics(
            at in proptest::collection::vec((0_usize..250, any::<u8>()), 0..20), length in 0_usize..300,
        ) {
            for mut data in [kernel(), module(&["depends=a,b", "name=c"])] {
                for (at, byte) in &at {
                    if let Some(place) = data.get_mut(*at) { *place = *byte; }
                }
                data.truncate(length);
                if let Some(elf) = Elf::parse(&data) {
                    let _ = (elf.has_pvh_entry(), elf.has_interpreter(), elf.section(".modinfo"));
                }
            }
        }
    }
}
