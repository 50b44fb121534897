//! The client's calls about people, their rights, and the audit log.

use reqwest::Method;
use serde::Serialize;

use super::{Client, ClientError, page, segment};
use crate::{
    ApiToken, ApiTokenList, ApiTokenRequest, AuditEntry, AuditLine, AuditList, AuditState,
    Entitlement, EntitlementList, Group, GroupList, LogInRequest, NewApiToken, PasswordRequest,
    ProofRequest, Session, SetupCode, SetupRequest, SubjectKind, TotpSetup, User, UserList,
    UserRequest,
};

impl Client {
    /// Calls whose answer says nothing.
    async fn nothing(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(), ClientError> {
        let request = self.request(method, path);
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        self.send(request).await?;
        Ok(())
    }

    /// Asks for a session.
    pub async fn log_in(&self, request: &LogInRequest) -> Result<Session, ClientError> {
        self.with(Method::POST, "/v1/log-in", request).await
    }

    /// Ends the session that this client calls with.
    pub async fn log_out(&self) -> Result<(), ClientError> {
        self.nothing(Method::POST, "/v1/log-out", None::<&()>).await
    }

    /// Who calls.
    pub async fn session(&self) -> Result<Session, ClientError> {
        self.get("/v1/session").await
    }

    /// Changes one's own password.
    pub async fn change_password(&self, request: &PasswordRequest) -> Result<(), ClientError> {
        self.nothing(Method::PUT, "/v1/session/password", Some(request))
            .await
    }

    /// Makes a second factor, which is asked for once a code of it was shown.
    pub async fn make_totp(&self, request: &ProofRequest) -> Result<TotpSetup, ClientError> {
        self.with(Method::POST, "/v1/session/totp", request).await
    }

    /// Shows a code of a second factor: it is asked for from now on.
    pub async fn confirm_totp(&self, request: &ProofRequest) -> Result<(), ClientError> {
        self.nothing(Method::PUT, "/v1/session/totp", Some(request))
            .await
    }

    /// Gives up one's second factor.
    pub async fn drop_totp(&self, request: &ProofRequest) -> Result<(), ClientError> {
        self.nothing(Method::POST, "/v1/session/totp/drop", Some(request))
            .await
    }

    /// Makes a one-time code for an administrator's account.
    pub async fn setup_code(&self) -> Result<SetupCode, ClientError> {
        self.json(self.request(Method::POST, "/v1/setup-codes"))
            .await
    }

    /// Makes an administrator's account with such a code.
    pub async fn set_up(&self, request: &SetupRequest) -> Result<User, ClientError> {
        self.with(Method::POST, "/v1/setup", request).await
    }

    /// All accounts.
    pub async fn users(&self) -> Result<Vec<User>, ClientError> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let list: UserList = self.get(&page("/v1/users", "after", &after)).await?;
            all.extend(list.users);
            after = list.next;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    /// One account.
    pub async fn user(&self, name: &str) -> Result<User, ClientError> {
        self.get(&format!("/v1/users/{}", segment(name)?)).await
    }

    /// Makes an account.
    pub async fn create_user(
        &self,
        name: &str,
        request: &UserRequest,
    ) -> Result<User, ClientError> {
        let path = format!("/v1/users/{}", segment(name)?);
        self.with(Method::POST, &path, request).await
    }

    /// Changes an account.
    pub async fn change_user(
        &self,
        name: &str,
        request: &UserRequest,
    ) -> Result<User, ClientError> {
        let path = format!("/v1/users/{}", segment(name)?);
        self.with(Method::PUT, &path, request).await
    }

    /// Deletes an account.
    pub async fn delete_user(&self, name: &str) -> Result<(), ClientError> {
        let path = format!("/v1/users/{}", segment(name)?);
        self.nothing(Method::DELETE, &path, None::<&()>).await
    }

    /// Unlocks an account.
    pub async fn unlock_user(&self, name: &str) -> Result<User, ClientError> {
        let path = format!("/v1/users/{}/unlock", segment(name)?);
        self.json(self.request(Method::POST, &path)).await
    }

    /// Asks an account for no second factor any more.
    pub async fn reset_totp(&self, name: &str) -> Result<User, ClientError> {
        let path = format!("/v1/users/{}/totp", segment(name)?);
        self.json(self.request(Method::DELETE, &path)).await
    }

    /// All groups.
    pub async fn groups(&self) -> Result<Vec<Group>, ClientError> {
        let list: GroupList = self.get("/v1/groups").await?;
        Ok(list.groups)
    }

    /// Makes a group.
    pub async fn create_group(&self, name: &str) -> Result<Group, ClientError> {
        let path = format!("/v1/groups/{}", segment(name)?);
        self.json(self.request(Method::POST, &path)).await
    }

    /// Deletes a group.
    pub async fn delete_group(&self, name: &str) -> Result<(), ClientError> {
        let path = format!("/v1/groups/{}", segment(name)?);
        self.nothing(Method::DELETE, &path, None::<&()>).await
    }

    /// Adds a person to a group, or takes one out.
    pub async fn set_member(
        &self,
        group: &str,
        user: &str,
        member: bool,
    ) -> Result<(), ClientError> {
        let path = format!("/v1/groups/{}/members/{}", segment(group)?, segment(user)?);
        let method = if member { Method::PUT } else { Method::DELETE };
        self.nothing(method, &path, None::<&()>).await
    }

    /// All entitlements.
    pub async fn entitlements(&self) -> Result<Vec<Entitlement>, ClientError> {
        let list: EntitlementList = self.get("/v1/entitlements").await?;
        Ok(list.entitlements)
    }

    /// Entitles somebody to a pool, or no more.
    pub async fn set_entitled(
        &self,
        pool: &str,
        branch: Option<&str>,
        kind: SubjectKind,
        subject: &str,
        entitled: bool,
    ) -> Result<(), ClientError> {
        let kind = match kind {
            SubjectKind::User => "users",
            SubjectKind::Group => "groups",
        };
        let mut path = format!(
            "/v1/entitlements/{}/{kind}/{}",
            segment(pool)?,
            segment(subject)?
        );
        if let Some(branch) = branch {
            path.push_str("?branch=");
            path.push_str(segment(branch)?);
        }
        let method = if entitled {
            Method::PUT
        } else {
            Method::DELETE
        };
        self.nothing(method, &path, None::<&()>).await
    }

    /// Tokens: one's own; all of them, for administrators.
    pub async fn tokens(&self) -> Result<Vec<ApiToken>, ClientError> {
        let list: ApiTokenList = self.get("/v1/tokens").await?;
        Ok(list.tokens)
    }

    /// Makes a token.
    pub async fn create_token(
        &self,
        request: &ApiTokenRequest,
    ) -> Result<NewApiToken, ClientError> {
        self.with(Method::POST, "/v1/tokens", request).await
    }

    /// Ends a token.
    pub async fn delete_token(&self, id: &str) -> Result<(), ClientError> {
        let path = format!("/v1/tokens/{}", segment(id)?);
        self.nothing(Method::DELETE, &path, None::<&()>).await
    }

    /// The newest entries of the audit log, a page of them.
    pub async fn audit(&self) -> Result<Vec<AuditEntry>, ClientError> {
        let list: AuditList = self.get("/v1/audit").await?;
        Ok(list.entries)
    }

    /// Has the datacenter verify its audit log.
    pub async fn audit_state(&self) -> Result<AuditState, ClientError> {
        self.get("/v1/audit/state").await
    }

    /// A page of the audit log as it was written, oldest first, behind the entry `after`; empty behind the newest.
    pub async fn audit_lines(&self, after: u64) -> Result<Vec<AuditLine>, ClientError> {
        let path = format!("/v1/audit/lines?after={after}");
        let response = self.send(self.request(Method::GET, &path)).await?;
        let body = self.body(response).await?;
        let bad = |reason: String| ClientError::Answer {
            url: self.url().to_owned(),
            reason,
        };
        let text = String::from_utf8(body).map_err(|e| bad(e.to_string()))?;
        let lines = text.lines().map(str::parse::<AuditLine>);
        lines
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| bad(e.to_string()))
    }
}
