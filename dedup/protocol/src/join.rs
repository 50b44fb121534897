//! Enrolment: the one-time token that an operator carries to a branch, and the two messages it pays for.
//!
//! The token names the realm, the datacenter's address and the hash of its certificate authority, so that a branch that has nothing
//! else cannot be enrolled by somebody in the middle; its secret is good for one certificate.

use std::fmt;
use std::str::FromStr;

use dedup::RealmId;
use serde::{Deserialize, Serialize};

use crate::trust::{Endorsement, TrustAnchor};

const PREFIX: &str = "splice-join-1.";

/// A one-time right to enrol one branch. Debug does not print the secret; Display is the token itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// The realm to join.
    pub realm: RealmId,
    /// SHA-256 of the realm's CA certificate (DER).
    pub ca_hash: [u8; 32],
    /// What the datacenter recognises the token by; it keeps only its hash.
    pub secret: [u8; 32],
    /// The datacenter's link address, `host:port`.
    pub address: String,
}

/// Why a token was refused before anything was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Another kind of text.
    #[error(
        "not a join token: it must begin with {PREFIX:?}; make one with `splice branch token NAME`"
    )]
    Prefix,
    /// Cut short or altered.
    #[error("the join token is damaged (its check digits do not match); copy it again, whole")]
    Damaged,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = postcard::to_stdvec(self).map_err(|_| fmt::Error)?;
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..4]);
        write!(f, "{PREFIX}{}", hex::encode(bytes))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "JoinToken(realm={}, address={})",
            self.realm, self.address
        )
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        if text.len() > 2048 {
            return Err(TokenError::Damaged);
        }
        let bytes = hex::decode(text).map_err(|_| TokenError::Damaged)?;
        let (body, check) = bytes
            .split_at_checked(bytes.len().saturating_sub(4))
            .ok_or(TokenError::Damaged)?;
        if blake3::hash(body).as_bytes()[..4] != *check {
            return Err(TokenError::Damaged);
        }
        match postcard::take_from_bytes(body) {
            Ok((token, [])) => Ok(token),
            _ => Err(TokenError::Damaged),
        }
    }
}

/// From the branch: the token's secret and a certificate request (PKCS#10, DER) for a key that never leaves it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's secret.
    pub secret: [u8; 32],
    /// The certificate request.
    pub csr_der: Vec<u8>,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinRequest(…)")
    }
}

/// From the datacenter: all that a branch needs to know from now on.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// The branch's id, also in its certificate.
    pub branch: dedup::BranchId,
    /// The name that central IT gave it.
    pub name: String,
    /// Its certificate (DER).
    pub certificate_der: Vec<u8>,
    /// The realm's CA certificate (PEM).
    pub ca_pem: String,
    /// The secret under which the realm names content.
    pub id_key: [u8; 32],
    /// Realm and root key.
    pub anchor: TrustAnchor,
    /// Publisher keys endorsed so far.
    pub endorsements: Vec<Endorsement>,
}

impl fmt::Debug for JoinAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "JoinAnswer(branch={}, name={:?})",
            self.branch, self.name
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            realm: RealmId([1; 16]),
            ca_hash: [2; 32],
            secret: [0xAB; 32],
            address: "datacenter.example:7443".into(),
        }
    }

    #[test]
    fn token_round_trip_and_damage() {
        let text = token().to_string();
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
        assert_eq!("hello".parse::<JoinToken>(), Err(TokenError::Prefix));
        assert_eq!(
            text[..text.len() - 2].parse::<JoinToken>(),
            Err(TokenError::Damaged)
        );
        assert_eq!(PREFIX.parse::<JoinToken>(), Err(TokenError::Damaged));
        let mut bent = text.into_bytes();
        bent[40] = if bent[40] == b'0' { b'1' } else { b'0' };
        let bent = String::from_utf8(bent).expect("hexadecimal digits");
        assert_eq!(bent.parse::<JoinToken>(), Err(TokenError::Damaged));
    }

    #[test]
    fn debug_does_not_leak_the_secret() {
        assert!(!format!("{:?}", token()).contains("abab"));
    }
}
