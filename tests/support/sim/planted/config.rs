//! Bugs that amount to another configuration.

use std::time::Duration;

use flowgate_core::UdpManager;
use flowgate_core::config::{
    Affinity, BackendConfig, Failback, HealthPolicy, Limits, ManagerConfig, OnBackendDown,
    SendProxyProtocol,
};

use super::Bug;

/// Makes a manager believe that it was told something else.
pub(super) fn misread(config: &mut ManagerConfig, bug: Bug) {
    let cluster = &mut config.cluster;
    let mut each_backend = |change: fn(&mut BackendConfig)| {
        cluster.backends.iter_mut().for_each(change);
    };
    match bug {
        Bug::IgnoresLimits => each_backend(|backend| backend.max_flows = 0),
        Bug::IgnoresBackups => each_backend(|backend| backend.backup = false),
        Bug::IgnoresWeights => each_backend(|backend| backend.weight = backend.weight.min(1)),
        Bug::UsesTheWeightless => each_backend(|backend| backend.weight = backend.weight.max(1)),
        Bug::IgnoresAffinity => cluster.affinity = Affinity::SourceIpPort,
        Bug::IgnoresResponses => cluster.responses = 0,
        Bug::IgnoresRequests => cluster.requests = 0,
        Bug::LivesTooLong => cluster.idle_timeout += Duration::from_millis(1),
        Bug::AdmitsOneTooMany => config.max_flows += 1,
        Bug::IgnoresTheSlots => config.max_slots = u32::MAX,
        Bug::IgnoresTheOthers => config.shares_max_flows = false,
        Bug::ForwardsTheTooLarge => config.max_datagram_size = u16::MAX,
        Bug::RepeatsTheHeader if cluster.send_proxy_protocol == SendProxyProtocol::First => {
            cluster.send_proxy_protocol = SendProxyProtocol::Every;
        }
        Bug::IgnoresAllow => config.allow.clear(),
        Bug::IgnoresDeny => config.deny.clear(),
        // What a header says of the address would give it away.
        Bug::ServesItself if cluster.send_proxy_protocol == SendProxyProtocol::Off => {
            config.address.set_port(54);
        }
        Bug::ForgetsTheQuarantine => cluster.upstream_quarantine = Duration::ZERO,
        Bug::ShortensTheQuarantine => {
            let shorter = cluster.upstream_quarantine.saturating_sub(Duration::from_millis(1));
            cluster.upstream_quarantine = shorter;
        }
        Bug::KeepsUsingTheRemoved => each_backend(|backend| backend.removed = false),
        Bug::IgnoresOtherListeners => config.own_addresses.clear(),
        _ => {
            misread_limits(&mut cluster.limits, bug);
            misread_health(&mut cluster.health, bug);
        }
    }
}

fn misread_health(health: &mut HealthPolicy, bug: Bug) {
    let policy = &mut health.on_backend_down;
    match (bug, *policy) {
        (Bug::ForgetsToMove, OnBackendDown::Rehash) => *policy = OnBackendDown::Pin,
        (Bug::MovesThePinned, OnBackendDown::Pin) => *policy = OnBackendDown::Rehash,
        (Bug::ClosesTheMoving, OnBackendDown::Rehash) => *policy = OnBackendDown::Close,
        (Bug::MovesTheClosing, OnBackendDown::Close) => *policy = OnBackendDown::Rehash,
        _ => {}
    }
    match (bug, &mut health.passive) {
        (Bug::ForgetsToReturn, _) => health.failback = Failback::NewFlows,
        (Bug::IgnoresFailOpen, _) => health.fail_open = false,
        (Bug::FailsOpenUnasked, _) => health.fail_open = true,
        (Bug::WaitsForMoreSilence, Some(passive)) => passive.silent_flows += 1,
        (Bug::StaysOutTooLong, Some(passive)) => passive.back_off += Duration::from_millis(1),
        _ => {}
    }
}

/// Makes a manager that goes on believe that something else has changed.
pub(super) fn misread_change(new: &mut ManagerConfig, manager: &UdpManager, bug: Bug) {
    let old = manager.config();
    match bug {
        Bug::SwallowsTheNewcomer => {
            for (new, old) in new.cluster.backends.iter_mut().zip(&old.cluster.backends) {
                new.address = old.address;
            }
        }
        Bug::KeepsTheOldTimeout => new.cluster.idle_timeout = old.cluster.idle_timeout,
        Bug::KeepsTheOldSource => new.cluster.source = old.cluster.source.clone(),
        Bug::KeepsTheOldTable => new.max_flows = old.max_flows,
        Bug::ForgetsToRecount if new.cluster.limits != old.cluster.limits => {
            let limits = &mut new.cluster.limits;
            for limit in [&mut limits.flows_per_source, &mut limits.flows_per_subnet] {
                if *limit > 0 {
                    *limit += manager.flow_count() as u32;
                }
            }
        }
        _ => {}
    }
}

fn misread_limits(limits: &mut Limits, bug: Bug) {
    let raise = |limit: &mut u32| *limit += u32::from(*limit > 0);
    match bug {
        Bug::IgnoresFlowsPerSource => limits.flows_per_source = 0,
        Bug::IgnoresFlowsPerSubnet => limits.flows_per_subnet = 0,
        Bug::IgnoresTheRate => limits.new_flows_per_second_per_source = 0,
        Bug::AllowsAFasterRate => raise(&mut limits.new_flows_per_second_per_source),
        Bug::IgnoresTheDatagramRate => limits.datagrams_per_second_per_source = 0,
        Bug::AllowsOneDatagramMore => raise(&mut limits.datagrams_per_second_per_source),
        Bug::IgnoresTheByteRate => limits.bytes_per_second_per_source = 0,
        Bug::AllowsOneByteMore => {
            let limit = &mut limits.bytes_per_second_per_source;
            *limit += u64::from(*limit > 0);
        }
        Bug::IgnoresAmplification => limits.amplification = 0,
        Bug::AmplifiesABitMore => raise(&mut limits.amplification),
        Bug::IgnoresUnansweredFlows => limits.unanswered_flows = 0,
        Bug::IgnoresUnansweredTimeout => limits.unanswered_timeout = Duration::ZERO,
        _ => {}
    }
}
