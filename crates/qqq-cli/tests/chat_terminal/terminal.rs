//! A program in a pseudo terminal, and what its screen shows.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{Pid, Signal, ioctl_tiocsctty, kill_process, setsid},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize},
};

/// After this long a test has failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Shows nothing, and says that all before it has come.
const END: &[u8] = b"\x1b]0;end\x07";
/// How a program asks where the cursor is.
const WHERE: &[u8] = b"\x1b[6n";

pub struct Terminal {
    slave: File,
    child: Child,
    /// What is typed: a terminal that nobody reads takes no more at some point, which must not stop the test.
    input: Sender<Vec<u8>>,
    output: Receiver<Vec<u8>>,
    screen: vt100::Parser,
    /// All that was printed.
    pub raw: Vec<u8>,
    /// Until where it was looked at.
    seen: usize,
}

impl Terminal {
    /// Runs a program that has this terminal for its own.
    pub fn run(command: &mut Command, rows: u16, columns: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).unwrap();
        // Opened by a process that has no terminal it would become that process's.
        let slave: File = rustix::fs::open(
            name.as_c_str(),
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY,
            rustix::fs::Mode::empty(),
        )
        .unwrap()
        .into();
        let side = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(side()).stdout(side()).stderr(side()).env("TERM", "xterm-256color");
        command.env_remove("COLUMNS");
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                ioctl_tiocsctty(std::io::stdin())?;
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        let (sender, output) = mpsc::channel();
        let mut reader = File::from(master.try_clone().unwrap());
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            // An error is what the end looks like.
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        let (input, typed) = mpsc::channel::<Vec<u8>>();
        let mut master = File::from(master);
        thread::spawn(move || typed.iter().all(|bytes| master.write_all(&bytes).is_ok()));
        let screen = vt100::Parser::new(rows, columns, 0);
        Self { slave, child, input, output, screen, raw: Vec::new(), seen: 0 }
    }

    pub fn type_in(&mut self, bytes: impl AsRef<[u8]>) {
        self.input.send(bytes.as_ref().to_vec()).unwrap();
    }

    /// As terminals hand on what is pasted.
    pub fn paste(&mut self, text: &str) {
        self.type_in(format!("\x1b[200~{}\x1b[201~", text.replace('\n', "\r")));
    }

    /// What the screen shows.
    pub fn screen(&self) -> String {
        self.screen.screen().contents()
    }

    /// Waits until something is printed after what was waited for before; gives all that is new.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            let new = &self.raw[self.seen..];
            if let Some(at) = new.windows(text.len()).position(|w| w == text.as_bytes()) {
                let end = self.seen + at + text.len();
                let passed = String::from_utf8_lossy(&self.raw[self.seen..end]).into_owned();
                self.seen = end;
                return passed;
            }
            if !self.pump() || start.elapsed() > PATIENCE {
                panic!("{text:?} does not come; the screen:\n{}", self.screen());
            }
        }
    }

    /// Waits until the screen is as wanted.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, wanted: impl Fn(&str) -> bool) {
        let start = Instant::now();
        while !wanted(&self.screen()) {
            if !self.pump() || start.elapsed() > PATIENCE {
                panic!("never {what}; the screen:\n{}", self.screen());
            }
        }
    }

    /// Types something, again and again, until the screen is as wanted.
    #[track_caller]
    pub fn type_until(&mut self, keys: &str, wanted: impl Fn(&str) -> bool) {
        let start = Instant::now();
        while !wanted(&self.screen()) {
            self.type_in(keys);
            for _ in 0..3 {
                assert!(
                    self.pump() && start.elapsed() < PATIENCE,
                    "typed in vain; the screen:\n{}",
                    self.screen()
                );
            }
        }
    }

    /// Waits for a prompt at which nothing is typed yet, below all else.
    #[track_caller]
    pub fn wait_for_prompt(&mut self) {
        self.wait_until("an empty prompt", |screen| {
            screen.trim_end_matches('\n').lines().last().is_some_and(|line| line.trim_end() == ">")
        });
        self.seen = self.raw.len();
    }

    /// Waits for the end; gives the exit code.
    #[track_caller]
    pub fn wait_for_end(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                (&self.slave).write_all(END).unwrap();
                // What comes behind it is an echo of what the program has not read.
                let mut looked_at = self.raw.len();
                let end = loop {
                    let from = looked_at.saturating_sub(END.len());
                    if let Some(at) = self.raw[from..].windows(END.len()).position(|w| w == END) {
                        break from + at;
                    }
                    looked_at = self.raw.len();
                    assert!(self.pump() && start.elapsed() < PATIENCE, "its last output does not come");
                };
                self.raw.truncate(end);
                return status.code();
            }
            assert!(
                self.pump() && start.elapsed() < PATIENCE,
                "it does not end; the screen:\n{}",
                self.screen()
            );
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The terminal's modes, as they are now.
    pub fn modes(&self) -> Termios {
        tcgetattr(&self.slave).unwrap()
    }

    /// Whether lines are collected and echoed, as for a program that knows nothing of terminals.
    pub fn is_ordinary(&self) -> bool {
        self.modes().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Takes what comes within a moment; `false` if nothing will come any more.
    fn pump(&mut self) -> bool {
        match self.output.recv_timeout(Duration::from_millis(100)) {
            Ok(bytes) => self.take(&bytes),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return false,
        }
        true
    }

    fn take(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(at) = rest.windows(WHERE.len()).position(|w| w == WHERE) {
            self.screen.process(&rest[..at]);
            let (row, column) = self.screen.screen().cursor_position();
            self.type_in(format!("\x1b[{};{}R", row + 1, column + 1));
            rest = &rest[at + WHERE.len()..];
        }
        self.screen.process(rest);
        self.raw.extend_from_slice(bytes);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
