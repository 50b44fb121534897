//! What people do with their own accounts: the password, and the second factor.
//!
//! Invariant: whoever has somebody's session does not have the account: what changes its credentials wants the password again, and wrong ones count as at
//! a log-in. A second factor is asked for only once a code of it was shown, so that nobody locks himself out with a secret that he did not keep.

use datacenter_api::{PasswordRequest, TotpSetup};
use dedup_protocol::people::totp::TotpSecret;

use super::Caller;
use super::accounts::{require, verifier_of};
use crate::catalog::people::TotpRow;
use crate::datacenter::Datacenter;
use crate::problem::ManageError;
use crate::realm::random;

impl Datacenter {
    /// Changes the caller's own password; all sessions end, this one too.
    pub fn change_own_password(
        &self,
        caller: &Caller,
        request: &PasswordRequest,
    ) -> Result<(), ManageError> {
        let name = &caller.own_account()?.name;
        self.prove_own(name, &request.old)?;
        let new = verifier_of(name, &request.new)?;
        self.update(name, |row| {
            row.verifier = Some(new.clone());
            row.strikes.clear();
            row.epoch += 1;
            Ok(())
        })?;
        Ok(())
    }

    /// Makes a second factor for the caller, for his password; it is asked for once a code of it was shown.
    pub fn make_own_totp(&self, caller: &Caller, password: &str) -> Result<TotpSetup, ManageError> {
        let account = caller.own_account()?;
        self.prove_own(&account.name, password)?;
        let secret = TotpSecret(random());
        let sealed = self.identity().sealing().seal(&account.id, &secret);
        self.update(&account.name, |row| {
            if row.totp.as_ref().is_some_and(|totp| totp.confirmed) {
                return Err(ManageError::conflict(
                    "the account has a second factor already",
                    "give it up first: `splice user totp --drop`",
                ));
            }
            row.totp = Some(TotpRow {
                sealed: sealed.clone(),
                confirmed: false,
                last_step: 0,
            });
            Ok(())
        })?;
        let issuer: String = self
            .realm_name()
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .collect();
        let issuer = if issuer.is_empty() {
            "splice".into()
        } else {
            issuer
        };
        Ok(TotpSetup {
            secret: secret.base32(),
            uri: secret.uri(&issuer, &account.name),
        })
    }

    /// Shows a code of the caller's second factor: it is asked for from now on.
    pub fn confirm_own_totp(&self, caller: &Caller, code: &str) -> Result<(), ManageError> {
        let account = caller.own_account()?;
        let now = self.now_unix_s();
        self.update(&account.name, |row| {
            let totp = row.totp.as_mut().filter(|totp| !totp.confirmed);
            let totp = totp.ok_or_else(|| {
                ManageError::conflict(
                    "there is no second factor that waits for a code",
                    "make one first: `splice user totp`",
                )
            })?;
            let secret = self.identity().sealing().open(&account.id, &totp.sealed);
            let step = secret.and_then(|secret| secret.check(code, now, totp.last_step));
            totp.last_step = step.ok_or_else(|| {
                ManageError::invalid("the code is wrong; is the clock of both sides right?")
            })?;
            totp.confirmed = true;
            Ok(())
        })?;
        Ok(())
    }

    /// Gives up the caller's second factor, for his password.
    pub fn drop_own_totp(&self, caller: &Caller, password: &str) -> Result<(), ManageError> {
        let name = &caller.own_account()?.name;
        self.prove_own(name, password)?;
        self.update(name, |row| {
            row.totp = None;
            Ok(())
        })?;
        Ok(())
    }

    /// Whoever has somebody's session does not have the account: what changes its credentials wants the password again.
    fn prove_own(&self, name: &str, password: &str) -> Result<(), ManageError> {
        let now = self.now_unix_s();
        let verifier = self.catalog().transact(|tx| {
            let mut row = require(tx, name)?;
            let counted = row.strikes.attempt(now);
            tx.put(&name.to_owned(), &row);
            Ok::<_, ManageError>(counted.map(|()| row.verifier))
        })?;
        let verifier = verifier.map_err(|wait_s| ManageError::TooMany {
            message: format!("account {name:?} is locked for {wait_s} seconds more"),
        })?;
        if !verifier.is_some_and(|verifier| verifier.fits(password.as_bytes())) {
            return Err(ManageError::Forbidden {
                message: "the password is wrong".into(),
            });
        }
        self.update(name, |row| {
            row.strikes.clear();
            Ok(())
        })?;
        Ok(())
    }
}
