//! `firn mcp --http`, and requests to it as anybody on a network can make them.

use crate::Firn;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};

/// The newer protocol.
const VERSION: &str = "2026-07-28";

/// A server over HTTP. Dropping it ends it.
#[derive(Debug)]
pub struct McpHttp {
    server: Child,
    address: String,
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The session of the protocol that it begins.
    pub session: Option<String>,
    /// The messages in its body, if it is some.
    pub messages: Vec<Value>,
    /// The body, as it came.
    pub body: String,
}

impl McpHttp {
    /// Starts `firn mcp --http 127.0.0.1:0`, which `firn` is, and waits until it listens.
    #[must_use]
    pub fn start(firn: Firn) -> McpHttp {
        let mut command = firn.into_command();
        let mut server =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(server.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "the server ended");
            if let Some(address) = line.trim_end().strip_prefix("firn: serving MCP at http://") {
                break address.strip_suffix("/mcp").unwrap().to_owned();
            }
        };
        // Who says something to nobody is killed.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        McpHttp { server, address }
    }

    /// Posts a message with these headers, and waits for the end of the answer.
    #[must_use]
    pub fn post(&self, headers: &[(&str, &str)], message: &Value) -> Answer {
        let mut stream = self.send(headers, message);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let session = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("mcp-session-id").then(|| value.to_owned())
        });
        let data = body.lines().filter_map(|line| line.strip_prefix("data:")).chain(Some(body));
        let messages = data.filter_map(|data| serde_json::from_str(data.trim()).ok()).collect();
        Answer { status, session, messages, body: body.to_owned() }
    }

    fn send(&self, headers: &[(&str, &str)], message: &Value) -> TcpStream {
        let body = message.to_string();
        let mut head = "POST /mcp HTTP/1.1\r\nConnection: close\r\nContent-Type: application/json\r\n\
                        Accept: application/json, text/event-stream\r\n"
            .to_owned();
        if !headers.iter().any(|(name, _)| *name == "Host") {
            head.push_str(&format!("Host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream
    }

    /// Asks something as clients of the newer protocol do, who need no session for it.
    #[must_use]
    pub fn ask(&self, headers: &[(&str, &str)], method: &str, params: &Value) -> Answer {
        let (all, message) = modern(headers, method, params);
        self.post(&all, &message)
    }

    /// The same, but does not wait for the answer.
    #[must_use]
    pub fn begin(&self, headers: &[(&str, &str)], method: &str, params: &Value) -> TcpStream {
        let (all, message) = modern(headers, method, params);
        self.send(&all, &message)
    }

    /// The text that a call of `run` came to, for who has this token.
    #[must_use]
    pub fn run(&self, token: &str, arguments: &Value) -> String {
        let bearer = format!("Bearer {token}");
        let params = json!({ "name": "run", "arguments": arguments });
        let answer = self.ask(&[("Authorization", &bearer)], "tools/call", &params);
        let result =
            answer.messages.iter().find(|message| message["id"] == 1).unwrap_or_else(|| panic!("{answer:?}"));
        result["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned()
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.server.id()
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(mut self) {
        self.terminate();
        assert!(self.server.wait().unwrap().success());
    }

    fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(self.server.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    }
}

impl Drop for McpHttp {
    fn drop(&mut self) {
        if self.server.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.terminate();
            let _ = self.server.wait();
        }
    }
}

/// The headers and the message of a request in the newer protocol.
fn modern<'a>(
    headers: &[(&'a str, &'a str)],
    method: &'a str,
    params: &'a Value,
) -> (Vec<(&'a str, &'a str)>, Value) {
    let mut all = vec![("MCP-Protocol-Version", VERSION), ("Mcp-Method", method)];
    if let Some(name) = params["name"].as_str().or(params["uri"].as_str()) {
        all.push(("Mcp-Name", name));
    }
    all.extend_from_slice(headers);
    let mut params = params.clone();
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": VERSION,
        "io.modelcontextprotocol/clientInfo": { "name": "tests", "version": "0" },
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    (all, json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }))
}
