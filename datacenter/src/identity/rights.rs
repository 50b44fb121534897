//! Who may do what where: permissions, which roles have them, and the parts of a realm that a role can be limited to.
//!
//! ```text
//!                 see  author  operate  help  entitle  audit  administer
//!   admin          ×     ×        ×      ×       ×       ×        ×
//!   image-author   ×     ×
//!   operator       ×              ×      ×       ×
//!   help-desk      ×                     ×
//!   auditor        ×                                     ×
//! ```
//!
//! Invariant: a role that is limited to a part of the realm changes nothing outside that part: its part must *cover* the place of what is changed. To see
//! something it is enough that the two *overlap*. Nothing here knows endpoints: each says its permission and place where it is routed.

use datacenter_api::{Grant, Role};

/// What a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Permission {
    /// Being known.
    Known,
    /// Being the account's owner, or the local root credential: no token may.
    Own,
    /// Looking at what there is.
    See,
    /// Images and versions.
    Author,
    /// Branches, pools, the store, what desktops have written.
    Operate,
    /// What people call the help desk for.
    Help,
    /// Who may use which pool.
    Entitle,
    /// Reading the audit log.
    Audit,
    /// People and their rights, the identity of branches, backups.
    Administer,
}

impl Permission {
    /// Its name, in documents and errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Own => "own",
            Self::See => "see",
            Self::Author => "author",
            Self::Operate => "operate",
            Self::Help => "help",
            Self::Entitle => "entitle",
            Self::Audit => "audit",
            Self::Administer => "administer",
        }
    }

    /// Whether a role has it.
    pub fn is_of(self, role: Role) -> bool {
        match role {
            Role::Admin => true,
            Role::ImageAuthor => matches!(self, Self::See | Self::Author),
            Role::Operator => {
                matches!(self, Self::See | Self::Operate | Self::Help | Self::Entitle)
            }
            Role::HelpDesk => matches!(self, Self::See | Self::Help),
            Role::Auditor => matches!(self, Self::See | Self::Audit),
        }
    }
}

/// A part of the realm: all of it, a branch, the pools of a name, or such a pool at a branch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The branch.
    pub branch: Option<String>,
    /// The pool.
    pub pool: Option<String>,
}

impl Place {
    /// All of the realm.
    pub const REALM: Self = Self {
        branch: None,
        pool: None,
    };

    /// A branch.
    pub fn branch(name: &str) -> Self {
        Self {
            branch: Some(name.to_owned()),
            pool: None,
        }
    }

    /// The part that a role is limited to.
    pub fn of(grant: &Grant) -> Self {
        Self {
            branch: grant.branch.clone(),
            pool: grant.pool.clone(),
        }
    }

    /// Whether all of `other` is in it.
    pub fn covers(&self, other: &Self) -> bool {
        let covers = |ours: &Option<String>, theirs: &Option<String>| match ours {
            None => true,
            Some(_) => ours == theirs,
        };
        covers(&self.branch, &other.branch) && covers(&self.pool, &other.pool)
    }

    /// Whether something is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let overlaps = |ours: &Option<String>, theirs: &Option<String>| match (ours, theirs) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => true,
        };
        overlaps(&self.branch, &other.branch) && overlaps(&self.pool, &other.pool)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.branch, &self.pool) {
            (None, None) => f.write_str("in all of the realm"),
            (Some(branch), None) => write!(f, "at branch {branch:?}"),
            (None, Some(pool)) => write!(f, "for pools named {pool:?}"),
            (Some(branch), Some(pool)) => write!(f, "for pool {pool:?} at branch {branch:?}"),
        }
    }
}

/// Whether a role that is limited so gives a permission at a place.
pub fn gives(grant: &Grant, permission: Permission, place: &Place) -> bool {
    let part = Place::of(grant);
    permission.is_of(grant.role)
        && match permission {
            Permission::See => part.overlaps(place),
            _ => part.covers(place),
        }
}

/// Whether `grants` give all that `wanted` would.
pub fn include(grants: &[Grant], wanted: &Grant) -> bool {
    let place = Place::of(wanted);
    grants.iter().any(|grant| {
        (grant.role == wanted.role || grant.role == Role::Admin) && Place::of(grant).covers(&place)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn grant(text: &str) -> Grant {
        text.parse().unwrap()
    }

    fn place(branch: Option<&str>, pool: Option<&str>) -> Place {
        Place {
            branch: branch.map(str::to_owned),
            pool: pool.map(str::to_owned),
        }
    }

    #[test]
    fn a_part_of_the_realm_is_no_more_than_that() {
        use Permission::{Administer, Help, Operate, See};
        let at_ny = grant("operator:branch=ny");
        let office = grant("operator:pool=office");
        let both = grant("operator:branch=ny:pool=office");
        let ny = place(Some("ny"), None);
        let ny_office = place(Some("ny"), Some("office"));
        let la_office = place(Some("la"), Some("office"));
        let ny_lab = place(Some("ny"), Some("lab"));
        for (who, at, may) in [
            (&at_ny, &ny, true),
            (&at_ny, &ny_office, true),
            (&at_ny, &la_office, false),
            (&at_ny, &Place::REALM, false),
            (&office, &ny_office, true),
            (&office, &la_office, true),
            (&office, &ny_lab, false),
            (&office, &ny, false),
            (&both, &ny_office, true),
            (&both, &la_office, false),
            (&both, &ny_lab, false),
            (&both, &ny, false),
        ] {
            assert_eq!(gives(who, Operate, at), may, "{who} {at}");
            assert_eq!(gives(who, Help, at), may, "{who} {at}");
            assert!(!gives(who, Administer, at));
        }
        assert!(gives(&both, See, &ny) && gives(&both, See, &Place::REALM));
        assert!(!gives(&both, See, &la_office));
    }

    #[test]
    fn nobody_gives_away_more_than_he_has() {
        let admin = [grant("admin")];
        let limited = [grant("admin:branch=ny"), grant("auditor")];
        for wanted in ["admin", "operator", "help-desk:pool=office"] {
            assert!(include(&admin, &grant(wanted)), "{wanted}");
            assert!(!include(&limited, &grant(wanted)), "{wanted}");
        }
        for wanted in [
            "admin:branch=ny",
            "operator:branch=ny:pool=x",
            "auditor:branch=la",
        ] {
            assert!(include(&limited, &grant(wanted)), "{wanted}");
        }
        assert!(!include(&[], &grant("auditor")));
    }

    #[test]
    fn roles_are_read_as_they_are_written() {
        for text in [
            "admin",
            "image-author",
            "operator:branch=ny",
            "help-desk:branch=ny:pool=office",
            "auditor:pool=office",
        ] {
            assert_eq!(grant(text).to_string(), text);
        }
        for bad in [
            "",
            "root",
            "admin:",
            "admin:branch",
            "admin:branch=",
            "admin:site=ny",
            "admin:pool=a:pool=b",
            "admin:branch=a b",
        ] {
            assert!(bad.parse::<Grant>().is_err(), "{bad:?}");
        }
    }
}
