//! Data structures that know nothing of flows: linked lists, a timer wheel, a slab with indexes.

pub(crate) mod indexed_slab;
pub(crate) mod lists;
#[cfg_attr(not(feature = "snapshot"), expect(dead_code))]
pub(crate) mod slot_set;
pub(crate) mod wheel;
