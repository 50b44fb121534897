//! Who may call what, as a document: each endpoint with what it needs, and which roles have that.

use std::fmt::Write;

use datacenter_api::Role;

use super::endpoints;
use crate::identity::rights::Permission;

const HEAD: &str = "# Rights: what each endpoint of the management API needs

Written by `splice-datacenter rights`. A test compares the two, and calls each endpoint with each role.

Each endpoint needs a permission at a place: `realm` (the realm's own), `branch` or `pool` (as the path or `?branch=` names them), `volume` (the branch and pool
that the volume is of), or `each` (several places: the answer has what the caller may see). A role can be limited to a branch, to pools of a name, or to both
(`operator:branch=new-york`, `help-desk:pool=office`). Limited so, it changes only what is wholly inside its part of the realm, and sees what overlaps it.

× the role has the permission. `s` needs a session of the account, or the local root credential: no token may. `known` is everybody who is let in. `/healthz`,
`/readyz`, `/v1/log-in`, `/v1/setup` and `/v1/openapi.json` let anybody in. `/metrics` lets in the bearer of the metrics token too, which opens nothing else.

";

/// The document, in Markdown.
pub fn rights() -> String {
    let mut text = HEAD.to_owned();
    let mut line = |cells: &[&str]| {
        writeln!(text, "| {} |", cells.join(" | ")).expect("writing to a string does not fail");
    };
    let mut heads = vec!["method", "path", "permission", "where"];
    heads.extend(Role::ALL.map(Role::name));
    line(&heads);
    line(&[
        "---", "---", "---", "---", ":-:", ":-:", ":-:", ":-:", ":-:",
    ]);
    for endpoint in endpoints() {
        let path = format!("`{}`", endpoint.path);
        let mut cells = vec![
            endpoint.method,
            &path,
            endpoint.permission.name(),
            endpoint.at.name(),
        ];
        cells.extend(Role::ALL.map(|role| mark(endpoint.permission, role)));
        line(&cells);
    }
    text
}

fn mark(permission: Permission, role: Role) -> &'static str {
    match permission {
        Permission::Own => "s",
        Permission::Known => "×",
        _ if permission.is_of(role) => "×",
        _ => "-",
    }
}
