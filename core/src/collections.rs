//! Data structures that know nothing of flows: lists, a timer wheel, numbered slots.

pub(crate) mod lists;
pub(crate) mod slots;
pub(crate) mod wheel;
