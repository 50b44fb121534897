//! Transport settings for long fat links, and what they cost.
//!
//! quinn's defaults fit 100 Mbit/s at 100 ms; a stream window of 1.25 MB gives 16.7 Mbit/s at 600 ms. Ours are sized by
//! bandwidth-delay product: 64 MiB per link carries 850 Mbit/s at 600 ms. Windows bound memory, they do not take it: a
//! receiver holds what it has not read yet, a sender what is not acknowledged yet. One stream gets no more than
//! [`STREAM_WINDOW_BYTES_MAX`], so a fast transfer over a long path is spread over several requests.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn::{MtuDiscoveryConfig, TransportConfig, VarInt};

use super::LinkError;
use crate::congestion::{DeliveryConfig, PathCell, SendWindow};

/// Smallest window accepted, in bytes: below, not even a frame of ordinary size fits.
const WINDOW_BYTES_MIN: u64 = 1 << 20;
/// Largest window accepted, in bytes: 14 Gbit/s at 600 ms, and a bound on what one peer can make us hold.
const WINDOW_BYTES_MAX: u64 = 1 << 30;
/// Most that one stream may have in flight, in bytes: 28 Mbit/s at 600 ms.
///
/// quinn ends the whole connection ("too many gaps in stream buffer") once a stream holds more than 1024 pieces with
/// holes between them. A burst that loses every other packet of 1.16 KB reaches that within 2.4 MB; on a long path with
/// large windows such bursts happen. Below this cap no pattern of loss can end a link.
const STREAM_WINDOW_BYTES_MAX: u64 = 2 << 20;
/// Unread bytes that one branch can make a datacenter hold: 16 GB for a thousand that all do. 223 Mbit/s of uploads at 600 ms.
const RECEIVE_WINDOW_BYTES_MAX_DATACENTER: u64 = 16 << 20;
/// Longest idle timeout accepted. A dead peer must be noticed while somebody still waits for it.
const IDLE_TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// Requests a branch may have open at once: desktops × reads in flight, with room.
pub(crate) const REQUESTS_MAX_FROM_BRANCH: u32 = 1024;
/// Requests a datacenter may have open at once towards a branch: control only.
pub(crate) const REQUESTS_MAX_FROM_DATACENTER: u32 = 256;

/// Datagram bytes buffered per direction: repair symbols are worth nothing when they are late, so little is kept.
const DATAGRAM_BUFFER_BYTES: usize = 1 << 20;

/// Round-trip time assumed before the first sample. The first retransmission comes after three times this, and must
/// not come before the answer on a 600 ms path.
const INITIAL_RTT: Duration = Duration::from_millis(300);

/// Every path of the Internet carries this UDP payload (RFC 9000 section 14).
const MTU_INITIAL: u16 = 1200;
/// The most that is probed for: Ethernet's 1500 less IPv6 and UDP headers.
const MTU_PROBED_MAX: u16 = 1452;

/// Which congestion control the sending end runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Congestion {
    /// Ours: keeps in flight what the path was measured to deliver in a round trip. For WANs with random loss; see
    /// [`crate::congestion`].
    #[default]
    Delivery,
    /// quinn's BBR. As fast under random loss, but it sends up to twice the payload.
    Bbr,
    /// RFC 9438. Fair beside TCP, slow to recover from loss on long paths.
    Cubic,
    /// RFC 9002 section 7. The yardstick.
    NewReno,
}

/// A name that is not a congestion control.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a congestion control: use delivery, bbr, cubic or newreno")]
pub struct ParseCongestionError {
    text: String,
}

impl FromStr for Congestion {
    type Err = ParseCongestionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "delivery" => Ok(Self::Delivery),
            "bbr" => Ok(Self::Bbr),
            "cubic" => Ok(Self::Cubic),
            "newreno" => Ok(Self::NewReno),
            _ => Err(ParseCongestionError {
                text: text.chars().take(40).collect(),
            }),
        }
    }
}

impl fmt::Display for Congestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delivery => "delivery",
            Self::Bbr => "bbr",
            Self::Cubic => "cubic",
            Self::NewReno => "newreno",
        })
    }
}

/// What an operator may set about a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkTuning {
    /// Congestion control of this end's sending.
    pub congestion: Congestion,
    /// Bytes in flight or unread per link and direction, 1 MiB to 1 GiB. One stream may use half, but at most 2 MiB.
    pub window_bytes: u64,
    /// How often an idle link is touched; also what keeps a NAT's mapping alive.
    pub keep_alive: Duration,
    /// Silence after which the peer counts as dead; at least twice `keep_alive`. The smaller of both ends' holds.
    pub idle_timeout: Duration,
}

impl Default for LinkTuning {
    fn default() -> Self {
        Self {
            congestion: Congestion::default(),
            window_bytes: 64 << 20,
            keep_alive: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(20),
        }
    }
}

impl LinkTuning {
    /// The QUIC settings of a datacenter's end, for simulations that run them on a virtual clock. The congestion control meets the
    /// simulation in `path`.
    ///
    /// # Errors
    /// [`LinkError::Tuning`].
    pub fn quic_settings_for_datacenter(
        &self,
        path: &Arc<PathCell>,
    ) -> Result<Arc<TransportConfig>, LinkError> {
        self.transport(REQUESTS_MAX_FROM_BRANCH, false, path)
    }

    /// As [`Self::quic_settings_for_datacenter`], of a branch's end.
    ///
    /// # Errors
    /// [`LinkError::Tuning`].
    pub fn quic_settings_for_branch(
        &self,
        path: &Arc<PathCell>,
    ) -> Result<Arc<TransportConfig>, LinkError> {
        self.transport(REQUESTS_MAX_FROM_DATACENTER, true, path)
    }

    /// Builds quinn's settings; `requests_max` bounds what the peer may have open, `greeted` lets it send the greeting; the
    /// congestion control meets the link in `path`.
    pub(crate) fn transport(
        &self,
        requests_max: u32,
        greeted: bool,
        path: &Arc<PathCell>,
    ) -> Result<Arc<TransportConfig>, LinkError> {
        let Self {
            congestion,
            window_bytes,
            keep_alive,
            idle_timeout,
        } = *self;
        let refused = |reason: String| LinkError::Tuning { reason };
        if !(WINDOW_BYTES_MIN..=WINDOW_BYTES_MAX).contains(&window_bytes) {
            return Err(refused(format!(
                "a window of {window_bytes} bytes is outside {WINDOW_BYTES_MIN} to {WINDOW_BYTES_MAX}"
            )));
        }
        if keep_alive.is_zero() || keep_alive * 2 > idle_timeout || idle_timeout > IDLE_TIMEOUT_MAX
        {
            return Err(refused(format!(
                "keep-alive {keep_alive:?} and idle timeout {idle_timeout:?} do not fit: the timeout is at least twice the keep-alive and at most {IDLE_TIMEOUT_MAX:?}"
            )));
        }
        let window = |bytes: u64| VarInt::from_u64(bytes).expect("1 GiB is below 2^62");
        let controller: Arc<dyn ControllerFactory + Send + Sync> = match congestion {
            Congestion::Delivery => Arc::new(DeliveryConfig {
                cell: Arc::clone(path),
            }),
            Congestion::Bbr => Arc::new(BbrConfig::default()),
            Congestion::Cubic => Arc::new(CubicConfig::default()),
            Congestion::NewReno => Arc::new(NewRenoConfig::default()),
        };
        // Only the branch is greeted; it has one link, the datacenter thousands.
        let receive_bytes = if greeted {
            window_bytes
        } else {
            window_bytes.min(RECEIVE_WINDOW_BYTES_MAX_DATACENTER)
        };
        let mut mtu_discovery = MtuDiscoveryConfig::default();
        mtu_discovery.upper_bound(MTU_PROBED_MAX);
        let mut transport = TransportConfig::default();
        transport
            .congestion_controller_factory(controller)
            .receive_window(window(receive_bytes))
            .stream_receive_window(window(STREAM_WINDOW_BYTES_MAX.min(window_bytes / 2)))
            .send_window(SendWindow::new(window_bytes).bytes())
            .keep_alive_interval(Some(keep_alive))
            .max_idle_timeout(Some(
                idle_timeout
                    .try_into()
                    .expect("ten minutes in milliseconds are below 2^62"),
            ))
            .max_concurrent_bidi_streams(requests_max.into())
            .max_concurrent_uni_streams(u32::from(greeted).into())
            .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
            .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
            .initial_rtt(INITIAL_RTT)
            .initial_mtu(MTU_INITIAL)
            .mtu_discovery_config(Some(mtu_discovery));
        Ok(Arc::new(transport))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn congestion_names_round_trip() {
        for congestion in [
            Congestion::Delivery,
            Congestion::Bbr,
            Congestion::Cubic,
            Congestion::NewReno,
        ] {
            assert_eq!(congestion.to_string().parse(), Ok(congestion));
        }
        assert_eq!(
            "vegas".parse::<Congestion>().unwrap_err().to_string(),
            "\"vegas\" is not a congestion control: use delivery, bbr, cubic or newreno"
        );
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let good = LinkTuning::default();
        let path = Arc::default();
        assert!(good.transport(1, true, &path).is_ok());
        for bad in [
            LinkTuning {
                window_bytes: 1000,
                ..good.clone()
            },
            LinkTuning {
                window_bytes: u64::MAX,
                ..good.clone()
            },
            LinkTuning {
                keep_alive: Duration::ZERO,
                ..good.clone()
            },
            LinkTuning {
                keep_alive: good.idle_timeout,
                ..good.clone()
            },
            LinkTuning {
                idle_timeout: Duration::from_secs(3600),
                ..good.clone()
            },
        ] {
            let error = bad.transport(1, true, &path).unwrap_err();
            assert!(
                matches!(error, LinkError::Tuning { .. }) && error.is_permanent(),
                "{error}"
            );
        }
    }
}
