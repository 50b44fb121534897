//! What people and programs write as text: JSON bodies, profiles, names.

use crate::Seeds;

const PROFILES: &str = include_str!("../../../../sim-wan/profiles.toml");

/// A profile with every key there is.
const EVERY_KEY: &str = "[x]\nsummary = \"s\"\ndown_mbit = 10\nup_mbit = 2.5\nrtt_ms = 250\njitter_ms = 80\nloss_percent = 2\n\
    loss_burst_packets = 4\nqueue_ms = 200\nreorder_percent = 1\nreorder_delay_ms = 10\nduplicate_percent = 0.5\n\
    outage_every_s = 60\noutage_for_s = 10\n";

const TREE: &str = r#"{"root":"00","size_bytes":1}"#;

pub fn write(seeds: &Seeds) {
    seeds.write("sim_wan", "built-in", PROFILES.as_bytes());
    seeds.write("sim_wan", "every-key", EVERY_KEY.as_bytes());
    for (name, line) in [
        ("cut", r#"{"cmd":"cut","link":"branch-a"}"#),
        ("profile", r#"{"cmd":"profile","profile":"dsl"}"#),
        ("list", r#"{"cmd":"list"}"#),
        ("answer", r#"{"ok":false,"error":"x","links":[]}"#),
    ] {
        seeds.write("sim_wan", name, line.as_bytes());
    }
    for (index, name) in [
        "desktop@3",
        "debian-12.desktop",
        "a@latest",
        "16KiB",
        "1.5 GiB",
        "24h",
        "30min",
        "7d",
    ]
    .into_iter()
    .enumerate()
    {
        seeds.write("names", &index.to_string(), name.as_bytes());
    }
    seeds.write("names", "id", "0f".repeat(32).as_bytes());
    seeds.write("names", "role", b"operator:branch=ny:pool=office");
    let line = format!("3 {} {{\"unix_s\":1}}", "0f".repeat(32));
    seeds.write("names", "audit-line", line.as_bytes());
    let kept = format!("3:{}", "0f".repeat(32));
    seeds.write("names", "audit-kept", kept.as_bytes());
    guest_lines(seeds);
    let version = format!(
        r#"{{"versions":[{{"id":"00","image":"i","number":1,"parent":null,"created_unix_s":1,"disk":{TREE},"data_bytes":1,"chunk_sizes":{{"min":1,"avg":2,"max":3}},"boot":{{"kernel_path":"/k","kernel":{TREE},"initrd":null,"root_argument":"root=/"}},"os":"x","note":null,"new_chunks":1,"stored_bytes":1}}],"next":2}}"#
    );
    // The index is that of the type in the target.
    for (index, body) in [
        (
            0,
            r#"{"link":{"connected":true,"since_unix_s":1,"address":"a","rtt_ms":1.5},"versions":[{"version":"00","complete":true}],"desktops":[{"id":"d"}],"readiness":{"pools":[{"pool":"p","version":"00","image":"i","number":1,"boots":"no","reason":"r","missing_chunks":1,"missing_bytes":2,"profile":3,"desktops":1,"written_bytes_per_hour":4,"overlay_hours":5}],"power_on_until_unix_s":6,"certificate_until_unix_s":7,"overlay_free_bytes":8},"assignment_counter":9,"software":"s"}"#,
        ),
        (2, r#"{"expires_s":60,"site":"x","replace":true}"#),
        (
            4,
            r#"{"version":"a@1","pinned":["a@2"],"memory_mib":1,"vcpus":1,"prestage":false,"machine":"qemu","tpm":true}"#,
        ),
        (
            5,
            r#"{"pools":[{"name":"p","version":"a@1","version_id":"00","pinned":[],"memory_mib":1,"vcpus":1,"prestage":true,"machine":"splice","tpm":false}]}"#,
        ),
        (6, r#"{"name":"a","chunk_avg_bytes":16384}"#),
        (
            7,
            r#"{"images":[{"name":"a","chunk_sizes":{"min":1,"avg":2,"max":3},"created_unix_s":1,"latest":1}],"next":"b"}"#,
        ),
        (
            8,
            r#"{"path":"/x","format":"raw","note":"n","allow_same":true,"verify":"changed"}"#,
        ),
        (9, version.as_str()),
        (19, r#"{"pool":"p","name":"n"}"#),
        (20, r#"{"force":true}"#),
        (
            22,
            r#"{"desktops":[{"name":"n","pool":"p","version":"00","image":"i","version_number":1,"state":"running","error":null,"machine_type":"auto","tpm":false,"machine":"qemu-kvm","machine_reason":"r","disk":"nbd","pid":1,"serial_log":"/l","serial_socket":"/s","nbd_export":"e","started_unix_ms":1,"demand_chunks":1,"overlay_bytes":1,"user_volume":{"size_bytes":1,"written_bytes":1,"serial":"s","nbd_export":"e","disk_socket":"/u"},"guest":{"agent":"0","protocol":1,"connected":true,"heard_unix_ms":1,"booted":true,"users":[{"name":"a","since_unix_s":1}],"user_volume":"mounted","disks":[{"place":"/","used_percent":1}],"failed_units":["u"],"troubles":["t"]}}]}"#,
        ),
        (23, r#"{"error":"e"}"#),
        (24, r#"{"pool":"p"}"#),
        (
            25,
            r#"{"pools":[{"pool":"p","boots":"yes"}],"connected":true,"fill_hour":false}"#,
        ),
        (
            26,
            r#"{"bytes":1,"capacity_bytes":2,"connected":true,"ranks":[{"rank":"boot","chunks":1,"bytes":2,"evictable":false}],"pools":[{"pool":"p","versions":["a@1"],"total_bytes":3,"resident_bytes":2,"pinned_bytes":2,"boot_bytes":1,"evictable_bytes":0}]}"#,
        ),
        (
            29,
            r#"{"name":"a","password":"p","code":"123456","bearer":true}"#,
        ),
        (
            30,
            r#"{"display":"A","password":"p","roles":[{"role":"help-desk","branch":"b","pool":null}],"disabled":true}"#,
        ),
        (
            31,
            r#"{"name":"ci","roles":[{"role":"admin"}],"expires_s":60}"#,
        ),
        (32, r#"{"code":"0-1","name":"a","password":"p"}"#),
        (
            33,
            r#"{"entries":[{"id":2,"hash":null,"unix_s":1,"event":"call","who":"a","from":"::1","call":"PUT /x","result":"done","ends":1,"branch":"b"}],"next":2}"#,
        ),
        (34, r#"{"name":"a","password":"p"}"#),
    ] {
        let seed = [&[index][..], body.as_bytes()].concat();
        seeds.write("api_json", &index.to_string(), &seed);
    }
}

/// What agents and branches say to each other, of either direction.
fn guest_lines(seeds: &Seeds) {
    const ID: &str = "abababababababababababababababab";
    for (name, line) in [
        (
            "hello",
            format!(r#"{{"hello":{{"protocol":1,"oldest":1,"agent":"0.1.0","boot":"{ID}"}}}}"#),
        ),
        (
            "report",
            r#"{"report":{"booted":true,"users":[{"name":"a","since_unix_s":1}],"user_volume":{"refused":"r"},"health":{"disks":[{"place":"/","used_percent":9}],"failed_units":["u"],"troubles":["t"]}}}"#.to_owned(),
        ),
        (
            "itself",
            format!(
                r#"{{"report":{{"booted":true,"users":[],"user_volume":"none","health":{{"disks":[],"failed_units":[],"troubles":[]}},"itself":"{ID}"}}}}"#
            ),
        ),
        ("done", r#"{"done":{"id":1,"error":"e"}}"#.to_owned()),
        (
            "welcome",
            format!(
                r#"{{"welcome":{{"protocol":1,"identity":{{"host_name":"a","machine_id":"{ID}"}},"user_volume":{{"serial":"s","unwritten":true}}}}}}"#
            ),
        ),
        ("refuse", r#"{"refuse":{"protocol":1,"oldest":1}}"#.to_owned()),
        (
            "freeze",
            r#"{"do":{"id":1,"what":{"freeze":{"for_ms":1}}}}"#.to_owned(),
        ),
        ("thaw", r#"{"do":{"id":1,"what":"thaw"}}"#.to_owned()),
    ] {
        // The target's first byte says how the stream is cut.
        let seed = [&b"\x07"[..], line.as_bytes(), b"\n"].concat();
        seeds.write("guest_lines", name, &seed);
    }
}
