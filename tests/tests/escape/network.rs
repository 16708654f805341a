//! Ways to something that listens. A sandbox has no network, so there is none.

use firn_tests::{Grade, Host, both_grades};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

/// Prints what becomes of each try, by the name of the error.
const TRY: &str = r"
import errno, json, socket, sys
def attempt(act):
    try:
        return str(act())
    except socket.gaierror:
        return 'no name'
    except TimeoutError:
        return 'no answer'
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
def connect(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as s:
        s.settimeout(5)
        s.connect(address)
        s.send(b'x')
        return 'connected ' + repr(s.recv(10))
def send(family, address, protocol=0, kind=socket.SOCK_DGRAM):
    with socket.socket(family, kind, protocol) as s:
        s.settimeout(5)
        s.sendto(b'\x08\x00\xf7\xff\x00\x00\x00\x00', address)
        return 'answered ' + repr(s.recv(1000)[:10])
";

/// What it looks like when there is nobody.
const REFUSED: &[&str] = &[
    "ENETUNREACH",
    "ECONNREFUSED",
    "EPERM",
    "EACCES",
    "EAFNOSUPPORT",
    "EADDRNOTAVAIL",
    "EHOSTUNREACH",
    "no name",
];

fn try_all(host: &Host, tries: &str, args: &[&str]) -> Vec<(String, String)> {
    let script =
        format!("{TRY}print(json.dumps({{name: attempt(act) for name, act in {{{tries}}}.items()}}))");
    let done = host.python(&["--timeout", "100s"], &script, args).finish().expect(0);
    let results = done.json();
    results
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, it)| (name.clone(), it.as_str().unwrap().to_owned()))
        .collect()
}

fn all_refused(results: &[(String, String)], count: usize) {
    assert_eq!(results.len(), count, "{results:?}");
    for (name, result) in results {
        assert!(REFUSED.contains(&result.as_str()), "{name}: {result}");
    }
}

both_grades!(the_internet_is_unreachable);
fn the_internet_is_unreachable(grade: Grade) {
    let host = Host::of(grade);
    let tries = "
        'tcp': lambda: connect(socket.AF_INET, ('1.1.1.1', 80)),
        'tcp 6': lambda: connect(socket.AF_INET6, ('2606:4700:4700::1111', 80)),
        'udp': lambda: send(socket.AF_INET, ('1.1.1.1', 53)),
        'udp 6': lambda: send(socket.AF_INET6, ('2606:4700:4700::1111', 53)),
        'name': lambda: socket.getaddrinfo('example.com', 80),
        'icmp': lambda: send(socket.AF_INET, ('1.1.1.1', 0), socket.IPPROTO_ICMP, socket.SOCK_RAW),
        'ping socket': lambda: send(socket.AF_INET, ('1.1.1.1', 0), socket.IPPROTO_ICMP),
        'metadata': lambda: connect(socket.AF_INET, ('169.254.169.254', 80)),
        'lan': lambda: connect(socket.AF_INET, ('192.168.0.1', 80)),
        'qemu': lambda: connect(socket.AF_INET, ('10.0.2.2', 80)),
        'broadcast': lambda: send(socket.AF_INET, ('255.255.255.255', 9)),
    ";
    all_refused(&try_all(&host, tries, &[]), 11);
}

both_grades!(a_service_of_the_host_is_unreachable);
fn a_service_of_the_host_is_unreachable(grade: Grade) {
    let host = Host::of(grade);
    let listeners: Vec<TcpListener> =
        ["127.0.0.1:0", "[::1]:0"].iter().map(|address| TcpListener::bind(address).unwrap()).collect();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    // They can be reached, from the host.
    for listener in &listeners {
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.write_all(b"x").unwrap();
        listener.accept().unwrap().0.read_exact(&mut [0]).unwrap();
        listener.set_nonblocking(true).unwrap();
    }
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", datagrams.local_addr().unwrap()).unwrap();
    assert_eq!(datagrams.recv(&mut [0; 10]).unwrap(), 1);
    datagrams.set_nonblocking(true).unwrap();

    let port = |address: std::net::SocketAddr| address.port().to_string();
    let ports = [
        port(listeners[0].local_addr().unwrap()),
        port(listeners[1].local_addr().unwrap()),
        port(datagrams.local_addr().unwrap()),
    ];
    let tries = "
        'tcp': lambda: connect(socket.AF_INET, ('127.0.0.1', int(sys.argv[1]))),
        'tcp elsewhere': lambda: connect(socket.AF_INET, ('127.3.2.1', int(sys.argv[1]))),
        'tcp anywhere': lambda: connect(socket.AF_INET, ('0.0.0.0', int(sys.argv[1]))),
        'tcp 6': lambda: connect(socket.AF_INET6, ('::1', int(sys.argv[2]))),
        'tcp 4 in 6': lambda: connect(socket.AF_INET6, ('::ffff:127.0.0.1', int(sys.argv[1]))),
        'localhost': lambda: connect(socket.AF_INET, ('localhost', int(sys.argv[1]))),
    ";
    let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
    all_refused(&try_all(&host, tries, &ports), 6);
    // Whether a datagram leaves nobody is told; whether it arrives is.
    let _ = try_all(
        &host,
        "'udp': lambda: connect(socket.AF_INET, ('127.0.0.1', int(sys.argv[3])), socket.SOCK_DGRAM)",
        &ports,
    );
    for listener in &listeners {
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    assert_eq!(datagrams.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

both_grades!(an_abstract_socket_of_the_host_is_unreachable);
fn an_abstract_socket_of_the_host_is_unreachable(grade: Grade) {
    let host = Host::of(grade);
    let name = format!("firn-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    drop(UnixStream::connect_addr(&address).unwrap());
    listener.accept().unwrap();
    listener.set_nonblocking(true).unwrap();
    let ours = std::fs::read_to_string("/proc/net/unix").unwrap();
    assert!(ours.contains(&format!("@{name}")), "{ours}");

    let tries = "
        'abstract': lambda: connect(socket.AF_UNIX, '\\0' + sys.argv[1]),
        'listed': lambda: open('/proc/net/unix').read().count('@'),
    ";
    let results = try_all(&host, tries, &[&name]);
    assert_eq!(results, [("abstract".into(), "ECONNREFUSED".into()), ("listed".into(), "0".into())]);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

both_grades!(a_socket_file_of_the_host_is_unreachable);
fn a_socket_file_of_the_host_is_unreachable(grade: Grade) {
    let host = Host::of(grade);
    let path = host.work().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    drop(UnixStream::connect(&path).unwrap());
    listener.accept().unwrap();
    listener.set_nonblocking(true).unwrap();
    let tries = "'socket': lambda: connect(socket.AF_UNIX, sys.argv[1])";
    let results = try_all(&host, tries, &[path.to_str().unwrap()]);
    assert_eq!(results, [("socket".into(), "ENOENT".into())]);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

both_grades!(there_is_no_network_device_but_loopback);
fn there_is_no_network_device_but_loopback(grade: Grade) {
    let host = Host::of(grade);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!(":{:04X}", listener.local_addr().unwrap().port());
    assert!(std::fs::read_to_string("/proc/net/tcp").unwrap().contains(&port));
    let tries = "
        'devices': lambda: [name for _, name in socket.if_nameindex()],
        'in proc': lambda: [line.split(':')[0].strip() for line in open('/proc/net/dev').readlines()[2:]],
        'routes': lambda: len(open('/proc/net/route').readlines()[1:]),
        'of the host': lambda: sys.argv[1] in open('/proc/net/tcp').read(),
    ";
    let results = try_all(&host, tries, &[&port]);
    let expected = [("devices", "['lo']"), ("in proc", "['lo']"), ("of the host", "False"), ("routes", "0")];
    assert_eq!(results, expected.map(|(name, result)| (name.to_owned(), result.to_owned())));
}

both_grades!(no_machine_is_reached_over_vsock);
fn no_machine_is_reached_over_vsock(grade: Grade) {
    let host = Host::of(grade);
    // The hypervisor, loopback, the host, and the ports that firn's own protocol has.
    let tries = "
        **{f'{cid} {port}': (lambda cid=cid, port=port: connect(socket.AF_VSOCK, (cid, port)))
           for cid in (0, 2) for port in (1, 22, 111)},
        'a socket': lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).family.name,
    ";
    let results = try_all(&host, tries, &[]);
    assert_eq!(results.len(), 7);
    for (name, result) in &results {
        match (grade, name.as_str()) {
            // Its guest talks to firn that way.
            (Grade::Vm, "a socket") => assert_eq!(result, "AF_VSOCK"),
            (Grade::Vm, _) => assert!(!result.starts_with("connected"), "{name}: {result}"),
            (Grade::Jail, _) => {
                assert!(["EPERM", "EACCES", "EAFNOSUPPORT"].contains(&result.as_str()), "{name}: {result}")
            }
        }
    }
}

both_grades!(packets_cannot_be_made_by_hand);
fn packets_cannot_be_made_by_hand(grade: Grade) {
    let host = Host::of(grade);
    let tries = "
        'raw': lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP).type.name,
        'packet': lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3).type.name,
    ";
    for (name, result) in try_all(&host, tries, &[]) {
        match grade {
            Grade::Jail => assert!(REFUSED.contains(&result.as_str()), "{name}: {result}"),
            // Root of the guest may, and there is no wire.
            Grade::Vm => assert!(["SOCK_RAW", "EAFNOSUPPORT"].contains(&result.as_str()), "{name}: {result}"),
        }
    }
}
