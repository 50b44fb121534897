//! The splice command
