//! The portal over a branch that is made up: rights, tickets, the line, what ends.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Semaphore;

use super::line::Memory;
use super::*;
use crate::people::{Admitted, Standing};

/// Of everybody who is on the roster.
pub(crate) const PASSWORD: &str = "correct horse battery";

/// A branch that is made up: people with pools, desktops that run at once when they are started.
pub(crate) struct FakeHouse {
    pub(crate) people: Mutex<HashMap<String, Standing>>,
    pub(crate) desktops: Mutex<HashMap<String, Seen>>,
    pub(crate) now: AtomicU64,
    /// What starts answer, if not that it runs.
    pub(crate) fails: Mutex<Option<String>>,
    /// Where screens are.
    pub(crate) screen: PathBuf,
    pub(crate) limit_mib: AtomicU64,
}

impl FakeHouse {
    pub(crate) fn new(screen: PathBuf) -> Arc<Self> {
        let house = Self {
            people: Mutex::default(),
            desktops: Mutex::default(),
            now: AtomicU64::new(1_000_000),
            fails: Mutex::default(),
            screen,
            limit_mib: AtomicU64::new(4096),
        };
        house.entitle("alice", &["lab", "office"]);
        house.entitle("bob", &["office"]);
        Arc::new(house)
    }

    pub(crate) fn entitle(&self, user: &str, pools: &[&str]) {
        let standing = Standing {
            pools: pools.iter().map(|pool| (*pool).to_owned()).collect(),
            epoch: [1; 32],
        };
        lock(&self.people).insert(user.into(), standing);
    }

    fn state(&self, name: &str) -> Option<DesktopState> {
        lock(&self.desktops).get(name).map(|seen| seen.state)
    }

    fn pass_s(&self, seconds: u64) {
        self.now.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl House for FakeHouse {
    fn branch(&self) -> String {
        "new-york".into()
    }

    fn now_unix_s(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn stretching(&self) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(1))
    }

    fn log_in(&self, request: &LogIn) -> Result<Admitted, LogInError> {
        let standing = self.standing(&request.name);
        let standing = standing.filter(|_| request.password == PASSWORD);
        Ok(Admitted {
            name: request.name.clone(),
            pools: standing.ok_or(LogInError::Wrong)?.pools,
        })
    }

    fn standing(&self, user: &str) -> Option<Standing> {
        lock(&self.people).get(user).cloned()
    }

    fn desktop(&self, name: &str) -> Result<Option<Seen>, DesktopError> {
        Ok(lock(&self.desktops).get(name).cloned())
    }

    fn start(&self, pool: &str, name: &str) -> Result<(), DesktopError> {
        if let Some(why) = lock(&self.fails).clone() {
            return Err(DesktopError::Name(why));
        }
        let seen = Seen {
            pool: pool.into(),
            state: DesktopState::Running,
            error: None,
            pooled: false,
            screen: Some(self.screen.clone()),
        };
        lock(&self.desktops).insert(name.into(), seen);
        Ok(())
    }

    fn stop(&self, name: &str, _force: bool) -> Result<(), DesktopError> {
        let mut desktops = lock(&self.desktops);
        let seen = desktops.get_mut(name);
        let seen = seen.ok_or_else(|| DesktopError::NotFound(name.into()))?;
        seen.state = DesktopState::Stopped;
        seen.screen = None;
        Ok(())
    }

    fn memory(&self) -> Result<Memory, DesktopError> {
        let desktops = lock(&self.desktops);
        let running = desktops.values().filter(|seen| seen.screen.is_some());
        Ok(Memory {
            limit_mib: self.limit_mib.load(Ordering::Relaxed),
            used_mib: running.count() as u64 * 2048,
        })
    }

    fn wants_mib(&self, _pool: &str) -> Option<u64> {
        Some(2048)
    }
}

fn portal() -> (Arc<FakeHouse>, Portal) {
    let house = FakeHouse::new("/nowhere/screen.sock".into());
    let behind: Arc<dyn House> = house.clone();
    (house, Portal::new(behind, Some(600)))
}

fn log_in(portal: &Portal, name: &str) -> (String, Caller) {
    let request = LogIn {
        name: name.into(),
        password: PASSWORD.into(),
        code: None,
    };
    let begun = portal.log_in(&request).unwrap();
    let caller = portal.caller(&begun.secret).unwrap();
    (begun.secret, caller)
}

/// One click, with what it begins.
fn click(portal: &Portal, caller: &Caller, pool: &str) -> Result<String, PortalError> {
    loop {
        match portal.connect(caller, pool)? {
            (Connection::Ready { ticket }, None) => return Ok(ticket),
            (Connection::Starting, Some(begin)) => portal.begin(&begin),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn one_click_starts_a_desktop_and_the_next_one_finds_it() {
    let (house, portal) = portal();
    let (secret, alice) = log_in(&portal, "alice");
    let ticket = click(&portal, &alice, "office").unwrap();
    let screen = portal.screen(&ticket, &secret).unwrap();
    assert_eq!(screen.name, "alice-office");
    assert_eq!(screen.socket, house.screen);
    assert!(matches!(
        portal.screen(&ticket, &secret),
        Err(PortalError::Ticket)
    ));
    // From another place.
    let (elsewhere, again) = log_in(&portal, "alice");
    let ticket = click(&portal, &again, "office").unwrap();
    assert_eq!(
        portal.screen(&ticket, &elsewhere).unwrap().name,
        "alice-office"
    );
    assert_eq!(lock(&house.desktops).len(), 1);
    let shown = portal.desktops(&alice).unwrap();
    let shown: Vec<_> = shown.iter().map(|d| (d.pool.as_str(), d.state)).collect();
    assert_eq!(
        shown,
        [("lab", None), ("office", Some(DesktopState::Running))]
    );
}

#[test]
fn nobody_reaches_another_s_desktop() {
    let (house, portal) = portal();
    let (secret, alice) = log_in(&portal, "alice");
    let (bobs, bob) = log_in(&portal, "bob");
    click(&portal, &alice, "lab").unwrap();
    for pool in ["lab", "alice-office", "", "../office", "office\0"] {
        let refused = portal.connect(&bob, pool).unwrap_err();
        assert!(matches!(refused, PortalError::NotYours { .. }), "{refused}");
        let refused = portal.power(&bob, pool, PowerAction::PowerOff).unwrap_err();
        assert!(matches!(refused, PortalError::NotYours { .. }), "{refused}");
    }
    assert_eq!(house.state("alice-lab"), Some(DesktopState::Running));
    let shown = portal.desktops(&bob).unwrap();
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0].name, "bob-office");
    // A ticket is of its session, and used up by whoever tries it.
    let ticket = click(&portal, &alice, "office").unwrap();
    assert!(matches!(
        portal.screen(&ticket, &bobs),
        Err(PortalError::Ticket)
    ));
    assert!(matches!(
        portal.screen(&ticket, &secret),
        Err(PortalError::Ticket)
    ));
}

#[test]
fn what_is_in_the_way_of_a_name_is_not_handed_out() {
    let (house, portal) = portal();
    let (_, alice) = log_in(&portal, "alice");
    house.start("other", "alice-office").unwrap();
    let refused = portal.connect(&alice, "office").unwrap_err();
    assert!(
        matches!(&refused, PortalError::Taken { pool, .. } if pool == "other"),
        "{refused}"
    );
    assert_eq!(portal.desktops(&alice).unwrap()[1].state, None);
    // Its disk is somebody else's to run.
    lock(&house.desktops).get_mut("alice-office").unwrap().pool = "office".into();
    lock(&house.desktops).get_mut("alice-office").unwrap().state = DesktopState::Served;
    let refused = portal.connect(&alice, "office").unwrap_err();
    assert!(matches!(refused, PortalError::Served { .. }), "{refused}");
}

#[test]
fn rights_that_end_end_everything() {
    let (house, portal) = portal();
    let (secret, alice) = log_in(&portal, "alice");
    let (other, _) = log_in(&portal, "alice");
    let ticket = click(&portal, &alice, "office").unwrap();
    let screen = portal.screen(&ticket, &secret).unwrap();
    let mut entered = portal.enter(&screen);
    portal.tend();
    assert!(entered.end.try_recv().is_err(), "it goes on");

    let late = click(&portal, &alice, "office").unwrap();
    house.entitle("alice", &["lab"]);
    let refused = portal.screen(&late, &secret).unwrap_err();
    assert!(matches!(refused, PortalError::NotYours { .. }), "{refused}");
    portal.tend();
    assert_eq!(entered.end.try_recv(), Ok(viewers::Why::NoRight));
    assert!(portal.caller(&secret).is_ok());
    // A new password.
    lock(&house.people).get_mut("alice").unwrap().epoch = [2; 32];
    assert!(matches!(portal.caller(&secret), Err(PortalError::Nobody)));
    portal.tend();
    lock(&house.people).get_mut("alice").unwrap().epoch = [1; 32];
    assert!(portal.caller(&other).is_err(), "it was ended, not hidden");
    // Off the roster, and the session's own end.
    let (bobs, _) = log_in(&portal, "bob");
    house.pass_s(SESSION_S);
    assert!(portal.caller(&bobs).is_err());
    let (bobs, _) = log_in(&portal, "bob");
    lock(&house.people).clear();
    assert!(portal.caller(&bobs).is_err());
}

#[test]
fn a_log_out_ends_its_own_looking_and_no_other() {
    let (_, portal) = portal();
    let (secret, alice) = log_in(&portal, "alice");
    let (bobs, bob) = log_in(&portal, "bob");
    let screen = |secret: &str, caller: &Caller| {
        let ticket = click(&portal, caller, "office").unwrap();
        portal.enter(&portal.screen(&ticket, secret).unwrap())
    };
    let (mut hers, mut his) = (screen(&secret, &alice), screen(&bobs, &bob));
    let ticket = click(&portal, &alice, "office").unwrap();
    let opened = portal.screen(&ticket, &secret).unwrap();
    portal.log_out(&alice);
    assert_eq!(hers.end.try_recv(), Ok(viewers::Why::NoRight));
    // One whose ticket was used up just before.
    let mut late = portal.enter(&opened);
    portal.tend();
    assert_eq!(late.end.try_recv(), Ok(viewers::Why::NoRight));
    assert!(his.end.try_recv().is_err());
    assert!(portal.caller(&secret).is_err());
    assert!(portal.caller(&bobs).is_ok());
}

#[test]
fn who_finds_no_room_waits_with_a_reason_and_is_let_in() {
    let (house, portal) = portal();
    let (_, alice) = log_in(&portal, "alice");
    let (_, bob) = log_in(&portal, "bob");
    click(&portal, &alice, "office").unwrap();
    click(&portal, &alice, "lab").unwrap();
    let (waits, begin) = portal.connect(&bob, "office").unwrap();
    assert_eq!(begin, None);
    let Connection::Waiting {
        position: 1,
        reason,
    } = &waits
    else {
        panic!("{waits:?}");
    };
    assert!(reason.contains("4096 of 4096 MiB"), "{reason}");
    portal.power(&alice, "lab", PowerAction::ShutDown).unwrap();
    assert_eq!(house.state("alice-lab"), Some(DesktopState::Stopped));
    click(&portal, &bob, "office").unwrap();
}

#[test]
fn why_it_did_not_start_is_told_once_and_another_click_tries_again() {
    let (house, portal) = portal();
    let (_, alice) = log_in(&portal, "alice");
    *lock(&house.fails) = Some("no kernel".into());
    let refused = click(&portal, &alice, "office").unwrap_err().to_string();
    assert!(refused.contains("no kernel"), "{refused}");
    *lock(&house.fails) = None;
    click(&portal, &alice, "office").unwrap();
}

#[test]
fn a_desktop_that_nobody_looks_at_is_shut_down_after_its_time() {
    let (house, portal) = portal();
    let (secret, alice) = log_in(&portal, "alice");
    let ticket = click(&portal, &alice, "office").unwrap();
    let screen = portal.screen(&ticket, &secret).unwrap();
    let first = portal.enter(&screen);
    house.pass_s(10_000);
    portal.tend();
    assert_eq!(house.state("alice-office"), Some(DesktopState::Running));
    let second = portal.enter(&screen);
    portal.leave(&screen, first.number);
    house.pass_s(10_000);
    portal.tend();
    assert_eq!(
        house.state("alice-office"),
        Some(DesktopState::Running),
        "taken over, not left"
    );
    portal.leave(&screen, second.number);
    house.pass_s(599);
    portal.tend();
    assert_eq!(house.state("alice-office"), Some(DesktopState::Running));
    house.pass_s(1);
    portal.tend();
    assert_eq!(house.state("alice-office"), Some(DesktopState::Stopped));
}
