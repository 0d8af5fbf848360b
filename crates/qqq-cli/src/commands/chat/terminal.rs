//! The terminal while a chat has it.
//!
//! Between two prompts nothing is echoed and lines are not collected, so that what is typed or pasted during an answer
//! neither disturbs the answer nor is cut at the length of a terminal's line: the next prompt gets it. Ctrl-C and Ctrl-Z
//! are signals while the model is loaded and while it answers. At a prompt, and in the moments before and after one, when
//! the editor has not got the terminal yet or no more, they are keys: there is no time at which they are lost, or
//! end the process instead. However the process ends or stops, the terminal is as it was before.

use std::io::{self, Write};

const PASTES_MARKED: &str = "\x1b[?2004h";
const PASTES_NOT_MARKED: &str = "\x1b[?2004l";

fn print(sequence: &str) {
    let mut out = io::stdout().lock();
    // Nobody can be told if the terminal is gone.
    let _ = out.write_all(sequence.as_bytes()).and_then(|()| out.flush());
}

#[cfg(unix)]
pub use unix::{KeySignals, Terminal};

#[cfg(unix)]
mod unix {
    use std::{
        io,
        sync::{
            Arc, Mutex, PoisonError,
            atomic::{AtomicBool, Ordering::SeqCst},
        },
        thread,
        time::Duration,
    };

    use nix::{
        sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction},
        unistd::Pid,
    };
    use rustix::termios::{
        InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
    };
    use signal_hook::{
        consts::{SIGCONT, SIGTSTP},
        flag,
        iterator::{Handle, Signals},
    };

    use super::{PASTES_MARKED, PASTES_NOT_MARKED, print};
    use crate::interrupt;

    /// How long the system may take to stop the process.
    const PATIENCE: Duration = Duration::from_millis(500);

    /// The modes of the terminal before the chat, while it has it.
    static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

    /// While it lives, the terminal is the chat's.
    pub struct Terminal {
        signals: Handle,
    }

    impl Terminal {
        /// Takes the terminal at standard input.
        pub fn take() -> io::Result<Self> {
            let before = tcgetattr(io::stdin())?;
            let modes = between_prompts(before.clone());
            *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
            interrupt::before_exit(give_back);
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                hook(panic);
            }));
            let mut signals = Signals::new([SIGTSTP])?;
            let this = Self { signals: signals.handle() };
            thread::spawn(move || {
                for _ in signals.forever() {
                    suspend(Pid::this());
                    // A prompt is drawn again.
                    let _ = kill(Pid::this(), Signal::SIGWINCH);
                }
            });
            tcsetattr(io::stdin(), OptionalActions::Now, &modes)?;
            print(PASTES_MARKED);
            Ok(this)
        }

        /// From now on Ctrl-C and Ctrl-Z are keys.
        pub fn read_keys(&self) {
            interrupt::keys_are_read();
            set_signals(false);
        }

        /// Ctrl-C and Ctrl-Z are signals while this lives.
        pub fn signals(&self) -> KeySignals {
            set_signals(true);
            KeySignals(())
        }

        /// After the editor, which has switched it off.
        pub fn mark_pastes(&self) {
            print(PASTES_MARKED);
        }

        /// Stops this process and those that it shares a pipe with, as Ctrl-Z does outside of an editor.
        pub fn suspend(&self) {
            suspend(Pid::from_raw(0));
        }
    }

    impl Drop for Terminal {
        fn drop(&mut self) {
            self.signals.close();
            give_back();
        }
    }

    /// While it lives, Ctrl-C and Ctrl-Z are signals.
    pub struct KeySignals(());

    impl Drop for KeySignals {
        fn drop(&mut self) {
            set_signals(false);
        }
    }

    /// Whether keys send signals. A terminal that is gone has none.
    fn set_signals(sent: bool) {
        if let Ok(mut modes) = tcgetattr(io::stdin()) {
            modes.local_modes.set(LocalModes::ISIG, sent);
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &modes);
        }
    }

    fn between_prompts(mut modes: Termios) -> Termios {
        modes.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ECHONL;
        modes.local_modes |= LocalModes::ISIG;
        // Enter stays what the editor knows as Enter.
        modes.input_modes -= InputModes::ICRNL;
        modes.special_codes[SpecialCodeIndex::VMIN] = 1;
        modes.special_codes[SpecialCodeIndex::VTIME] = 0;
        modes
    }

    fn give_back() {
        if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
            print(PASTES_NOT_MARKED);
        }
    }

    /// Gives the terminal back, stops, and takes it again in the mode in which it was.
    fn suspend(whom: Pid) {
        let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (Some(before), Ok(now)) = (before, tcgetattr(io::stdin())) else { return };
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
        print(PASTES_NOT_MARKED);
        let continued = Arc::new(AtomicBool::new(false));
        let watch = flag::register(SIGCONT, Arc::clone(&continued));
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the default action runs no code of this process.
        let handler = unsafe { sigaction(Signal::SIGTSTP, &default) };
        // Not SIGSTOP: where no shell could continue the process, the system does not stop it by this one.
        let _ = kill(whom, Signal::SIGTSTP);
        // Another thread may be the one that takes it, a moment later.
        let pause = Duration::from_millis(5);
        let mut waited = Duration::ZERO;
        while !continued.load(SeqCst) && waited < PATIENCE {
            thread::sleep(pause);
            waited += pause;
        }
        if let Ok(handler) = handler {
            // SAFETY: it was installed until now.
            let _ = unsafe { sigaction(Signal::SIGTSTP, &handler) };
        }
        if let Ok(watch) = watch {
            signal_hook::low_level::unregister(watch);
        }
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &now);
        print(PASTES_MARKED);
    }
}

/// Where terminals have no such modes.
#[cfg(not(unix))]
pub struct Terminal(());

/// Stands for the one of Unix, and does nothing.
#[cfg(not(unix))]
pub struct KeySignals(());

#[cfg(not(unix))]
impl Terminal {
    /// Takes the terminal at standard input.
    pub fn take() -> io::Result<Self> {
        print(PASTES_MARKED);
        Ok(Self(()))
    }

    /// From now on Ctrl-C is a key.
    pub fn read_keys(&self) {
        crate::interrupt::keys_are_read();
    }

    /// Between prompts Ctrl-C is a request by itself.
    pub fn signals(&self) -> KeySignals {
        KeySignals(())
    }

    /// After the editor, which has switched it off.
    pub fn mark_pastes(&self) {
        print(PASTES_MARKED);
    }

    /// Does nothing: only Unix suspends jobs.
    pub fn suspend(&self) {}
}

#[cfg(not(unix))]
impl Drop for Terminal {
    fn drop(&mut self) {
        print(PASTES_NOT_MARKED);
    }
}
