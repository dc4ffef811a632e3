//! demo
use super::Failure;
pub(super) fn run(_seconds: u32) -> Result<(), Failure> {
    Err(Failure("not yet".into()))
}
