//! The lines of every message as the first release writes them. A difference means that agents in images, or branches, no longer understand: raise the
//! protocol's number and go on reading the old ones.
#![allow(clippy::unwrap_used, missing_docs)]

use branch_guest::{
    DISKS_MAX, DiskHealth, Done, FAILED_UNITS_MAX, FromGuest, Health, Hello, Id, Identity,
    LINE_BYTES_MAX, Order, Refuse, Report, TROUBLES_MAX, Text, ToGuest, USERS_MAX, User,
    UserVolume, VolumeReport, Welcome, What, common_protocol,
};
use proptest::prelude::*;

fn text<const MAX: usize>(text: &str) -> Text<MAX> {
    Text::try_from(text.to_owned()).unwrap()
}

fn from_guest() -> Vec<(FromGuest, &'static str)> {
    let report = |user_volume| {
        FromGuest::Report(Report {
            booted: true,
            users: vec![User {
                name: text("alice"),
                since_unix_s: 1_700_000_000,
            }],
            user_volume,
            health: Health {
                disks: vec![DiskHealth {
                    place: text("/home"),
                    used_percent: 97,
                }],
                failed_units: vec![text("cups.service")],
                troubles: vec![text("no ssh-keygen")],
            },
            itself: None,
        })
    };
    vec![
        (
            FromGuest::Hello(Hello {
                protocol: 1,
                oldest: 1,
                agent: text("0.1.0"),
                boot: Id::new([0xab; 16]).unwrap(),
            }),
            r#"{"hello":{"protocol":1,"oldest":1,"agent":"0.1.0","boot":"abababababababababababababababab"}}"#,
        ),
        (
            report(VolumeReport::Mounted),
            r#"{"report":{"booted":true,"users":[{"name":"alice","since_unix_s":1700000000}],"user_volume":"mounted","health":{"disks":[{"place":"/home","used_percent":97}],"failed_units":["cups.service"],"troubles":["no ssh-keygen"]}}}"#,
        ),
        (
            report(VolumeReport::Refused(text("it has partitions"))),
            r#"{"report":{"booted":true,"users":[{"name":"alice","since_unix_s":1700000000}],"user_volume":{"refused":"it has partitions"},"health":{"disks":[{"place":"/home","used_percent":97}],"failed_units":["cups.service"],"troubles":["no ssh-keygen"]}}}"#,
        ),
        (
            FromGuest::Report(Report {
                booted: false,
                users: vec![],
                user_volume: VolumeReport::None,
                health: Health::default(),
                itself: None,
            }),
            r#"{"report":{"booted":false,"users":[],"user_volume":"none","health":{"disks":[],"failed_units":[],"troubles":[]}}}"#,
        ),
        (
            FromGuest::Done(Done { id: 7, error: None }),
            r#"{"done":{"id":7}}"#,
        ),
        (
            FromGuest::Done(Done {
                id: 8,
                error: Some(text("it is not frozen")),
            }),
            r#"{"done":{"id":8,"error":"it is not frozen"}}"#,
        ),
        // From protocol 3 on.
        (
            FromGuest::Report(Report {
                booted: true,
                users: vec![],
                user_volume: VolumeReport::None,
                health: Health::default(),
                itself: Id::new([0xcd; 16]),
            }),
            r#"{"report":{"booted":true,"users":[],"user_volume":"none","health":{"disks":[],"failed_units":[],"troubles":[]},"itself":"cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"}}"#,
        ),
    ]
}

fn to_guest() -> Vec<(ToGuest, &'static str)> {
    let welcome = |user_volume| {
        ToGuest::Welcome(Welcome {
            protocol: 1,
            identity: Identity {
                host_name: "alice".to_owned().try_into().unwrap(),
                machine_id: Id::new([0xcd; 16]).unwrap(),
            },
            user_volume,
        })
    };
    let order = |id, what| ToGuest::Do(Order { id, what });
    vec![
        (
            welcome(None),
            r#"{"welcome":{"protocol":1,"identity":{"host_name":"alice","machine_id":"cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"},"user_volume":null}}"#,
        ),
        (
            welcome(Some(UserVolume {
                serial: "su-0123456789abcdef".to_owned().try_into().unwrap(),
                unwritten: true,
            })),
            r#"{"welcome":{"protocol":1,"identity":{"host_name":"alice","machine_id":"cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"},"user_volume":{"serial":"su-0123456789abcdef","unwritten":true}}}"#,
        ),
        (
            ToGuest::Refuse(Refuse {
                protocol: 1,
                oldest: 1,
            }),
            r#"{"refuse":{"protocol":1,"oldest":1}}"#,
        ),
        (order(1, What::Ping), r#"{"do":{"id":1,"what":"ping"}}"#),
        (
            order(2, What::Freeze { for_ms: 5000 }),
            r#"{"do":{"id":2,"what":{"freeze":{"for_ms":5000}}}}"#,
        ),
        (order(3, What::Thaw), r#"{"do":{"id":3,"what":"thaw"}}"#),
        (
            order(4, What::ShutDown),
            r#"{"do":{"id":4,"what":"shut_down"}}"#,
        ),
    ]
}

#[test]
fn lines_are_those_of_the_first_release() {
    for (message, line) in from_guest() {
        let encoded = String::from_utf8(message.encode()).unwrap();
        assert_eq!(encoded, format!("{line}\n"));
        assert_eq!(FromGuest::decode(line.as_bytes()).unwrap(), message);
        assert!(ToGuest::decode(line.as_bytes()).is_err(), "{line}");
    }
    for (message, line) in to_guest() {
        let encoded = String::from_utf8(message.encode()).unwrap();
        assert_eq!(encoded, format!("{line}\n"));
        assert_eq!(ToGuest::decode(line.as_bytes()).unwrap(), message);
        assert!(FromGuest::decode(line.as_bytes()).is_err(), "{line}");
    }
}

#[test]
fn what_is_not_exactly_a_message_is_none() {
    for line in [
        "",
        "{}",
        "null",
        r#"{"done":{"id":7}"#,
        r#"{"done":{"id":7}}{"done":{"id":8}}"#,
        r#"{"done":{"id":7,"more":1}}"#,
        r#"{"done":{"id":-1}}"#,
        r#"{"done":{"id":7,"error":"a\u001b[2J"}}"#,
        r#"{"done":{"id":7},"hello":{}}"#,
        r#"{"report":{"booted":true,"users":[],"user_volume":"none"}}"#,
        r#"{"report":{"booted":true,"users":[],"user_volume":"none","health":{"disks":[],"failed_units":[],"troubles":[]},"itself":true}}"#,
        r#"{"hello":{"protocol":1,"oldest":1,"agent":"","boot":"abababababababababababababababab"}}"#,
        r#"{"run":{"program":"/bin/sh"}}"#,
    ] {
        assert!(FromGuest::decode(line.as_bytes()).is_err(), "{line}");
    }
    for line in [
        r#"{"do":{"id":1,"what":"exec"}}"#,
        r#"{"do":{"id":1,"what":{"freeze":{"for_ms":60001}}}}"#,
        r#"{"do":{"id":1,"what":{"freeze":{"for_ms":1,"place":"/"}}}}"#,
        r#"{"welcome":{"protocol":1,"identity":{"host_name":"../x","machine_id":"cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"},"user_volume":null}}"#,
    ] {
        assert!(ToGuest::decode(line.as_bytes()).is_err(), "{line}");
    }
    let later = r#"{"hello":{"protocol":9,"oldest":3,"agent":"9","boot":"abababababababababababababababab","new":[]}}"#;
    assert!(
        FromGuest::decode(later.as_bytes()).is_ok(),
        "a later agent's greeting is understood as far as it goes"
    );
}

#[test]
fn two_ends_find_a_common_protocol_or_none() {
    assert_eq!(common_protocol(1, 1), Some(1));
    assert_eq!(common_protocol(2, 1), Some(2));
    assert_eq!(common_protocol(9, 1), Some(3));
    assert_eq!(common_protocol(9, 3), Some(3));
    assert_eq!(common_protocol(9, 4), None);
    assert_eq!(common_protocol(0, 0), None);
}

/// The longest report: every list full, every text at its limit and of characters that JSON doubles.
fn largest() -> Report {
    fn full<const MAX: usize>() -> Text<MAX> {
        text(&"\\".repeat(MAX))
    }
    let user = User {
        name: full(),
        since_unix_s: u64::MAX,
    };
    let disk = DiskHealth {
        place: full(),
        used_percent: 100,
    };
    Report {
        booted: false,
        users: vec![user; USERS_MAX],
        user_volume: VolumeReport::Refused(full()),
        health: Health {
            disks: vec![disk; DISKS_MAX],
            failed_units: vec![full(); FAILED_UNITS_MAX],
            troubles: vec![full(); TROUBLES_MAX],
        },
        itself: Id::new([0xff; 16]),
    }
}

#[test]
fn the_largest_report_fits_a_line_and_one_more_of_anything_is_refused() {
    let line = FromGuest::Report(largest()).encode();
    assert!(line.len() <= LINE_BYTES_MAX, "{} bytes", line.len());
    assert!(FromGuest::decode(&line).is_ok());
    type More = fn(&mut Report);
    let more: [More; 4] = [
        |report| report.users.push(report.users[0].clone()),
        |report| report.health.disks[0].used_percent = 101,
        |report| report.health.failed_units.push(text("a")),
        |report| report.health.troubles.push(text("a")),
    ];
    for more in more {
        let mut report = largest();
        more(&mut report);
        assert!(FromGuest::decode(&FromGuest::Report(report).encode()).is_err());
    }
}

proptest! {
    #[test]
    fn no_line_does_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = FromGuest::decode(&bytes);
        let _ = ToGuest::decode(&bytes);
    }

    #[test]
    fn a_message_with_a_changed_byte_is_another_or_none(which in 0usize..7, at in 0usize..300, byte in any::<u8>()) {
        let mut line = from_guest()[which].1.as_bytes().to_vec();
        let at = at % line.len();
        line[at] = byte;
        if let Ok(message) = FromGuest::decode(&line) {
            let again = message.encode();
            prop_assert_eq!(FromGuest::decode(again.trim_ascii_end()).unwrap(), message);
        }
    }
}
