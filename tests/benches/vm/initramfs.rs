//! The floor's initramfs: firn's own, with another init and a shorter list of modules.

/// What the floor's init needs to have loaded, besides the bus its devices are on.
const MODULES: &[&str] = &["virtio", "virtio_ring", "fuse", "virtiofs", "overlay"];

/// The length of a header of cpio's "newc" format, and where the size of the file is in it.
const HEADER: usize = 110;
const SIZE: std::ops::Range<usize> = 54..62;
const NAME: std::ops::Range<usize> = 94..102;

/// `bus` begins the names of the modules of the bus: `virtio_mmio`, `virtio_pci`. The size stays
/// as it is, unless `init` is larger than the agent.
pub(crate) fn floor(archive: &[u8], init: &[u8], bus: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(archive.len());
    let mut at = 0;
    while archive[at..].starts_with(b"070701") {
        let number = |field: std::ops::Range<usize>| {
            let text = std::str::from_utf8(&archive[at + field.start..at + field.end]).expect("hexadecimal");
            usize::from_str_radix(text, 16).expect("hexadecimal")
        };
        let name_end = at + HEADER + number(NAME);
        let name = archive[at + HEADER..name_end - 1].to_vec();
        let start = name_end.next_multiple_of(4);
        let content = &archive[start..start + number(SIZE)];
        let replaced = match name.as_slice() {
            b"init" => {
                let mut init = init.to_vec();
                init.resize(init.len().max(content.len()), 0);
                init
            }
            b"modules/order" => {
                let order = std::str::from_utf8(content).expect("names of modules").lines();
                let needed = |name: &str| {
                    name.starts_with(bus) || MODULES.iter().any(|module| name == format!("{module}.ko"))
                };
                order
                    .filter(|name| needed(name))
                    .flat_map(|name| [name, "\n"])
                    .collect::<String>()
                    .into_bytes()
            }
            _ => content.to_vec(),
        };
        out.extend_from_slice(&archive[at..at + SIZE.start]);
        out.extend_from_slice(format!("{:08x}", replaced.len()).as_bytes());
        out.extend_from_slice(&archive[at + SIZE.end..name_end]);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(&replaced);
        out.resize(out.len().next_multiple_of(4), 0);
        at = (start + content.len()).next_multiple_of(4).min(archive.len());
        if name == b"TRAILER!!!" {
            break;
        }
    }
    out
}
