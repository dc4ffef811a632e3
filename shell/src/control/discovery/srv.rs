//! SRV records (RFC 2782), which are looked up again when they have lived their time.

use std::time::Duration;

use flowgate_config::{Member, Target};

use super::{Followed, jittered};
use crate::control::resolve::lookup::Service;
use crate::control::resolve::{MAX_TTL, MIN_TTL};

pub(super) async fn follow(name: &str, followed: &mut Followed) {
    loop {
        let (outcome, ttl) = match followed.duty.lookups.look_up_services(name).await {
            Ok((services, ttl)) => (members(&services), ttl),
            Err(why) => (Err(why), Duration::ZERO),
        };
        let failed = followed.learn(outcome);
        let fresh = || jittered(ttl.clamp(MIN_TTL, MAX_TTL));
        tokio::time::sleep(failed.unwrap_or_else(fresh)).await;
    }
}

/// The backends that services are. Who has the least priority of all numbers serves, the others
/// stand by. A service at `.` says that there is none.
fn members(services: &[Service]) -> Result<Vec<Member>, String> {
    let first = services.iter().map(|service| service.priority).min().unwrap_or_default();
    let mut members: Vec<Member> = Vec::new();
    for service in services.iter().filter(|service| service.host != ".") {
        let text = format!("{}:{}", service.host.trim_end_matches('.'), service.port);
        let target =
            Target::parse(&text).map_err(|allowed| format!("{text}: allowed: {allowed}"))?;
        // With a final dot no search domain is tried: the record has the whole name.
        let target = match target {
            Target::Name { host, port } => Target::Name { host: format!("{host}."), port },
            address @ Target::Address(_) => address,
        };
        if members.iter().all(|member| member.target != target) {
            members.push(Member {
                target,
                // 0 is a very small chance there, and none at all here.
                weight: u32::from(service.weight).max(1),
                backup: service.priority > first,
                max_flows: 0,
                answers: true,
                server_id: None,
            });
        }
    }
    members.sort_by_key(|member| member.target.to_string());
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(host: &str, priority: u16, weight: u16) -> Service {
        Service { host: host.to_owned(), port: 53, priority, weight }
    }

    #[test]
    fn the_least_priority_serves_and_the_others_stand_by() {
        let services = [
            service("b.example.", 20, 5),
            service("a.example.", 10, 0),
            service("c.example.", 10, 3),
        ];
        let found: Vec<_> = members(&services)
            .unwrap()
            .into_iter()
            .map(|m| (m.target.to_string(), m.weight, m.backup))
            .collect();
        let expected =
            [("a.example.:53", 1, false), ("b.example.:53", 5, true), ("c.example.:53", 3, false)];
        assert_eq!(
            found,
            expected.map(|(target, weight, backup)| (target.to_owned(), weight, backup))
        );
    }

    #[test]
    fn a_service_that_is_not_there_is_an_empty_set() {
        assert_eq!(members(&[service(".", 0, 0)]), Ok(vec![]));
        assert!(members(&[service("a b.", 0, 0)]).is_err());
    }
}
