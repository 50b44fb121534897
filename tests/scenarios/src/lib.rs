//! Scenario tests: real processes over an emulated WAN
