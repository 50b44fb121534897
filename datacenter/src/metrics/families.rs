//! The datacenter's table of metrics. The reference in `docs/observability.md` is this table, and a test holds one against the other.

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

/// All that a datacenter tells. Counters begin at zero when the daemon starts; those of branches when their branch server does.
#[rustfmt::skip]
pub const FAMILIES: &[Family] = &[
    gauge("splice_datacenter_build_info", "", &["version"], "Always 1; the software version is the label."),
    gauge("splice_datacenter_start_timestamp_seconds", "seconds", &[], "When the daemon started."),
    gauge("splice_datacenter_metrics_dropped_series", "", &[], "Series left out of this scrape because their family had over 10,000."),
    gauge("splice_datacenter_warnings", "", &[], "Warnings that `splice status` shows."),
    gauge("splice_datacenter_endorsement_until_timestamp_seconds", "seconds", &[], "Until when the publisher key is endorsed; it is renewed with the root key before."),
    gauge("splice_datacenter_operations_running", "", &[], "Long operations at work."),
    gauge("splice_datacenter_images", "", &[], "Images."),
    gauge("splice_datacenter_versions", "", &[], "Visible versions."),

    gauge("splice_datacenter_branches", "", &["state"], "Branches by state: invited, joined or revoked."),
    gauge("splice_datacenter_branches_online", "", &[], "Branches whose link is up."),
    gauge("splice_datacenter_branches_ready", "", &[], "Branches that said of each of their pools that it boots with the WAN cut."),
    gauge("splice_datacenter_branch_up", "", &["branch"], "Whether the link of a branch that has joined is up."),
    gauge("splice_datacenter_branch_ready", "", &["branch"], "Whether it said of each of its pools, in the version that it runs now, that it boots with the WAN cut."),
    gauge("splice_datacenter_branch_certificate_until_timestamp_seconds", "seconds", &["branch"], "Until when its certificate holds."),
    gauge("splice_datacenter_branch_report_timestamp_seconds", "seconds", &["branch"], "When it wrote its last report, by its own clock; what follows is from that."),
    gauge("splice_datacenter_branch_round_trip_seconds", "seconds", &["branch"], "Smoothed round trip of its link, while that is up."),
    counter("splice_datacenter_branch_received_bytes", "bytes", &["branch"], "UDP payload that it received."),
    counter("splice_datacenter_branch_cache_hits", "", &["branch"], "Reads answered from its cache."),
    counter("splice_datacenter_branch_cache_misses", "", &["branch"], "Reads that waited for the link."),
    gauge("splice_datacenter_branch_cache_used_bytes", "bytes", &["branch"], "Bytes in its cache."),
    gauge("splice_datacenter_branch_cache_capacity_bytes", "bytes", &["branch"], "Bytes that may be in its cache."),
    gauge("splice_datacenter_branch_missing_bytes", "bytes", &["branch"], "Bytes of the versions assigned to it or in use there that are not there."),
    gauge("splice_datacenter_branch_desktops", "", &["branch", "state"], "Its desktops by state: starting, running, served, paused, stopped, failed or other."),

    gauge("splice_datacenter_rollouts", "", &["state"], "Rollouts that are remembered, by state: running, paused, rolling_back, done or rolled_back."),
    gauge("splice_datacenter_rollout_pools", "", &["state"], "Pools at branches of rollouts that have not ended, by state: waiting, staging, staged, flipped, healthy, returned or left."),

    gauge("splice_datacenter_links_up", "", &[], "Links that are up; a branch that reconnects has two for a moment."),
    counter("splice_datacenter_link_connections", "", &[], "Links of branches that were made."),
    counter("splice_datacenter_link_sent_bytes", "bytes", &[], "UDP payload sent to branches, headers and retransmissions included."),
    counter("splice_datacenter_link_received_bytes", "bytes", &[], "UDP payload received from branches, headers and retransmissions included."),
    counter("splice_datacenter_link_class_sent_bytes", "bytes", &["class"], "Bytes of frames sent to branches, by class: demand, boot, state or fill."),
    counter("splice_datacenter_link_lost_packets", "", &[], "Packets sent to branches and declared lost."),

    gauge("splice_datacenter_store_packs", "", &[], "Pack files."),
    gauge("splice_datacenter_store_chunks", "", &[], "Chunks in them, as often as they lie there."),
    gauge("splice_datacenter_store_nodes", "", &[], "Manifest nodes in them."),
    gauge("splice_datacenter_store_plain_bytes", "bytes", &[], "Plain bytes of all of them."),
    gauge("splice_datacenter_store_stored_bytes", "bytes", &[], "Bytes of the pack files."),
    gauge("splice_datacenter_store_free_bytes", "bytes", &[], "Bytes free on the store's disk."),
    gauge("splice_datacenter_store_damaged", "", &[], "Names that are known to be damaged and are not repaired."),
    gauge("splice_datacenter_store_halted", "", &[], "Whether collections are halted until somebody has looked into it."),
    gauge("splice_datacenter_store_deleted_versions", "", &[], "Deleted versions that can still be had back."),
    gauge("splice_datacenter_collection_timestamp_seconds", "seconds", &[], "When the last collection of garbage ended well; absent before the first."),
    gauge("splice_datacenter_collection_freed_bytes", "bytes", &[], "Bytes that it gave back to the disk."),
    gauge("splice_datacenter_collection_dead_bytes", "bytes", &[], "Bytes that nothing refers to in the packs that it left."),
    gauge("splice_datacenter_scrub_passes", "", &[], "Passes of the scrub over the whole store that ended."),
    gauge("splice_datacenter_scrub_began_timestamp_seconds", "seconds", &[], "When the present pass began; absent before the first."),
    gauge("splice_datacenter_scrub_ended_timestamp_seconds", "seconds", &[], "When the last pass ended; absent before that."),
    gauge("splice_datacenter_backup_running", "", &[], "Whether a backup is at work."),
    gauge("splice_datacenter_backup_timestamp_seconds", "seconds", &[], "When the last backup ended well; absent if none of the remembered operations is one."),
    gauge("splice_datacenter_backup_size_bytes", "bytes", &[], "Bytes in it."),
    gauge("splice_datacenter_backup_damaged", "", &[], "Pieces of packs that are damaged in it, because they were in the store."),

    gauge("splice_datacenter_volumes", "", &["lease"], "Volumes of desktops: held by a branch, or free. This and the next four are looked up once a minute."),
    gauge("splice_datacenter_write_back_behind_records", "", &[], "Durable records that are not here, as branches last said."),
    gauge("splice_datacenter_write_back_rpo_seconds", "seconds", &["branch"], "What the loss of a branch would cost at most: the age of the oldest state here of the volumes that it holds."),
    gauge("splice_datacenter_snapshots", "", &[], "Snapshots of volumes."),
    gauge("splice_datacenter_forks", "", &[], "Forks that wait for somebody to decide about them."),

    counter("splice_datacenter_http_requests", "", &["method", "route", "status"], "Requests to the management API."),
    Family::histogram("splice_datacenter_http_request_duration_seconds", &["method", "route"], "How long they took."),
];
