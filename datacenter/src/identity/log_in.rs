//! Log-ins: a name, a password, where there is one a second factor; and the one-time code that makes the first administrator.
//!
//! Invariant: an attempt is counted, durably, before the password is looked at ([`dedup_protocol::people::strikes`]); an unknown name and a locked account cost the
//! same time as a wrong password and give the same answer, so that nobody learns which names there are; where the owner logged in before, attempts are
//! counted apart ([`known`](super::known)), so that a stranger's lock does not keep the owner out; a code is taken once, by the transaction that begins the session. How often anybody may try at
//! all is the [`gate`](super::gate)'s, which whoever calls this has passed.

use datacenter_api::{
    AccountKind, AuditFacts, Grant, LogInRequest, Role, SetupCode, SetupRequest, User, UserRequest,
};
use dedup_protocol::people::verifier::{COST, Verifier};

use super::accounts::{check_password, folded, show_user};
use super::sessions::{NewSession, begin_session};
use crate::catalog::Tx;
use crate::catalog::audit::append;
use crate::catalog::people::{AccountRow, SetupCodeRow};
use crate::catalog::rows::SecretHash;
use crate::datacenter::Datacenter;
use crate::problem::ManageError;
use crate::realm::random;

/// How long a one-time code may be used, in seconds: a day.
const SETUP_CODE_VALIDITY_S: u64 = 86_400;
/// Most of a name that nobody has that is kept in the audit log, in characters.
const UNKNOWN_NAME_MAX: usize = 64;

fn wrong() -> ManageError {
    ManageError::Unauthenticated {
        message: "the name or the password is wrong, or wrong passwords have locked the account for a while".into(),
        help: "wait, or ask an administrator: `splice user unlock NAME`, `splice user password NAME`".into(),
    }
}

/// What stands for the password of an account that does not exist, so that its time is spent all the same.
fn nobody() -> Verifier {
    let (memory_kib, passes, lanes) = COST;
    Verifier {
        memory_kib,
        passes,
        lanes,
        salt: [0; 16],
        hash: [0; 32],
    }
}

/// An attempt that was counted.
struct Counted {
    /// The account, if there is one and it may be tried.
    account: Option<AccountRow>,
    /// There is one, and it may not be tried now.
    is_locked: bool,
    /// It comes from where the owner logged in before.
    is_known: bool,
}

impl Datacenter {
    /// Begins a session. Takes the time of stretching a password.
    pub fn log_in(&self, request: &LogInRequest, from: &str) -> Result<NewSession, ManageError> {
        let name = folded(&request.name);
        let told = |result: String| AuditFacts {
            unix_s: self.now_unix_s(),
            event: "log_in".into(),
            // Whoever reads the log on a terminal sees what was typed, and does not have it carried out.
            who: name.escape_debug().take(UNKNOWN_NAME_MAX).collect(),
            from: from.to_owned(),
            result,
            ..AuditFacts::default()
        };
        let refused = |why: &str, error: ManageError| -> ManageError {
            match self.audit(&told(format!("refused: {why}"))) {
                Ok(_) => error,
                Err(catalog) => catalog.into(),
            }
        };
        let Counted {
            account,
            is_locked,
            is_known,
        } = self.count_attempt(&name, from)?;
        // People whose passwords are proven elsewhere have none here.
        let local = account
            .as_ref()
            .filter(|row| row.kind == AccountKind::Local);
        let verifier = local.and_then(|row| row.verifier.clone());
        let fits = verifier
            .unwrap_or_else(nobody)
            .fits(request.password.as_bytes());
        if is_locked {
            return Err(refused("locked", wrong()));
        }
        let Some(account) = account.filter(|row| fits && !row.disabled) else {
            return Err(refused("wrong name or password", wrong()));
        };
        let step = match self.second_factor(&account, request.code.as_deref()) {
            Ok(step) => step,
            Err(error) => return Err(refused("second factor", error)),
        };
        let now = self.now_unix_s();
        let begun = self.catalog().transact(|tx| {
            // It may have been changed while the password was stretched, and the code taken by another attempt.
            let row: Option<AccountRow> = tx.get(&name)?;
            let row = row.filter(|row| row.epoch == account.epoch && row.id == account.id);
            let mut row = row.filter(|row| !row.disabled).ok_or_else(wrong)?;
            if let Some(step) = step {
                let totp = row.totp.as_mut().filter(|totp| totp.last_step < step);
                totp.ok_or_else(wrong)?.last_step = step;
            }
            // What strangers tried elsewhere is not forgotten because the owner is back.
            if !is_known {
                row.strikes.clear();
            }
            tx.put(&name, &row);
            append(tx, &told("done".into()))?;
            Ok::<_, ManageError>(begin_session(tx, &name, &row, now)?)
        })?;
        self.identity().known().entered(account.id, from, now);
        tracing::info!(user = name, from, "logged in");
        Ok(begun)
    }

    /// Counts an attempt at an account, if there is one.
    fn count_attempt(&self, name: &str, from: &str) -> Result<Counted, ManageError> {
        let (name, now) = (name.to_owned(), self.now_unix_s());
        let account: Option<AccountRow> = self.catalog().read(|tx| tx.get(&name))?;
        let known = account
            .as_ref()
            .and_then(|row| self.identity().known().attempt(row.id, from, now));
        if let Some(counted) = known {
            return Ok(Counted {
                account: account.filter(|_| counted.is_ok()),
                is_locked: counted.is_err(),
                is_known: true,
            });
        }
        self.catalog().transact(|tx| {
            let mut row: Option<AccountRow> = tx.get(&name)?;
            let counted = row.as_mut().map(|row| row.strikes.attempt(now));
            let is_locked = matches!(counted, Some(Err(_)));
            if let Some(row) = row.as_ref().filter(|_| !is_locked) {
                tx.put(&name, row);
            }
            Ok(Counted {
                account: row.filter(|_| !is_locked),
                is_locked,
                is_known: false,
            })
        })
    }

    /// The step of the code, if the account has a second factor.
    fn second_factor(
        &self,
        account: &AccountRow,
        code: Option<&str>,
    ) -> Result<Option<u64>, ManageError> {
        let Some(totp) = account.totp.as_ref().filter(|totp| totp.confirmed) else {
            return Ok(None);
        };
        let lacking = |message: &str| ManageError::Unauthenticated {
            message: message.into(),
            help: "pass the code that the authenticator application shows now".into(),
        };
        let code = code.ok_or_else(|| lacking("this account has a second factor"))?;
        let secret = self.identity().sealing().open(&account.id, &totp.sealed);
        let secret = secret.ok_or_else(|| {
            ManageError::conflict(
                "the account's second factor cannot be opened with this realm's keys",
                "an administrator takes it away: `splice user reset-totp NAME`",
            )
        })?;
        let step = secret.check(code, self.now_unix_s(), totp.last_step);
        let step = step.ok_or_else(|| lacking("the code is wrong, or was used already"))?;
        Ok(Some(step))
    }

    /// Makes a one-time code for an administrator's account. Only its hash is kept, and those before it are void.
    pub fn make_setup_code(&self) -> Result<SetupCode, ManageError> {
        let now = self.now_unix_s();
        let (code, row) = new_setup_code(now);
        let kept = self
            .catalog()
            .transact(|tx| keep_setup_code(tx, &code, &row));
        kept?;
        Ok(SetupCode {
            code,
            expires_unix_s: row.expires_unix_s,
        })
    }

    /// Makes an administrator's account with a one-time code, which is used up.
    pub fn set_up(&self, request: &SetupRequest, from: &str) -> Result<User, ManageError> {
        let name = folded(&request.name);
        let hash = hash_of(&request.code);
        let now = self.now_unix_s();
        let void = || ManageError::Unauthenticated {
            message: "the code is not known, was used or has expired".into(),
            help: "make one on the datacenter's machine: `splice setup-code`".into(),
        };
        let is_good = |row: Option<SetupCodeRow>| row.filter(|row| now <= row.expires_unix_s);
        let told = |result: &str| AuditFacts {
            unix_s: now,
            event: "setup".into(),
            // As at a log-in: whoever knows no code may type anything.
            who: name.escape_debug().take(UNKNOWN_NAME_MAX).collect(),
            from: from.to_owned(),
            result: result.to_owned(),
            ..AuditFacts::default()
        };
        // Before a password is stretched for it.
        let kept = self.catalog().read(|tx| tx.get::<SetupCodeRow>(&hash))?;
        if is_good(kept).is_none() {
            self.audit(&told("refused: wrong code"))?;
            return Err(void());
        }
        check_password(&name, &request.password)?;
        let admin = Grant {
            role: Role::Admin,
            branch: None,
            pool: None,
        };
        let wanted = UserRequest {
            password: Some(request.password.clone()),
            roles: Some(vec![admin]),
            ..UserRequest::default()
        };
        let row = self.new_account(&name, &wanted)?;
        let facts = told("done");
        self.catalog().transact(|tx| {
            is_good(tx.get(&hash)?).ok_or_else(void)?;
            self.put_account(tx, &name, &row)?;
            tx.delete::<SetupCodeRow>(&hash);
            append(tx, &facts)?;
            Ok::<_, ManageError>(())
        })?;
        tracing::info!(user = name, "the first administrator's account is made");
        Ok(show_user(&name, &row, now))
    }
}

/// A code and what is kept of it.
pub(crate) fn new_setup_code(now_unix_s: u64) -> (String, SetupCodeRow) {
    let digits = hex::encode(random::<10>());
    let groups: Vec<&str> = (0..5)
        .map(|group| &digits[4 * group..4 * group + 4])
        .collect();
    let row = SetupCodeRow {
        expires_unix_s: now_unix_s + SETUP_CODE_VALIDITY_S,
    };
    (groups.join("-"), row)
}

/// Keeps a code instead of all others.
pub(crate) fn keep_setup_code(
    tx: &mut Tx<'_>,
    code: &str,
    row: &SetupCodeRow,
) -> Result<(), crate::catalog::CatalogError> {
    for (key, _) in tx.list::<SetupCodeRow>(&[], None, usize::MAX / 2)? {
        tx.delete::<SetupCodeRow>(&key);
    }
    tx.put(&hash_of(code), row);
    Ok(())
}

/// However it is typed: without dashes and spaces, in either case.
fn hash_of(code: &str) -> SecretHash {
    let digits = code.chars().filter(char::is_ascii_alphanumeric);
    let digits: String = digits.map(|c| c.to_ascii_lowercase()).collect();
    SecretHash::of(digits.as_bytes())
}
