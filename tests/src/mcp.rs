//! A client of `firn mcp`, over its stdin and stdout, that says what a test has it say.

use crate::Firn;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// When a server is taken for hanging.
const HANG: Duration = Duration::from_secs(240);

/// See the module. Dropping it ends the server as clients do: stdin is closed.
#[derive(Debug)]
pub struct Mcp {
    server: Child,
    stdin: Option<ChildStdin>,
    messages: Receiver<Value>,
    /// What came and nobody has asked for yet.
    kept: VecDeque<Value>,
    requests: u64,
}

/// What a call of `run` came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Ran {
    /// The blocks of text.
    pub texts: Vec<String>,
    /// Whether it is an error.
    pub is_error: bool,
    /// The structured result.
    pub report: Value,
    /// All of it.
    pub whole: Value,
}

impl Mcp {
    /// Starts `firn mcp`, which `firn` is, and does not speak yet.
    #[must_use]
    pub fn silent(firn: Firn) -> Mcp {
        let mut command = firn.into_command();
        let mut server =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let stdout = BufReader::new(server.stdout.take().unwrap());
        let (tell, messages) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines() {
                let message = serde_json::from_str(&line.unwrap()).unwrap();
                if tell.send(message).is_err() {
                    break;
                }
            }
        });
        let stdin = server.stdin.take();
        Mcp { server, stdin, messages, kept: VecDeque::new(), requests: 0 }
    }

    /// Starts `firn mcp` and begins as clients of the older protocol do.
    #[must_use]
    pub fn start(firn: Firn) -> Mcp {
        let mut mcp = Mcp::silent(firn);
        let client = json!({ "name": "tests", "version": "0" });
        let hello = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client });
        let answer = mcp.ask("initialize", hello);
        assert_eq!(answer["result"]["protocolVersion"], "2025-06-18", "{answer}");
        mcp.notify("notifications/initialized", json!({}));
        mcp
    }

    /// Writes a line.
    pub fn write(&mut self, line: &[u8]) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(line).and_then(|()| stdin.write_all(b"\n")).and_then(|()| stdin.flush()).unwrap();
    }

    /// Says something that is not answered.
    pub fn notify(&mut self, method: &str, params: Value) {
        let message = json!({ "jsonrpc": "2.0", "method": method, "params": params });
        self.write(message.to_string().as_bytes());
    }

    /// Asks something, and gives the number of the request.
    pub fn request(&mut self, method: &str, params: Value) -> u64 {
        self.requests += 1;
        let message = json!({ "jsonrpc": "2.0", "id": self.requests, "method": method, "params": params });
        self.write(message.to_string().as_bytes());
        self.requests
    }

    /// The answer to a request.
    pub fn answer(&mut self, request: u64) -> Value {
        self.message(|message| message["id"] == request)
    }

    /// Asks something, and waits for the answer.
    pub fn ask(&mut self, method: &str, params: Value) -> Value {
        let request = self.request(method, params);
        self.answer(request)
    }

    /// The next message that is wanted. Others are kept.
    pub fn message(&mut self, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        if let Some(at) = self.kept.iter().position(&mut wanted) {
            return self.kept.remove(at).unwrap();
        }
        loop {
            let message = self.messages.recv_timeout(HANG).unwrap();
            if wanted(&message) {
                return message;
            }
            self.kept.push_back(message);
        }
    }

    /// The next message that tells of the progress of a call with this token, if one has come.
    pub fn progress(&mut self, token: &str) -> Value {
        let about = |message: &Value| {
            message["method"] == "notifications/progress" && message["params"]["progressToken"] == token
        };
        self.message(about)["params"].take()
    }

    /// Whether a message of this kind has come that nobody has asked for.
    #[must_use]
    pub fn has_kept(&self, wanted: impl FnMut(&Value) -> bool) -> bool {
        self.kept.iter().any(wanted)
    }

    /// Begins a call of `run`.
    pub fn begin(&mut self, arguments: Value) -> u64 {
        self.request("tools/call", json!({ "name": "run", "arguments": arguments }))
    }

    /// Begins a call of `run` whose progress is told.
    pub fn begin_telling(&mut self, arguments: Value, token: &str) -> u64 {
        let meta = json!({ "progressToken": token });
        self.request("tools/call", json!({ "name": "run", "arguments": arguments, "_meta": meta }))
    }

    /// What a call of `run` came to.
    pub fn ran(&mut self, request: u64) -> Ran {
        let whole = self.answer(request);
        let result = &whole["result"];
        let blocks = result["content"].as_array().unwrap_or_else(|| panic!("{whole}"));
        let texts = blocks.iter().filter(|block| block["type"] == "text");
        Ran {
            texts: texts.map(|block| block["text"].as_str().unwrap().to_owned()).collect(),
            is_error: result["isError"] == true,
            report: result["structuredContent"].clone(),
            whole,
        }
    }

    /// Calls `run`, and waits for what it comes to.
    pub fn run(&mut self, arguments: Value) -> Ran {
        let request = self.begin(arguments);
        self.ran(request)
    }

    /// Closes stdin, as a client does that has enough, and waits for the server's end.
    pub fn leave(mut self) {
        drop(self.stdin.take());
        assert!(self.server.wait().unwrap().success());
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}

impl Drop for Mcp {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.server.wait();
    }
}
