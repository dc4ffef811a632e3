//! `flowgate top`: how things stand, live in the terminal.
//!
//! One thread [asks](self::fetch) every second, the main thread draws what came and obeys keys.
//! What is drawn is a pure function of two documents and of the time between them ([`view`]).

mod cell;
mod fetch;
mod options;
mod stretch;
mod view;
mod watch;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::fetch::Answer;
use self::options::Options;
use self::watch::Watch;
use super::Failure;
use super::ask::SocketOption;
use crate::control::signals::{self, Signal};
use crate::sys::clock::Clock;

/// How long a key, an answer or a signal may wait to be seen.
const TICK: Duration = Duration::from_millis(100);

/// The arguments of `flowgate top`.
#[derive(Args, Debug)]
pub(super) struct TopArguments {
    #[command(flatten)]
    socket_option: SocketOption,
}

pub(super) fn run(arguments: &TopArguments) -> Result<(), Failure> {
    if !io::stdout().is_terminal() {
        return Err(Failure(
            "`flowgate top` draws on a terminal, and standard output is none; `flowgate status` \
             prints the same once"
                .into(),
        ));
    }
    let clock = Clock::start();
    let (first, answers) = fetch::start(arguments.socket_option.path())?;
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    signals::listen(move |signal| {
        if signal == Signal::Reload {
            // The terminal is gone (SIGHUP): crossterm would look for a key there for ever.
            let _ = ratatui::try_restore();
            std::process::exit(0);
        }
        over.store(true, Ordering::Relaxed);
    })?;
    let mut top = Top {
        watch: Watch::new(first, clock.now()),
        clock,
        trouble: None,
        options: Options::default(),
        scroll: 0,
        last_line: 0,
        page: 1,
    };
    top.show(&mut Screen::open()?, &answers, &is_over)
}

/// The terminal while it is drawn on. Dropping it gives it back as it was; so does a panic, since
/// opening it puts that before what is done on a panic otherwise.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> io::Result<Self> {
        ratatui::try_init().map(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What is shown.
struct Top {
    clock: Clock,
    watch: Watch,
    /// Why there is no news.
    trouble: Option<String>,
    options: Options,
    /// How many lines are above the window.
    scroll: usize,
    /// The most that makes sense, as last drawn.
    last_line: usize,
    /// How many lines the window has, as last drawn.
    page: usize,
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    GoOn,
    Quit,
}

impl Top {
    /// Shows what comes until someone has seen enough.
    fn show(
        &mut self,
        screen: &mut Screen,
        answers: &Receiver<Answer>,
        is_over: &AtomicBool,
    ) -> Result<(), Failure> {
        while !is_over.load(Ordering::Relaxed) {
            self.take_answers(answers)?;
            screen.0.draw(|frame| {
                let drawn = view::render(frame, &self.view());
                (self.last_line, self.page) = (drawn.last_line, drawn.page);
            })?;
            self.scroll = self.scroll.min(self.last_line);
            if event::poll(TICK)? && self.handle(&event::read()?) == Next::Quit {
                break;
            }
        }
        Ok(())
    }

    fn take_answers(&mut self, answers: &Receiver<Answer>) -> Result<(), Failure> {
        loop {
            match answers.try_recv() {
                Ok(Ok(status)) => {
                    self.watch.add(status, self.clock.now());
                    self.trouble = None;
                }
                Ok(Err(trouble)) => self.trouble = Some(trouble),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => {
                    return Err(Failure("the thread that asks has ended".into()));
                }
            }
        }
    }

    fn view(&self) -> view::View<'_> {
        view::View {
            stretch: self.watch.stretch(),
            history: self.watch.history(),
            trouble: self.trouble.as_deref(),
            options: &self.options,
            scroll: self.scroll,
        }
    }

    fn handle(&mut self, event: &Event) -> Next {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.handle_key(*key),
            // A new size shows with the next frame.
            _ => Next::GoOn,
        }
    }

    fn handle_key(&mut self, key: KeyEvent) -> Next {
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        if !is_control && self.options.handle(key.code) {
            self.scroll = 0;
            return Next::GoOn;
        }
        self.scroll = match key.code {
            KeyCode::Char('c') if is_control => return Next::Quit,
            KeyCode::Char('q') | KeyCode::Esc => return Next::Quit,
            KeyCode::Down | KeyCode::Char('j') => self.scroll + 1,
            KeyCode::Up | KeyCode::Char('k') => self.scroll.saturating_sub(1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.scroll + self.page,
            KeyCode::PageUp => self.scroll.saturating_sub(self.page),
            KeyCode::Home | KeyCode::Char('g') => 0,
            KeyCode::End | KeyCode::Char('G') => self.last_line,
            _ => self.scroll,
        };
        self.scroll = self.scroll.min(self.last_line);
        Next::GoOn
    }
}

#[cfg(test)]
mod tests;
