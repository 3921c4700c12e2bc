//! Addresses for pods that run here as processes. The API server's pod proxy refuses loopback and link-local addresses
//! (`k8s.io/apimachinery/pkg/util/proxy`, `IsProxyableIP`), and two replicas of one Deployment name the same port: so each
//! gets an address of its own from the benchmark network (RFC 2544), on the loopback interface of this machine. So does a cluster that
//! a virtual machine and this one reach under the same address.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

use rand::RngExt;

/// Gives the address and takes it away when standard input ends, however we end.
const KEEPER: &str = r#"
ip address add "$1/32" dev lo || exit 1
echo given
read -r _
ip address del "$1/32" dev lo
"#;

/// How many addresses are tried: another program on this machine may hold one.
const ATTEMPTS: usize = 4;

/// An address of this machine until this is dropped.
#[derive(Debug)]
pub struct Address {
    address: Ipv4Addr,
    keeper: Child,
    lifeline: Option<ChildStdin>,
}

impl Address {
    /// Takes an address that nobody has. None without root, or without iproute2: then nothing on this machine can be reached
    /// through a pod proxy.
    #[must_use]
    pub fn take() -> Option<Self> {
        (0..ATTEMPTS).find_map(|_| {
            // 198.18.0.0/15, without the ends of each /24.
            let random = &mut rand::rng();
            let (net, host) = (random.random_range(18..20), random.random_range(1..255));
            Self::this(Ipv4Addr::new(198, net, random.random_range(1..255), host))
        })
    }

    fn this(address: Ipv4Addr) -> Option<Self> {
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "sh", &address.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .ok()?;
        let lifeline = keeper.stdin.take();
        let mut line = String::new();
        let told = BufReader::new(keeper.stdout.take()?).read_line(&mut line);
        let this = Self { address, keeper, lifeline };
        (told.is_ok() && line.trim() == "given").then_some(this)
    }

    /// The address.
    #[must_use]
    pub fn get(&self) -> Ipv4Addr {
        self.address
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        if let Err(error) = self.keeper.wait() {
            tracing::warn!(address = %self.address, %error, "an address may still be there");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn an_address_is_ours_as_long_as_it_is_held() {
        let Some(address) = Address::take() else {
            assert!(!rustix::process::geteuid().is_root(), "root gets an address");
            return;
        };
        let own = address.get();
        assert_ne!(Address::take().map(|other| other.get()), Some(own));
        TcpListener::bind((own, 0)).unwrap();
        drop(address);
        TcpListener::bind((own, 0)).unwrap_err();
    }
}
