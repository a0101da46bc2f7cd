//! Watches the system calls of a running process and may let them fail (Linux on x86-64).
//!
//! Every thread stops before and after each call, so what is seen in order has happened in order:
//! a thread cannot act on the end of a call that has not been reported here.
#![expect(dead_code, reason = "each test file uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::support::Server;

/// What a call does, as far as these tests care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `fsync` or `fdatasync`.
    Sync,
    /// Any call that reads from a file or socket.
    Read,
    /// Any call that writes to a file or socket.
    Write,
}

/// A system call on a file descriptor.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) thread: Pid,
    pub(crate) kind: Kind,
    pub(crate) fd: u64,
    /// What `/proc` says the descriptor is: a path, or `socket:[…]`.
    pub(crate) target: String,
}

impl Call {
    pub(crate) fn is_on_log(&self) -> bool {
        self.target.ends_with(".db-wal")
    }

    pub(crate) fn is_on_socket(&self) -> bool {
        self.target.starts_with("socket:")
    }
}

/// Before a call, or after it with its result: negative is an error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Begin,
    End(i64),
}

/// What becomes of a call that is about to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    /// It is not made, and the process sees this error.
    Fail(Errno),
}

/// A server all of whose threads are watched; it is killed when this is dropped.
pub(crate) struct Traced {
    pub(crate) server: Server,
    tracer: Option<JoinHandle<()>>,
}

impl Traced {
    /// `watch` sees every call of the kinds above twice; its verdict counts before the call.
    pub(crate) fn attach(server: Server, watch: impl FnMut(&Call, Phase) -> Verdict + Send + 'static) -> Self {
        let process = server.process.pid();
        let (ready, is_ready) = mpsc::channel();
        // The thread that attaches is the only one that may give orders afterwards.
        let tracer = std::thread::spawn(move || {
            let seized = seize_all(process);
            let failed = seized.is_err();
            ready.send(seized).unwrap();
            if !failed {
                Tracer { process, watch, calls: HashMap::new() }.run();
            }
        });
        if let Err(error) = is_ready.recv().unwrap() {
            panic!("this test traces its own child with ptrace, which the environment does not permit: {error}");
        }
        Self { server, tracer: Some(tracer) }
    }

    /// Ends the server with SIGKILL; nothing is seen after this.
    pub(crate) fn kill(&mut self) {
        if let Some(tracer) = self.tracer.take() {
            let _ = nix::sys::signal::kill(self.server.process.pid(), Signal::SIGKILL);
            let ended = tracer.join();
            self.server.process.kill();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Attaches to every thread; new ones follow by themselves.
fn seize_all(process: Pid) -> Result<(), Errno> {
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    let mut seen = HashSet::new();
    loop {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let tasks = tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap());
        let fresh: Vec<i32> = tasks.filter(|task| seen.insert(*task)).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        for task in fresh.into_iter().map(Pid::from_raw) {
            match ptrace::seize(task, options) {
                Ok(()) => ptrace::interrupt(task)?,
                // Made meanwhile by a thread that is watched, or gone.
                Err(Errno::EPERM) if task != process => {}
                Err(Errno::ESRCH) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

struct Tracer<W> {
    process: Pid,
    watch: W,
    /// The call in which a thread is: `None` if it is of no interest.
    calls: HashMap<Pid, Option<(Call, Verdict)>>,
}

impl<W: FnMut(&Call, Phase) -> Verdict> Tracer<W> {
    /// Goes on until the last thread has ended.
    fn run(mut self) {
        // Only what this thread traces: other tests have children of their own.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let (thread, signal) = match waitpid(None, Some(flags)) {
                Ok(WaitStatus::PtraceSyscall(thread)) => {
                    self.syscall(thread);
                    (thread, None)
                }
                Ok(WaitStatus::PtraceEvent(thread, ..)) => (thread, None),
                Ok(WaitStatus::Stopped(thread, signal)) => (thread, Some(signal)),
                Ok(WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..)) => {
                    self.calls.remove(&thread);
                    continue;
                }
                Ok(_) => continue,
                Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) => return,
                Err(error) => panic!("waitpid: {error}"),
            };
            // A thread may have been killed since it stopped.
            match ptrace::syscall(thread, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => panic!("ptrace: {error}"),
            }
        }
    }

    fn syscall(&mut self, thread: Pid) {
        let Ok(mut registers) = ptrace::getregs(thread) else {
            return;
        };
        match self.calls.remove(&thread) {
            None => {
                let begun = kind(registers.orig_rax).map(|kind| {
                    let fd = registers.rdi;
                    let target = fs::read_link(format!("/proc/{}/fd/{fd}", self.process));
                    let target = target.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
                    let call = Call { thread, kind, fd, target };
                    let verdict = (self.watch)(&call, Phase::Begin);
                    (call, verdict)
                });
                if let Some((_, Verdict::Fail(_))) = begun {
                    // The number of no call: the kernel skips it.
                    registers.orig_rax = u64::MAX;
                    let _ = ptrace::setregs(thread, registers);
                }
                self.calls.insert(thread, begun);
            }
            Some(Some((call, verdict))) => {
                if let Verdict::Fail(error) = verdict {
                    registers.rax = i64::from(-(error as i32)).cast_unsigned();
                    let _ = ptrace::setregs(thread, registers);
                }
                (self.watch)(&call, Phase::End(registers.rax.cast_signed()));
            }
            Some(None) => {}
        }
    }
}

fn kind(number: u64) -> Option<Kind> {
    match i64::try_from(number).ok()? {
        libc::SYS_fsync | libc::SYS_fdatasync => Some(Kind::Sync),
        libc::SYS_read | libc::SYS_readv | libc::SYS_recvfrom | libc::SYS_recvmsg => Some(Kind::Read),
        libc::SYS_write
        | libc::SYS_writev
        | libc::SYS_pwrite64
        | libc::SYS_pwritev
        | libc::SYS_sendto
        | libc::SYS_sendmsg => Some(Kind::Write),
        _ => None,
    }
}
