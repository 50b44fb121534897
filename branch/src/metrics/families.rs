//! The branch's table of metrics. The reference in `docs/observability.md` is this table, and a test holds one against the other.

use datacenter_observe::family::Family;

const fn gauge(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    Family::gauge(name, unit, labels, help)
}

const fn counter(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    Family::counter(name, unit, labels, help)
}

/// All that a branch tells. Counters begin at zero when the branch server starts.
#[rustfmt::skip]
pub const FAMILIES: &[Family] = &[
    gauge("splice_branch_build_info", "", &["version"], "Always 1; the software version is the label."),
    gauge("splice_branch_start_timestamp_seconds", "seconds", &[], "When the branch server started."),
    gauge("splice_branch_metrics_dropped_series", "", &[], "Series left out of this scrape because their family had over 10,000."),

    gauge("splice_branch_link_up", "", &[], "Whether the link to the datacenter is up."),
    gauge("splice_branch_link_changed_timestamp_seconds", "seconds", &[], "Since when the link is up or down; absent before the first try."),
    gauge("splice_branch_link_round_trip_seconds", "seconds", &[], "Smoothed round trip, while the link is up."),
    counter("splice_branch_link_connections", "", &[], "Connections that were made."),
    counter("splice_branch_link_sent_bytes", "bytes", &[], "UDP payload sent, headers and retransmissions included."),
    counter("splice_branch_link_received_bytes", "bytes", &[], "UDP payload received, headers and retransmissions included."),
    counter("splice_branch_link_class_sent_bytes", "bytes", &["class"], "Bytes of frames sent, by class: demand, boot, state or fill."),
    counter("splice_branch_link_class_received_bytes", "bytes", &["class"], "Bytes of frames received, by class: demand, boot, state or fill."),
    counter("splice_branch_link_lost_packets", "", &[], "Packets that this end sent and declared lost."),
    counter("splice_branch_link_repairs_received", "", &[], "Datagrams received that repair what packet loss tore out of answers."),

    counter("splice_branch_demand_chunks", "", &[], "Chunks that a guest had to wait for."),
    counter("splice_branch_prefetched_chunks", "", &[], "Chunks fetched before a guest asked."),
    counter("splice_branch_fetched_bytes", "bytes", &[], "Plain bytes of all chunks fetched."),
    counter("splice_branch_fetched_by_update_bytes", "bytes", &[], "Those of them that came encoded against what was here."),
    counter("splice_branch_update_packed_bytes", "bytes", &[], "Bytes that these took on the link."),
    Family::histogram("splice_branch_demand_wait_seconds", &[], "How long guests waited for the chunks that one read lacked."),
    Family::histogram("splice_branch_fetch_duration_seconds", &["class"], "How long requests for chunks took to the last one cached: boot (profiles and read-ahead) or fill."),

    gauge("splice_branch_cache_used_bytes", "bytes", &[], "Bytes that the cache's chunks take, in slots of 4 KiB."),
    gauge("splice_branch_cache_capacity_bytes", "bytes", &[], "Bytes that they may take."),
    gauge("splice_branch_cache_chunks", "", &[], "Chunks in the cache, those in quarantine included."),
    counter("splice_branch_cache_hits", "", &[], "Reads answered from the cache."),
    counter("splice_branch_cache_misses", "", &[], "Reads of chunks that were absent or in quarantine."),
    counter("splice_branch_cache_evicted_chunks", "", &[], "Chunks evicted to make room."),
    counter("splice_branch_cache_evicted_bytes", "bytes", &[], "Bytes that evictions gave back."),
    gauge("splice_branch_cache_quarantined_chunks", "", &[], "Chunks found damaged and not fetched again yet."),
    counter("splice_branch_cache_damaged_chunks", "", &[], "Chunks found damaged, healed since or not."),
    counter("splice_branch_cache_sync_failures", "", &[], "Syncs of the cache that failed; what they covered is fetched again after a crash."),

    gauge("splice_branch_fill_allowed", "", &[], "Whether fill may run at this hour, by the branch's policy."),
    gauge("splice_branch_version_size_bytes", "bytes", &["image", "version"], "Bytes of a version, each chunk once; of versions assigned or in use."),
    gauge("splice_branch_version_resident_bytes", "bytes", &["image", "version"], "Bytes of it that are here."),
    gauge("splice_branch_version_complete", "", &["image", "version"], "Whether nothing of it is missing, manifests included."),
    gauge("splice_branch_pool_boots_offline", "", &["pool"], "Whether a fresh desktop of the pool boots with the WAN cut; 0 for no and for unknown."),
    gauge("splice_branch_pool_missing_bytes", "bytes", &["pool"], "Bytes that are missing for that."),
    gauge("splice_branch_power_on_until_timestamp_seconds", "seconds", &[], "Until when fresh desktops start without the datacenter; absent without an assignment."),
    gauge("splice_branch_certificate_until_timestamp_seconds", "seconds", &[], "Until when the branch's certificate holds."),
    gauge("splice_branch_assignment_counter", "", &[], "Counter of the assignment that is followed; 0 before the first."),

    gauge("splice_branch_desktops", "", &["state"], "Desktops by state: starting, running, served, paused, stopped or failed."),
    gauge("splice_branch_overlays_open", "", &[], "Overlays that are open for a machine."),
    gauge("splice_branch_overlay_log_bytes", "bytes", &[], "Bytes in the logs of open overlays."),
    gauge("splice_branch_overlay_live_bytes", "bytes", &[], "Bytes in them that a read could still return."),
    gauge("splice_branch_overlay_extents", "", &[], "Extents of open overlays' indexes, about 22 bytes of memory each."),
    gauge("splice_branch_overlays_waiting_for_room", "", &[], "Open overlays whose writes find no room and wait."),
    gauge("splice_branch_overlay_missing_bytes", "bytes", &[], "Bytes that must come free on the disk before all of them go on."),
    gauge("splice_branch_overlay_free_bytes", "bytes", &[], "Bytes that are free for what desktops write, above what is kept free; absent if the disk does not tell."),
    gauge("splice_branch_overlays_failed", "", &[], "Open overlays that a failed write or sync has closed for good."),
    gauge("splice_branch_overlay_read_faults", "", &[], "Reads of open overlays that did not verify or failed."),

    gauge("splice_branch_volumes", "", &["lease"], "Volumes by lease: held, recalled, returning, fenced, given up, idle or unleased."),
    gauge("splice_branch_lease_earliest_end_timestamp_seconds", "seconds", &[], "When the first of the held leases ends, offline grace included; absent while none is held."),
    gauge("splice_branch_write_back_behind_records", "", &[], "Durable records of all volumes that are not at the datacenter."),
    gauge("splice_branch_write_back_rpo_seconds", "seconds", &[], "What the loss of this branch would cost now: the age of the oldest of them."),
    gauge("splice_branch_write_back_stalled_volumes", "", &[], "Volumes whose write-back is kept from going on by something other than the link."),

    counter("splice_branch_http_requests", "", &["method", "route", "status"], "Requests to the branch-local API and the metrics listener."),
    Family::histogram("splice_branch_http_request_duration_seconds", &["method", "route"], "How long they took."),
];
