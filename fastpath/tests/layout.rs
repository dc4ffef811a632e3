//! The structs in Rust lie in memory as the kernel program's do, by the BTF in its object.

use std::collections::HashMap;
use std::mem::offset_of;

use flowgate_fastpath::{Entry, EntryAccount, Gate, OBJECT, RawTuple4, RawTuple6, Turn};
use object::{Object as _, ObjectSection as _};

/// Size and members' offsets of each struct that an object's BTF knows.
type Structs = HashMap<String, (usize, Vec<(String, usize)>)>;

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four octets")) as usize
}

/// Reads BTF as Documentation/bpf/btf.rst describes it.
fn structs(btf: &[u8]) -> Structs {
    assert_eq!(u16::from_le_bytes([btf[0], btf[1]]), 0xeb9f, "BTF's magic number");
    let header = word(btf, 4);
    let types = &btf[header + word(btf, 8)..][..word(btf, 12)];
    let strings = &btf[header + word(btf, 16)..][..word(btf, 20)];
    let name = |at: usize| {
        let end = strings[at..].iter().position(|octet| *octet == 0).expect("a terminated string");
        String::from_utf8_lossy(&strings[at..at + end]).into_owned()
    };
    let mut found = Structs::new();
    let mut at = 0;
    while at < types.len() {
        let (info, size) = (word(types, at + 4), word(types, at + 8));
        let (kind, count) = (info >> 24 & 0x1f, info & 0xffff);
        let body = at + 12;
        let length = match kind {
            // Integers, variables and tags of declarations; arrays.
            1 | 14 | 17 => 4,
            3 => 12,
            // Structs and unions; enums; prototypes; sections; enums of 64 bits.
            4 | 5 | 15 | 19 => 12 * count,
            6 | 13 => 8 * count,
            // What only names another type.
            2 | 7..=12 | 16 | 18 => 0,
            kind => panic!("BTF of kind {kind}"),
        };
        if kind == 4 {
            let member = |member: usize| {
                let at = body + 12 * member;
                (name(word(types, at)), (word(types, at + 8) & 0x00ff_ffff) / 8)
            };
            found.insert(name(word(types, at)), (size, (0..count).map(member).collect()));
        }
        at = body + length;
    }
    found
}

macro_rules! assert_layout {
    ($structs:expr, $name:literal, $rust:ty, [$($field:ident),*]) => {
        let (size, members) = &$structs[$name];
        assert_eq!(*size, size_of::<$rust>(), "the size of {}", $name);
        let ours = [$((stringify!($field).to_owned(), offset_of!($rust, $field))),*];
        assert_eq!(members[..], ours[..], "the members of {}", $name);
    };
}

#[test]
fn structs_are_laid_out_as_the_kernel_program_has_them() {
    let object = object::File::parse(OBJECT).expect("an ELF object");
    let btf = object.section_by_name(".BTF").expect("BTF").data().expect("its octets");
    let structs = structs(btf);
    let tuple = ["source", "destination", "source_port", "destination_port"];
    assert_eq!(structs["tuple4"].1.iter().map(|m| m.0.as_str()).collect::<Vec<_>>(), tuple);
    assert_layout!(
        structs,
        "tuple4",
        RawTuple4,
        [source, destination, source_port, destination_port]
    );
    assert_layout!(
        structs,
        "tuple6",
        RawTuple6,
        [source, destination, source_port, destination_port]
    );
    assert_layout!(
        structs,
        "entry",
        Entry,
        [
            source,
            destination,
            source_port,
            destination_port,
            address_change,
            port_change,
            account,
            gate,
            epoch,
            ifindex,
            next_hop,
            next_hop_family,
            max_len,
            worker,
            pending
        ]
    );
    assert_layout!(structs, "account", EntryAccount, [datagrams, bytes, last_ns, passed_ns]);
    assert_layout!(structs, "turn", Turn, [done_ns, alive_ns]);
    assert_eq!(structs["gate"].0, size_of::<Gate>());
    assert_eq!(structs["gate"].1[0], ("epoch".to_owned(), 0));
}
