//! Wire messages and both ends' state machines, without I/O
