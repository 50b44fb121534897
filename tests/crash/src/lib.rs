//! A disk that loses what was not flushed, and the power-cut tests that use it
