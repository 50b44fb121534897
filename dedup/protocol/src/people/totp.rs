//! The second factor: codes that change every 30 seconds (RFC 6238, SHA-1, six digits, as every authenticator application has them).
//!
//! Invariant: a code is good for one log-in; who checks one keeps the step that it was for and takes none at or before that again. The clocks may
//! differ by one step. HMAC-SHA-1 is by `ring`, where its name says what it is for: nothing rests on collisions here.

use ring::hmac;
use serde::{Deserialize, Serialize};

/// Seconds of a step.
const STEP_S: u64 = 30;
/// Steps that clocks may differ by.
const DRIFT: u64 = 1;
/// 10 to the number of digits.
const CODES: u32 = 1_000_000;

/// A second factor's secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TotpSecret(pub [u8; 20]);

impl std::fmt::Debug for TotpSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TotpSecret(…)")
    }
}

impl TotpSecret {
    /// The step of `code` at that time, if it is good and later than `last`, the step of the code that was taken before.
    pub fn check(&self, code: &str, now_unix_s: u64, last: u64) -> Option<u64> {
        let code = code.trim();
        if code.len() != 6 || !code.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let code: u32 = code.parse().ok()?;
        let now = now_unix_s / STEP_S;
        let steps = now.saturating_sub(DRIFT)..=now.saturating_add(DRIFT);
        steps
            .filter(|step| *step > last)
            .find(|step| self.code(*step) == code)
    }

    /// The code of a step.
    fn code(&self, step: u64) -> u32 {
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &self.0);
        let tag = hmac::sign(&key, &step.to_be_bytes());
        let tag = tag.as_ref();
        // RFC 4226, 5.3: the last four bits say where the 31 bits are.
        let at = usize::from(tag[19] & 15);
        let word: [u8; 4] = tag[at..at + 4].try_into().expect("four bytes");
        (u32::from_be_bytes(word) & 0x7fff_ffff) % CODES
    }

    /// The code that an authenticator application shows at a time.
    pub fn code_at(&self, now_unix_s: u64) -> String {
        format!("{:06}", self.code(now_unix_s / STEP_S))
    }

    /// As people type it into an application: base 32 (RFC 4648) without padding.
    pub fn base32(&self) -> String {
        const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let mut text = String::with_capacity(32);
        // 20 bytes are four times five, and five bytes are eight digits.
        for five in self.0.chunks_exact(5) {
            let bits = five
                .iter()
                .fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
            for digit in (0..8).rev() {
                text.push(char::from(ALPHABET[(bits >> (5 * digit)) as usize & 31]));
            }
        }
        text
    }

    /// As applications read it from a picture. Both names have nothing that must be escaped.
    pub fn uri(&self, realm: &str, name: &str) -> String {
        format!(
            "otpauth://totp/{realm}:{name}?secret={}&issuer={realm}",
            self.base32()
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    /// RFC 6238, appendix B; the last six of its eight digits.
    #[test]
    fn codes_are_those_of_the_rfc() {
        let secret = TotpSecret(*b"12345678901234567890");
        for (now, code) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(secret.code_at(now), code);
            assert_eq!(secret.check(code, now, 0), Some(now / 30));
        }
    }

    #[test]
    fn a_code_is_good_once_and_for_a_moment() {
        let (secret, now) = (TotpSecret([9; 20]), 1_800_000_000);
        let code = secret.code_at(now);
        let step = secret.check(&code, now, 0).unwrap();
        assert_eq!(secret.check(&code, now, step), None, "used");
        assert_eq!(secret.check(&format!(" {code}\n"), now + 30, 0), Some(step));
        assert_eq!(secret.check(&code, now - 30, 0), Some(step));
        for (wrong, at) in [
            (code.as_str(), now + 90),
            (&code[..5], now),
            ("", now),
            ("12345x", now),
        ] {
            assert_eq!(secret.check(wrong, at, 0), None, "{wrong} at {at}");
        }
    }

    /// RFC 4648, section 10, as far as 20 bytes go.
    #[test]
    fn secrets_are_shown_in_base_32() {
        let secret = TotpSecret(*b"fooba\0\0\0\0\0\xff\xff\xff\xff\xfffooba");
        assert_eq!(secret.base32(), "MZXW6YTBAAAAAAAA77777777MZXW6YTB");
        assert_eq!(
            secret.uri("acme", "al"),
            "otpauth://totp/acme:al?secret=MZXW6YTBAAAAAAAA77777777MZXW6YTB&issuer=acme"
        );
    }
}
