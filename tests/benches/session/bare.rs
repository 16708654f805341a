//! An interpreter on two pipes, in a jail: what a session costs when nobody keeps it.

use crate::floor::Floor;
use crate::language::Language;
use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

/// See the module.
pub(crate) struct Bare {
    child: Child,
    orders: ChildStdin,
    output: ChildStdout,
    chunk: Vec<u8>,
}

impl Bare {
    pub(crate) fn start(language: &Language, floor: &Floor) -> Bare {
        let mut child = floor.start(language.bare, |mut bwrap| {
            let bwrap = bwrap.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
            bwrap.spawn().expect("bubblewrap starts")
        });
        let (orders, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Bare { child, orders, output, chunk: vec![0; 256 * 1024] }
    }

    /// Runs a line of code, and gives how much it wrote.
    pub(crate) fn run(&mut self, code: &str) -> usize {
        self.orders.write_all(format!("{code}\n").as_bytes()).expect("it reads");
        let mut written = 0;
        loop {
            let read = self.output.read(&mut self.chunk).expect("it writes");
            assert_ne!(read, 0, "it has ended");
            written += read;
            if self.chunk[read - 1] == 0 {
                return written - 1;
            }
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
