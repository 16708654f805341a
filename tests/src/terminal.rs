//! A program on a terminal, with somebody who types.

use crate::Firn;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long to wait for what is to be shown.
const SOON: Duration = Duration::from_secs(60);

/// See the module. Dropping it ends the program.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    shown: String,
}

impl Terminal {
    /// Starts `firn` on a terminal of its own.
    #[must_use]
    pub fn start(firn: Firn) -> Terminal {
        use std::os::unix::process::CommandExt as _;
        let pty = nix::pty::openpty(None, None).unwrap();
        let slave = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command = firn.env("TERM", "xterm").into_command();
        command.stdin(slave()).stdout(slave()).stderr(slave());
        // SAFETY: only system calls, in a process of its own.
        #[allow(unsafe_code, reason = "a session of its own, whose terminal this is")]
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let child = command.spawn().unwrap();
        drop((command, pty.slave));
        let mut master = File::from(pty.master);
        let keyboard = master.try_clone().unwrap();
        let (show, screen) = channel();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(read @ 1..) = master.read(&mut chunk) {
                if show.send(chunk[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        Terminal { child, keyboard, screen, shown: String::new() }
    }

    /// Types this.
    pub fn say(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until this is shown, after what was waited for before.
    pub fn until(&mut self, text: &str) {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(at) = self.shown.find(text) {
                self.shown.drain(..at + text.len());
                return;
            }
            match self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(chunk) => self.shown.push_str(&String::from_utf8_lossy(&chunk)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("{text:?} is not shown: {:?}", self.shown)
                }
            }
        }
    }

    /// Waits for its end, and gives its exit code.
    #[must_use]
    pub fn end(mut self) -> i32 {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "it does not end: {:?}", self.shown);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
