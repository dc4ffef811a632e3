//! Loads the program, attaches it, and gives access to its maps.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aya::maps::{Map, MapData};
use aya::programs::links::LinkOrder;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions};
use aya::programs::{SchedClassifier, TcAttachType, TestRun, TestRunOptions, TestRunResult, tc};
use aya::{Ebpf, EbpfLoader};

use crate::OBJECT;
use crate::layout::{Entry, EntryAccount, Gate, RawTuple4, RawTuple6, Turn};
use crate::memory::Memory;
use crate::tuple::{Key, Tuple};

/// How many flows the maps have room for at most.
pub const MAX_FLOWS: u32 = 65_536;
/// How many gates there are.
pub const MAX_GATES: u32 = 65_536;
/// How many workers there may be.
pub const MAX_WORKERS: u16 = 256;

const PROGRAM: &str = "flowgate";

/// Why there is no kernel path.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The process lacks capabilities, or a seccomp filter forbids `bpf(2)`.
    #[error(
        "the kernel does not permit it: the process needs CAP_BPF and CAP_NET_ADMIN, and bpf(2) \
         must not be filtered"
    )]
    NotPermitted,
    /// The interface is not there.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// Something else is in the way, often that the kernel is older than 5.11.
    #[error("{0}")]
    Other(String),
}

impl LoadError {
    fn new(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut cause = Some(error);
        let mut text = String::new();
        while let Some(error) = cause {
            let io = error.downcast_ref::<std::io::Error>();
            if io.is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied) {
                return Self::NotPermitted;
            }
            // Of the verifier's log the first line says enough.
            let said = error.to_string();
            let said = said.lines().next().unwrap_or_default();
            if !text.contains(said) {
                text = if text.is_empty() { said.to_owned() } else { format!("{text}: {said}") };
            }
            cause = error.source();
        }
        Self::Other(text)
    }
}

/// How the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// By a link that ends with the process (Linux 6.6).
    Tcx,
    /// By a filter of the `clsact` queueing discipline, which a process that is killed leaves
    /// behind. The program lets everything through then, since the worker is not alive.
    Clsact,
}

/// The program in the kernel, with its maps. Goes when this is dropped.
#[derive(Debug)]
pub struct FastPath {
    ebpf: Ebpf,
    links: HashMap<String, (Hook, SchedClassifierLink)>,
    shared: Arc<Maps>,
}

#[derive(Debug)]
struct Maps {
    accounts: Memory<EntryAccount>,
    gates: Memory<Gate>,
    turns: Memory<Turn>,
    free_accounts: Mutex<Vec<u32>>,
    free_gates: Mutex<Vec<u32>>,
}

impl FastPath {
    /// Loads the program and makes its maps. Nothing is attached yet.
    pub fn load() -> Result<Self, LoadError> {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("entries4", MAX_FLOWS * 2)
            .map_max_entries("entries6", MAX_FLOWS * 2)
            .map_max_entries("accounts", MAX_FLOWS * 2)
            .map_max_entries("gates", MAX_GATES)
            .map_max_entries("turns", u32::from(MAX_WORKERS))
            .load(OBJECT)
            .map_err(|error| LoadError::new(&error))?;
        let program = classifier(&mut ebpf)?;
        program.load().map_err(|error| LoadError::new(&error))?;
        let shared = Maps {
            accounts: memory(&ebpf, "accounts", MAX_FLOWS as usize * 2)?,
            gates: memory(&ebpf, "gates", MAX_GATES as usize)?,
            turns: memory(&ebpf, "turns", usize::from(MAX_WORKERS))?,
            free_accounts: Mutex::new((0..MAX_FLOWS).rev().map(|flow| flow * 2).collect()),
            free_gates: Mutex::new((0..MAX_GATES).rev().collect()),
        };
        Ok(Self { ebpf, links: HashMap::new(), shared: Arc::new(shared) })
    }

    /// Attaches the program to an interface, if it is not yet, and says how.
    pub fn attach(&mut self, interface: &str) -> Result<Hook, LoadError> {
        if let Some((hook, _)) = self.links.get(interface) {
            return Ok(*hook);
        }
        self.attach_by(interface, Hook::Tcx).or_else(|error| match error {
            LoadError::Other(_) => self.attach_by(interface, Hook::Clsact),
            error => Err(error),
        })
    }

    /// The same, by this hook and no other.
    pub fn attach_by(&mut self, interface: &str, hook: Hook) -> Result<Hook, LoadError> {
        if nix::net::if_::if_nametoindex(interface).is_err() {
            return Err(LoadError::NoInterface(interface.to_owned()));
        }
        let program = classifier(&mut self.ebpf)?;
        let options = match hook {
            Hook::Tcx => TcAttachOptions::TcxOrder(LinkOrder::default()),
            Hook::Clsact => {
                // It may be there already; if it cannot be made, attaching fails.
                let _ = tc::qdisc_add_clsact(interface);
                // What a process that was killed has left behind.
                let _ = tc::qdisc_detach_program(interface, TcAttachType::Ingress, PROGRAM);
                TcAttachOptions::Netlink(NlOptions::default())
            }
        };
        let link = program
            .attach_with_options(interface, TcAttachType::Ingress, options)
            .and_then(|id| program.take_link(id))
            .map_err(|error| LoadError::new(&error))?;
        self.links.insert(interface.to_owned(), (hook, link));
        Ok(hook)
    }

    /// Takes the program off an interface.
    pub fn detach(&mut self, interface: &str) {
        self.links.remove(interface);
    }

    /// The interfaces that it is attached to.
    pub fn interfaces(&self) -> impl Iterator<Item = (&str, Hook)> {
        self.links.iter().map(|(name, (hook, _))| (name.as_str(), *hook))
    }

    /// Access to the maps for one thread.
    pub fn table(&self) -> Result<Table, LoadError> {
        let clone = |name| -> Result<MapData, LoadError> {
            let map = data(&self.ebpf, name)?;
            let fd =
                map.fd().as_fd().try_clone_to_owned().map_err(|error| LoadError::new(&error))?;
            MapData::from_fd(fd).map_err(|error| LoadError::new(&error))
        };
        let map = |name| clone(name).map(Map::HashMap);
        Ok(Table {
            entries4: map("entries4")?.try_into().map_err(|error| LoadError::new(&error))?,
            entries6: map("entries6")?.try_into().map_err(|error| LoadError::new(&error))?,
            shared: Arc::clone(&self.shared),
        })
    }

    /// The maps of accounts and gates, for a process that takes over: see
    /// [`InheritedMaps`](crate::InheritedMaps).
    pub fn descriptors(&self) -> Result<[OwnedFd; 2], LoadError> {
        let copy = |name| {
            let copied = data(&self.ebpf, name)?.fd().as_fd().try_clone_to_owned();
            copied.map_err(|error| LoadError::new(&error))
        };
        Ok([copy("accounts")?, copy("gates")?])
    }

    /// Runs the program on a packet, as if it had arrived, and returns what it says and what has
    /// become of the packet. `gso` is the size and number of segments of a joined packet.
    pub fn test_run(
        &mut self,
        packet: &[u8],
        gso: Option<(u32, u32)>,
    ) -> Result<(i32, Vec<u8>), LoadError> {
        // `struct __sk_buff` of linux/bpf.h: gso_segs is its 41st word, gso_size its 45th.
        let mut context = [0_u8; 192];
        if let Some((size, segments)) = gso {
            context[164..168].copy_from_slice(&segments.to_ne_bytes());
            context[176..180].copy_from_slice(&size.to_ne_bytes());
        }
        let mut out = vec![0; packet.len() + 256];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: gso.is_some().then_some(&context[..]),
            ..Default::default()
        };
        let run = self.run(options)?;
        out.truncate(run.data_size_out as usize);
        Ok((run.return_value.cast_signed(), out))
    }

    /// How long the program takes for a packet that it lets through, if that many arrive one after another.
    pub fn time(&mut self, packet: &[u8], count: u32) -> Result<Duration, LoadError> {
        let options = TestRunOptions { data_in: Some(packet), repeat: count, ..Default::default() };
        Ok(self.run(options)?.duration)
    }

    fn run(&mut self, options: TestRunOptions<'_>) -> Result<TestRunResult, LoadError> {
        let program = classifier(&mut self.ebpf)?;
        program.test_run(options).map_err(|error| LoadError::new(&error))
    }
}

fn classifier(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, LoadError> {
    let program = ebpf.program_mut(PROGRAM);
    let program = program.ok_or_else(|| LoadError::Other(format!("no program {PROGRAM}")))?;
    program.try_into().map_err(|error| LoadError::new(&error))
}

fn data<'e>(ebpf: &'e Ebpf, name: &str) -> Result<&'e MapData, LoadError> {
    match ebpf.map(name) {
        Some(Map::Array(map) | Map::HashMap(map)) => Ok(map),
        _ => Err(LoadError::Other(format!("the object has no map {name}"))),
    }
}

fn memory<T: crate::memory::Shared>(
    ebpf: &Ebpf,
    name: &str,
    count: usize,
) -> Result<Memory<T>, LoadError> {
    Memory::map(data(ebpf, name)?.fd().as_fd(), count).map_err(|error| LoadError::new(&error))
}

/// One thread's access to the maps. Several may be used at once, each for flows of its own.
#[derive(Debug)]
pub struct Table {
    entries4: aya::maps::HashMap<MapData, RawTuple4, Entry>,
    entries6: aya::maps::HashMap<MapData, RawTuple6, Entry>,
    shared: Arc<Maps>,
}

impl Table {
    /// Has packets of this tuple treated so from now on.
    pub fn insert(&mut self, tuple: &Tuple, entry: &Entry) -> Result<(), LoadError> {
        let inserted = match tuple.key() {
            Key::V4(key) => self.entries4.insert(key, entry, 0),
            Key::V6(key) => self.entries6.insert(key, entry, 0),
        };
        inserted.map_err(|error| LoadError::new(&error))
    }

    /// Has packets of this tuple go to the sockets from now on.
    pub fn remove(&mut self, tuple: &Tuple) {
        // It fails only if there is no such entry.
        let _ = match tuple.key() {
            Key::V4(key) => self.entries4.remove(&key),
            Key::V6(key) => self.entries6.remove(&key),
        };
    }

    /// Takes two accounts, this and the next one, for a flow; `None` if all are in use.
    pub fn take_accounts(&self) -> Option<u32> {
        self.shared.free_accounts.lock().ok()?.pop()
    }

    /// Gives them back. Their entries must have been gone for long enough that no packet counts
    /// there any more.
    pub fn release_accounts(&self, first: u32) {
        let free = self.shared.free_accounts.lock();
        free.into_iter().for_each(|mut free| free.push(first));
    }

    /// Takes a gate; `None` if all are in use.
    pub fn take_gate(&self) -> Option<u32> {
        self.shared.free_gates.lock().ok()?.pop()
    }

    /// Closes a gate and gives it back.
    pub fn release_gate(&self, gate: u32) {
        self.gate(gate).close();
        let free = self.shared.free_gates.lock();
        free.into_iter().for_each(|mut free| free.push(gate));
    }

    /// An account by its number.
    pub fn account(&self, number: u32) -> &EntryAccount {
        &self.shared.accounts[number as usize]
    }

    /// A gate by its number.
    pub fn gate(&self, number: u32) -> &Gate {
        &self.shared.gates[number as usize]
    }

    /// A worker's turn.
    pub fn turn(&self, worker: u16) -> &Turn {
        &self.shared.turns[usize::from(worker)]
    }
}
