//! Picture metrics and timers for judging autoencoders and edits.
