//! A recording as bytes: a mark, and blocks that each have a checksum. One that is cut short, or damaged,
//! is read up to there.

use std::io::{self, Read};

use flowgate_core::config::ManagerConfig;
use flowgate_core::snapshot::{self, ManagerSnapshot, SnapshotError};
use serde::{Deserialize, Serialize};

use crate::recording::codec::InputPiece;
use crate::recording::digest::Digest;

/// What every recording begins with.
pub const MAGIC: &[u8; 8] = b"flowgrec";

/// The format that this version writes and reads.
pub const VERSION: u16 = 1;

/// Kind, flags, shard, length and checksum.
const HEADER: usize = 1 + 1 + 4 + 4 + 8;

/// How long a block may be.
const MAX_BLOCK: u32 = 1 << 30;

const HEAD: u8 = 1;
const START: u8 = 2;
const INPUTS: u8 = 3;
const GAP: u8 = 4;
const END: u8 = 5;

/// Counting restarts with this block.
const FRESH: u8 = 1;

/// What a recording is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecordingHead {
    /// The version of Flowgate that has made it.
    pub flowgate: String,
    /// When it began, in seconds since 1970 (UTC).
    pub time: f64,
    /// Which share of the clients is in it.
    pub sample: f64,
    /// Whether clients' addresses are others than they were.
    pub anonymised: bool,
}

/// Where a shard stood when its recording began.
#[derive(Debug, Serialize, Deserialize)]
pub struct RecordingStart {
    /// The name of the listener.
    pub listener: String,
    /// The name of its cluster.
    pub cluster: String,
    /// How its manager stood.
    pub state: StartState,
}

/// How a manager stood.
#[derive(Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "there is one for each shard of a recording")]
pub enum StartState {
    /// All that it knew: what follows has the same decided again.
    Whole(ManagerSnapshot),
    /// What it was told to do: not all clients are in what follows, or by other addresses.
    Config(ManagerConfig),
}

/// A part of a recording.
#[derive(Debug)]
pub enum RecordingBlock {
    /// What it is.
    Head(RecordingHead),
    /// The recording of a shard begins, or begins again.
    Start(u32, Box<RecordingStart>),
    /// What a shard's manager was told.
    Inputs {
        /// The shard.
        shard: u32,
        /// The inputs.
        piece: InputPiece,
        /// The sum over all that was emitted since the start, up to the end of these inputs.
        outputs: u64,
    },
    /// How many inputs of a shard are missing here.
    Gap(u32, u64),
    /// It has ended as it was meant to.
    End,
}

/// Why something is no recording that can be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// It does not begin as one does.
    #[error("this is not a recording of flowgate")]
    NoRecording,
    /// Another version has written it.
    #[error("the recording has format {0}, and this version reads format {VERSION}")]
    OtherVersion(u16),
    /// What it starts from cannot be read.
    #[error("what the recording starts from: {0}")]
    Snapshot(#[from] SnapshotError),
    /// It cannot be read at all.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// How far a recording could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordingExtent {
    /// To its end.
    Whole,
    /// Up to this byte, behind which the rest is missing.
    Cut(u64),
    /// Up to this byte, behind which something else is than was written.
    Damaged(u64),
}

/// The first bytes of a file.
pub fn preamble() -> Vec<u8> {
    [&MAGIC[..], &VERSION.to_le_bytes()].concat()
}

impl RecordingBlock {
    /// The block as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Head(head) => {
                // Plain data is JSON.
                block(HEAD, 0, 0, &[&serde_json::to_vec(head).unwrap_or_default()])
            }
            Self::Start(shard, start) => block(START, 0, *shard, &[&snapshot::encode(&**start)]),
            Self::Inputs { shard, piece, outputs } => {
                let flags = if piece.is_fresh { FRESH } else { 0 };
                let (count, sum) = (piece.inputs.to_le_bytes(), outputs.to_le_bytes());
                block(INPUTS, flags, *shard, &[&count, &sum, &piece.bytes])
            }
            Self::Gap(shard, inputs) => block(GAP, 0, *shard, &[&inputs.to_le_bytes()]),
            Self::End => block(END, 0, 0, &[]),
        }
    }

    fn parse(
        kind: u8,
        flags: u8,
        shard: u32,
        body: Vec<u8>,
    ) -> Result<Option<Self>, SnapshotError> {
        Ok(match kind {
            HEAD => serde_json::from_slice(&body).ok().map(Self::Head),
            START => Some(Self::Start(shard, Box::new(snapshot::decode(&body)?))),
            INPUTS => (|| {
                let (count, rest) = body.split_first_chunk::<4>()?;
                let (sum, bytes) = rest.split_first_chunk::<8>()?;
                let piece = InputPiece {
                    bytes: bytes.to_vec(),
                    inputs: u32::from_le_bytes(*count),
                    is_fresh: flags & FRESH != 0,
                };
                Some(Self::Inputs { shard, piece, outputs: u64::from_le_bytes(*sum) })
            })(),
            GAP => body.first_chunk().map(|inputs| Self::Gap(shard, u64::from_le_bytes(*inputs))),
            END => Some(Self::End),
            _ => None,
        })
    }
}

fn block(kind: u8, flags: u8, shard: u32, parts: &[&[u8]]) -> Vec<u8> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut block = Vec::with_capacity(HEADER + len);
    block.extend([kind, flags]);
    block.extend(shard.to_le_bytes());
    block.extend((len as u32).to_le_bytes());
    block.extend([0; 8]);
    parts.iter().for_each(|part| block.extend_from_slice(part));
    let sum = sum_of(&block[..HEADER - 8], &block[HEADER..]);
    block[HEADER - 8..HEADER].copy_from_slice(&sum.to_le_bytes());
    block
}

fn sum_of(header: &[u8], body: &[u8]) -> u64 {
    let mut sum = Digest::of(header);
    sum.word(Digest::of(body).value());
    sum.value()
}

/// Reads a recording block by block.
pub struct RecordingReader<R> {
    input: R,
    /// Where the next block begins.
    at: u64,
    extent: RecordingExtent,
}

impl<R: Read> RecordingReader<R> {
    /// Begins to read.
    ///
    /// # Errors
    ///
    /// When it is no recording, or one of another format.
    pub fn new(mut input: R) -> Result<Self, RecordingError> {
        let mut mark = [0; 10];
        let read = fill(&mut input, &mut mark)?;
        if read < mark.len() || mark[..8] != MAGIC[..] {
            return Err(RecordingError::NoRecording);
        }
        match u16::from_le_bytes([mark[8], mark[9]]) {
            VERSION => Ok(Self { input, at: mark.len() as u64, extent: RecordingExtent::Whole }),
            other => Err(RecordingError::OtherVersion(other)),
        }
    }

    /// How far it could be read, once there is nothing more.
    pub const fn extent(&self) -> RecordingExtent {
        self.extent
    }

    /// The next block; nothing at the end, at a cut, and at damage.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or holds a snapshot of another version.
    pub fn next_block(&mut self) -> Result<Option<RecordingBlock>, RecordingError> {
        if self.extent != RecordingExtent::Whole {
            return Ok(None);
        }
        let mut header = [0; HEADER];
        match fill(&mut self.input, &mut header)? {
            0 => return Ok(None),
            HEADER => {}
            _ => return self.stop(RecordingExtent::Cut(self.at)),
        }
        let [kind, flags, s0, s1, s2, s3, l0, l1, l2, l3, sum @ ..] = header;
        let (shard, len) =
            (u32::from_le_bytes([s0, s1, s2, s3]), u32::from_le_bytes([l0, l1, l2, l3]));
        if len > MAX_BLOCK {
            return self.stop(RecordingExtent::Damaged(self.at));
        }
        // It grows with what is there, not with what the length says.
        let mut body = Vec::new();
        self.input.by_ref().take(len.into()).read_to_end(&mut body)?;
        if body.len() < len as usize {
            return self.stop(RecordingExtent::Cut(self.at));
        }
        if sum_of(&header[..HEADER - 8], &body) != u64::from_le_bytes(sum) {
            return self.stop(RecordingExtent::Damaged(self.at));
        }
        match RecordingBlock::parse(kind, flags, shard, body)? {
            Some(block) => {
                self.at += HEADER as u64 + u64::from(len);
                Ok(Some(block))
            }
            None => self.stop(RecordingExtent::Damaged(self.at)),
        }
    }

    const fn stop(
        &mut self,
        extent: RecordingExtent,
    ) -> Result<Option<RecordingBlock>, RecordingError> {
        self.extent = extent;
        Ok(None)
    }
}

/// Reads as much as there is, up to the whole buffer.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
