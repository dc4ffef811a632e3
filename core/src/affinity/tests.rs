//! Properties of extractors and of what is learned.

mod extractors;
mod learned;
