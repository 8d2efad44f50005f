//! kontext
