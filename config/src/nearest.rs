//! What was probably meant.

/// Words of nginx, HAProxy and Envoy, without dashes, and what they may be called here.
const WORDS_OF_OTHERS: &[(&str, &[&str])] = &[
    ("accept_proxy", &["accept_proxy_protocol"]),
    ("access_log", &["flows"]),
    ("acl", &["route"]),
    ("backend", &["cluster", "backends"]),
    ("balancer", &["balance"]),
    ("bind", &["address"]),
    ("check", &["health", "probe"]),
    ("concurrency", &["workers"]),
    ("consistent", &["maglev", "rendezvous"]),
    ("default_backend", &["cluster"]),
    ("dgram_bind", &["address"]),
    ("endpoints", &["backends"]),
    ("error_log", &["level"]),
    ("fail_timeout", &["interval"]),
    ("fails", &["fall"]),
    ("frontend", &["listener"]),
    ("geo", &["route"]),
    ("hash", &["affinity", "rendezvous"]),
    ("hash_type", &["balance"]),
    ("health_check", &["health"]),
    ("health_checks", &["health"]),
    ("healthy_threshold", &["rise"]),
    ("hosts", &["backends"]),
    ("inter", &["interval"]),
    ("ip_hash", &["rendezvous", "balance"]),
    ("ipv6only", &["v6_only"]),
    ("lb_policy", &["balance"]),
    ("least_conn", &["least-flows", "balance"]),
    ("least_request", &["least-flows"]),
    ("leastconn", &["least-flows", "balance"]),
    ("limit_conn", &["limits"]),
    ("limit_req", &["limits"]),
    ("listen", &["address", "listener"]),
    ("listeners", &["listener"]),
    ("load_assignment", &["backends"]),
    ("map", &["route"]),
    ("match", &["expect"]),
    ("max_conn", &["max_flows"]),
    ("max_connections", &["max_flows"]),
    ("max_conns", &["max_flows"]),
    ("max_fails", &["fall"]),
    ("maxconn", &["max_flows"]),
    ("nbthread", &["workers"]),
    ("passes", &["rise"]),
    ("proxy_bind", &["source"]),
    ("proxy_buffer_size", &["max_datagram_size"]),
    ("proxy_connect_timeout", &["timeout"]),
    ("proxy_next_upstream", &["retry"]),
    ("proxy_next_upstream_timeout", &["retry"]),
    ("proxy_next_upstream_tries", &["retry"]),
    ("proxy_pass", &["cluster"]),
    ("proxy_protocol", &["send_proxy_protocol", "accept_proxy_protocol"]),
    ("proxy_requests", &["requests"]),
    ("proxy_responses", &["responses"]),
    ("proxy_timeout", &["idle_timeout"]),
    ("proxy_upload_rate", &["limits"]),
    ("random_two", &["power-of-two"]),
    ("rate_limit", &["limits"]),
    ("rcvbuf", &["receive_buffer"]),
    ("retries", &["retry"]),
    ("ring_hash", &["maglev", "rendezvous"]),
    ("round_robin", &["round-robin"]),
    ("roundrobin", &["round-robin"]),
    ("send_proxy_v2", &["send_proxy_protocol"]),
    ("server", &["backends", "listener"]),
    ("servers", &["backends"]),
    ("session_persistence", &["affinity"]),
    ("sndbuf", &["send_buffer"]),
    ("source", &["rendezvous"]),
    ("source_ip_hash", &["rendezvous"]),
    ("split_clients", &["weight"]),
    ("static_rr", &["round-robin"]),
    ("stick", &["affinity"]),
    ("stick_table", &["affinity"]),
    ("sticky", &["affinity"]),
    ("stream", &["listener"]),
    ("threads", &["workers"]),
    ("timeout", &["idle_timeout"]),
    ("timeout_check", &["timeout"]),
    ("timeout_client", &["idle_timeout"]),
    ("timeout_server", &["idle_timeout"]),
    ("transparent", &["source"]),
    ("unhealthy_threshold", &["fall"]),
    ("upstream", &["cluster", "backends"]),
    ("upstreams", &["cluster", "backends"]),
    ("use_backend", &["cluster"]),
    ("use_original_src_ip", &["source"]),
    ("v4v6", &["v6_only"]),
    ("v6only", &["v6_only"]),
    ("worker_connections", &["max_flows"]),
    ("worker_processes", &["workers"]),
];

/// The candidate that other balancers call `written`, or that `written` is probably a misspelling of.
///
/// A candidate of very different length is passed over unmeasured, so that the cost does not grow
/// with what the user wrote.
pub(crate) fn nearest<'a>(
    written: &str,
    candidates: impl Iterator<Item = &'a str> + Clone,
) -> Option<&'a str> {
    let word = written.to_lowercase().replace('-', "_");
    let elsewhere = WORDS_OF_OTHERS.iter().filter(|(other, _)| *other == word);
    let mut called_here = elsewhere.flat_map(|(_, here)| here.iter());
    let meant = called_here.find_map(|here| candidates.clone().find(|known| known == here));
    if meant.is_some() {
        return meant;
    }
    let distance = |candidate: &'a str| {
        let tolerance = candidate.len().div_ceil(3);
        if written.len().abs_diff(candidate.len()) > tolerance {
            return None;
        }
        let distance = strsim::osa_distance(&written.to_lowercase(), &candidate.to_lowercase());
        (distance <= tolerance).then_some((distance, candidate))
    };
    candidates
        .filter_map(distance)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, nearest)| nearest)
}
