use std::collections::VecDeque;
use std::sync::Mutex;

use super::*;

/// Answers each resolution with the next list, and counts.
#[derive(Default)]
struct Scripted {
    answers: Mutex<VecDeque<Vec<SocketAddr>>>,
    resolved: Mutex<u32>,
    connected: Mutex<Vec<SocketAddr>>,
}

impl Scripted {
    fn new(answers: &[&[&str]]) -> Arc<Self> {
        let answers = answers
            .iter()
            .map(|list| {
                list.iter()
                    .map(|text| SocketAddr::new(text.parse().unwrap(), 443))
                    .collect()
            })
            .collect();
        Arc::new(Self {
            answers: Mutex::new(answers),
            ..Self::default()
        })
    }
}

impl Network for Scripted {
    fn resolve<'a>(&'a self, _host: &'a str, _port: u16) -> NetworkFuture<'a, Vec<SocketAddr>> {
        *self.resolved.lock().unwrap() += 1;
        let answer = self.answers.lock().unwrap().pop_front().unwrap_or_default();
        Box::pin(async move { Ok(answer) })
    }

    fn connect(&self, address: SocketAddr) -> NetworkFuture<'_, TcpStream> {
        self.connected.lock().unwrap().push(address);
        Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
    }
}

fn to(text: &str) -> Destination {
    Destination::parse(text).unwrap()
}

const FORBIDDEN: &[&str] = &[
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.8.8.8",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "192.0.0.192",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:169.254.169.254",
    "::ffff:127.0.0.1",
    "::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2001::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "2001:db8::1",
];
const PUBLIC: &[&str] = &[
    "1.1.1.1",
    "100.63.0.1",
    "172.32.0.1",
    "198.20.0.1",
    "2606:4700::1111",
    "64:ff9b::101:101",
    "::ffff:1.1.1.1",
];

#[tokio::test]
async fn a_name_that_leads_inside_is_refused_and_never_connected() {
    for address in FORBIDDEN {
        let network = Scripted::new(&[&[address]]);
        let dialer = Dialer::over(Arc::clone(&network) as Arc<dyn Network>);
        let refusal = dialer.tcp(&to("api.example.com")).await.unwrap_err();
        assert_eq!(refusal.code, "address_not_allowed", "{address}");
        assert!(network.connected.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_public_name_is_connected_at_the_address_that_was_checked() {
    for address in PUBLIC {
        let network = Scripted::new(&[&[address], &["127.0.0.1"]]);
        let dialer = Dialer::over(Arc::clone(&network) as Arc<dyn Network>);
        let refusal = dialer.tcp(&to("api.example.com")).await.unwrap_err();
        assert_eq!(refusal.code, "upstream_unreachable");
        // A second resolution would have answered loopback: there was none.
        assert_eq!(*network.resolved.lock().unwrap(), 1);
        let wanted = SocketAddr::new(address.parse().unwrap(), 443);
        assert_eq!(*network.connected.lock().unwrap(), vec![wanted]);
    }
}

#[tokio::test]
async fn one_private_address_among_public_ones_refuses_all() {
    let network = Scripted::new(&[&["1.1.1.1", "10.0.0.1"]]);
    let dialer = Dialer::over(Arc::clone(&network) as Arc<dyn Network>);
    let refusal = dialer.tcp(&to("api.example.com")).await.unwrap_err();
    assert_eq!(refusal.code, "address_not_allowed");
    assert!(network.connected.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_bound_literal_is_dialed_exactly_and_never_resolved() {
    for literal in ["10.0.0.7", "127.0.0.1", "169.254.169.254", "[::1]"] {
        let network = Scripted::new(&[]);
        let dialer = Dialer::over(Arc::clone(&network) as Arc<dyn Network>);
        let destination = to(&format!("http://{literal}:8080"));
        dialer.tcp(&destination).await.unwrap_err();
        let connected = network.connected.lock().unwrap().clone();
        assert_eq!(
            connected,
            vec![SocketAddr::new(destination.host.parse().unwrap(), 8080)]
        );
        assert_eq!(*network.resolved.lock().unwrap(), 0);
    }
}

#[tokio::test]
async fn localhost_may_only_be_loopback() {
    for (address, code) in [
        ("127.0.0.1", "upstream_unreachable"),
        ("::1", "upstream_unreachable"),
        ("10.0.0.1", "address_not_allowed"),
        ("1.1.1.1", "address_not_allowed"),
    ] {
        let network = Scripted::new(&[&[address]]);
        let dialer = Dialer::over(network as Arc<dyn Network>);
        let refusal = dialer.tcp(&to("http://localhost:8080")).await.unwrap_err();
        assert_eq!(refusal.code, code, "{address}");
    }
}

#[tokio::test]
async fn a_connection_that_never_comes_up_ends_at_the_deadline() {
    struct Silent;
    impl Network for Silent {
        fn resolve<'a>(&'a self, _host: &'a str, _port: u16) -> NetworkFuture<'a, Vec<SocketAddr>> {
            Box::pin(std::future::pending())
        }
        fn connect(&self, _address: SocketAddr) -> NetworkFuture<'_, TcpStream> {
            Box::pin(std::future::pending())
        }
    }
    let dialer = Dialer::over(Arc::new(Silent));
    let refusal = dialer
        .open(&to("api.example.com"), Duration::from_millis(20))
        .await
        .err()
        .unwrap();
    assert_eq!(refusal.code, "upstream_timeout");
}
