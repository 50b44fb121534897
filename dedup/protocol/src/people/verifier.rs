//! What proves a password without telling it: argon2id (RFC 9106) with a salt for each.
//!
//! Invariant: whoever has a verifier must pay the stretching for each guess, and its costs are kept in it, so that they can be raised for
//! new passwords while old ones still fit. It refuses costs above [`COST_MAX`], which a foreign record could ask for, and decides
//! nothing about which passwords are good.

use argon2::{Algorithm, Argon2, Params, Version};
use serde::{Deserialize, Serialize};

use super::PASSWORD_BYTES_MAX;

/// Memory in KiB, passes and lanes of new verifiers: 64 MiB and 3, RFC 9106's second recommendation with one lane. About 0.2 s of one core, which
/// two hundred people who log in at nine o'clock can wait for, and who guesses cannot.
pub const COST: (u32, u32, u32) = (64 * 1024, 3, 1);
/// The most that a record may ask of whoever checks a password.
pub const COST_MAX: (u32, u32, u32) = (256 * 1024, 16, 4);

/// See the module.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verifier {
    /// Memory of the stretching, KiB.
    pub memory_kib: u32,
    /// Its passes.
    pub passes: u32,
    /// Its lanes.
    pub lanes: u32,
    /// Random.
    pub salt: [u8; 16],
    /// What comes out.
    pub hash: [u8; 32],
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A hash invites guesses.
        f.write_str("Verifier(…)")
    }
}

impl Verifier {
    /// Of a new password. `salt` must be random.
    pub fn new(password: &[u8], salt: [u8; 16]) -> Self {
        Self::with_cost(password, salt, COST).expect("our own costs are in range")
    }

    /// With other costs; `None` if they are out of range.
    pub fn with_cost(password: &[u8], salt: [u8; 16], cost: (u32, u32, u32)) -> Option<Self> {
        let (memory_kib, passes, lanes) = cost;
        let mut verifier = Self {
            memory_kib,
            passes,
            lanes,
            salt,
            hash: [0; 32],
        };
        verifier.hash = verifier.stretch(password)?;
        Some(verifier)
    }

    /// Whether this is the password. Takes as long for a wrong one as for the right one.
    pub fn fits(&self, password: &[u8]) -> bool {
        // Hashes of this type are compared in constant time.
        self.stretch(password).is_some_and(|hash| {
            blake3::Hash::from_bytes(hash) == blake3::Hash::from_bytes(self.hash)
        })
    }

    /// Whether checking it costs no more than anybody may ask for.
    pub fn is_affordable(&self) -> bool {
        let (memory_kib, passes, lanes) = COST_MAX;
        self.memory_kib <= memory_kib && self.passes <= passes && self.lanes <= lanes
    }

    fn stretch(&self, password: &[u8]) -> Option<[u8; 32]> {
        if !self.is_affordable() || password.len() > PASSWORD_BYTES_MAX {
            return None;
        }
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(32)).ok()?;
        let mut hash = [0; 32];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(password, &self.salt, &mut hash)
            .ok()?;
        Some(hash)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    /// Cheap, so that tests are quick.
    const CHEAP: (u32, u32, u32) = (8, 1, 1);

    #[test]
    fn only_the_password_fits() {
        let verifier = Verifier::with_cost(b"correct horse", [1; 16], CHEAP).unwrap();
        assert!(verifier.fits(b"correct horse"));
        for wrong in [&b"correct horsf"[..], b"", b"correct horse "] {
            assert!(!verifier.fits(wrong));
        }
        let salted = Verifier::with_cost(b"correct horse", [2; 16], CHEAP).unwrap();
        assert_ne!(salted.hash, verifier.hash, "the salt counts");
    }

    #[test]
    fn costs_that_nobody_may_ask_for_are_not_paid() {
        let password = b"correct horse";
        for cost in [
            (512 * 1024, 1, 1),
            (8, 17, 1),
            (64, 1, 5),
            (0, 1, 1),
            (8, 0, 1),
        ] {
            assert_eq!(
                Verifier::with_cost(password, [1; 16], cost),
                None,
                "{cost:?}"
            );
        }
        let mut dear = Verifier::with_cost(password, [1; 16], CHEAP).unwrap();
        dear.memory_kib = u32::MAX;
        assert!(!dear.fits(password));
        assert!(!dear.fits(&vec![b'x'; PASSWORD_BYTES_MAX + 1]));
    }

    #[test]
    fn new_passwords_cost_what_is_documented() {
        let verifier = Verifier::new(b"correct horse", [1; 16]);
        assert_eq!((verifier.memory_kib, verifier.passes, verifier.lanes), COST);
        assert!(verifier.fits(b"correct horse"));
    }
}
