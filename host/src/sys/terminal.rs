//! The caller's terminal: its size, and raw mode that is always undone.

use nix::sys::termios::{self, SetArg, Termios};
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::sync::Mutex;

/// The terminal's settings as they were, while a [`RawMode`] lives. In a static because the
/// process also ends by paths that run no destructors.
static COOKED: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal in raw mode: every key is a byte, nothing is echoed.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Switches stdin's terminal to raw mode until the value is dropped or [`restore`] is called.
    pub(crate) fn enter() -> io::Result<RawMode> {
        let stdin = io::stdin();
        let cooked = termios::tcgetattr(&stdin)?;
        let mut raw = cooked.clone();
        termios::cfmakeraw(&mut raw);
        *COOKED.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(cooked);
        termios::tcsetattr(&stdin, SetArg::TCSADRAIN, &raw)?;
        Ok(RawMode(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal its settings back, if they were changed. May be called at any time.
pub(crate) fn restore() {
    let cooked = COOKED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    if let Some(cooked) = cooked {
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &cooked);
    }
}

/// Lines and columns of stdout's or stdin's terminal, when there is one.
pub(crate) fn size() -> Option<(u16, u16)> {
    let (stdout, stdin) = (io::stdout(), io::stdin());
    let fd = if stdout.is_terminal() {
        stdout.as_fd()
    } else if stdin.is_terminal() {
        stdin.as_fd()
    } else {
        return None;
    };
    window_size(fd).filter(|(rows, columns)| *rows > 0 && *columns > 0)
}

#[allow(unsafe_code, reason = "TIOCGWINSZ has no safe wrapper")]
fn window_size(fd: std::os::fd::BorrowedFd<'_>) -> Option<(u16, u16)> {
    use std::os::fd::AsRawFd as _;
    nix::ioctl_read_bad!(get_window_size, libc::TIOCGWINSZ, libc::winsize);
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open for the call and the kernel writes one winsize.
    unsafe { get_window_size(fd.as_raw_fd(), &raw mut size) }.ok()?;
    Some((size.ws_row, size.ws_col))
}
