"""Run one command and end its whole process tree: the program beside every stage. Uses the standard library only.

Called as `python -I -S supervisor.py GRACE NOTICE TIMEOUT CORES FLOW REPORT command…`: seconds, seconds, seconds or
inf, cores as 0,1 or -, the number of the flow's process, a descriptor. The environment holds the tree's cookie; stdin
is a pipe whose other end is the flow's. A tree that is to end is ended at once where NOTICE is 0; else the command
alone gets HUP and that many seconds to end in order, unless it is asked for again. Once no process of the tree is left,
writes one line to the descriptor REPORT:
`reason code ended stuck`, which are why it ended, the command's exit code (128 + n for signal n), how many processes
had to be ended, and how many could not be.

The program is two processes. The guard, which the flow starts, starts the supervisor, which starts the command. Both
are subreapers: the parent of a daemon is the supervisor, or the guard once the supervisor is killed. A guard that is
killed is replaced by one that finds the tree by its cookie: less sure, as a program may overwrite its environment
(Ray's do). On other systems than Linux there is no guard, and the tree is the process group of the command.
"""

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress

COOKIE = "PIPELINES_TREE"
LINUX = sys.platform == "linux"
PR_SET_CHILD_SUBREAPER = 36
KILL_SECONDS = 60.0  # after SIGKILL: a process that waits for a broken disk or driver does not die
MAX_POLL_SECONDS = 1e6  # what poll() takes at most, about
END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
Process = tuple[int, int]  # number and start in ticks, as numbers are reused; a negative number is a process group


def find_process(number: int) -> tuple[Process, int] | None:
    """Return a process and its parent's number; None if it has ended."""
    try:
        with open(f"/proc/{number}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the name in brackets may hold anything
    except OSError:
        return None
    if fields[0] in b"ZX" and int(fields[17]) <= 1:  # a dead first thread may have left others
        return None
    return (number, int(fields[19])), int(fields[1])


def list_numbers() -> set[int]:
    """Return the numbers of all processes, dead ones that nobody has waited for among them."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()} if LINUX else set()


def find_family(roots: Collection[int]) -> set[Process]:
    """Return the living ones of `roots` and of all their descendants, without this process."""
    table = {number: process for number in list_numbers() if (process := find_process(number))}
    family = generation = set(roots)
    while generation:
        generation = {number for number, (_, parent) in table.items() if parent in generation} - family
        family = family | generation
    return {table[number][0] for number in family & table.keys() - {os.getpid()}}


def find_by_cookie(matches: Callable[[str], bool]) -> set[Process]:
    """Return the processes whose cookie `matches` and all their descendants, without this process."""
    roots: set[int] = set()
    for number in list_numbers() - {os.getpid()}:
        with suppress(OSError), open(f"/proc/{number}/environ", "rb") as file:  # what may not be read has no cookie
            environment = b"\0" + file.read()
            cookie = environment.partition(f"\0{COOKIE}=".encode())[2].partition(b"\0")[0].decode(errors="replace")
            roots |= {number} if cookie and matches(cookie) else set()
    return find_family(roots)


def open_pidfd(number: int) -> int:
    """Return a descriptor that stays with a process and is readable once that has ended; -1 before Linux 5.3."""
    try:
        return os.pidfd_open(number)
    except (AttributeError, OSError):
        return -1


def send_signal(process: Process, number: int) -> None:
    """Signal a process, unless it has ended or may not be signalled."""
    pid = process[0]
    pidfd = open_pidfd(pid) if pid > 0 else -1
    with suppress(OSError):
        current = find_process(pid)  # after the descriptor was opened: from here on the number cannot be reused
        if pid < 0 or (current and current[0] == process):
            if pidfd >= 0:
                signal.pidfd_send_signal(pidfd, number)
            else:
                os.kill(pid, number)
    if pidfd >= 0:
        os.close(pidfd)


def end_processes(list_living: Callable[[], set[Process]], grace: float) -> tuple[int, int]:
    """Send TERM to all living processes, KILL after `grace` seconds; return how many ended and how many did not."""
    began, pause, rounds = time.monotonic(), 0.01, 0
    seen: set[Process] = set()
    while living := list_living():
        passed = time.monotonic() - began
        if passed > grace + KILL_SECONDS:
            break
        for process in living:
            if passed >= grace:
                send_signal(process, signal.SIGKILL)
            elif rounds < 2 and process not in seen:  # later ones are what the ending ones clean up with
                send_signal(process, signal.SIGTERM)
        seen |= living
        rounds += 1
        time.sleep(min(pause, max(grace - passed, 0.01)))
        pause = min(pause * 1.5, 0.2)
    return len(seen - living), len(living)


class Tree:
    """The processes below this one. `codes`: exit codes of its children. `excluded`: a child that is no part of it."""

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}
        self.excluded = 0
        self.group = 0  # stands for the tree where there is no /proc

    def reap_children(self) -> bool:
        """Note the exit codes of children that ended; return whether any child is left."""
        with suppress(ChildProcessError):
            while True:
                number, status = os.waitpid(-1, os.WNOHANG)
                if not number:
                    return True
                code = os.waitstatus_to_exitcode(status)
                self.codes[number] = code if code >= 0 else 128 - code
        return False

    def list_living(self) -> set[Process]:
        """Return the living processes of the tree; a subreaper without children has nothing below it."""
        any_left = self.reap_children()
        if LINUX:
            family = find_family({os.getpid()}) if any_left else set[Process]()
            return {process for process in family if process[0] != self.excluded}
        with suppress(OSError):
            os.kill(-self.group, 0)
            return {(-self.group, 0)}
        return set()


def start_command(command: list[str], cores: str) -> int:
    """Start the command in a session of its own, with nothing to read; return the number of its process."""
    number = os.fork()
    if number:
        return number
    for name in (*END_SIGNALS, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(name, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    failure = f"the cores {cores} cannot be used"
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if cores != "-" and LINUX:
            os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
        failure = f"{command[0]} cannot be started"
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{failure}: {error.strerror}\n".encode())
        raise SystemExit(127 if isinstance(error, FileNotFoundError) else 126) from None
    raise AssertionError  # exec does not return


def become_subreaper() -> None:
    """Make this process the parent of orphans below it, instead of the machine's first process."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def write_report(report: int, reason: str, code: int, ended: int, stuck: int) -> None:
    """Write how the tree ended to the flow, if that still listens."""
    with suppress(OSError):
        os.write(report, f"{reason} {code} {ended} {stuck}\n".encode())


def start_second_guard(grace: float, report: int) -> int:
    """Start a guard below the supervisor; return its number. A pipe that stays open tells it of a death by closing."""
    alive, hold = os.pipe()
    number = os.fork()
    if number:
        os.close(alive)
        return number
    os.setsid()
    os.close(hold)
    signal.set_wakeup_fd(-1)
    for name in END_SIGNALS:
        signal.signal(name, signal.SIG_IGN)
    os.read(alive, 1)
    own = os.environ[COOKIE]
    ended = end_processes(lambda: find_by_cookie(lambda cookie: cookie == own), grace)
    write_report(report, "lost", 128 + signal.SIGKILL, *ended)
    raise SystemExit


def guard(supervisor: int, grace: float, report: int) -> None:
    """Wait for the supervisor; end what it has left where it was killed."""
    for name in END_SIGNALS:
        signal.signal(name, lambda number, _: os.kill(supervisor, number))
    ended = 0
    while ended != supervisor:
        ended, status = os.waitpid(-1, 0)
    for name in END_SIGNALS:
        signal.signal(name, signal.SIG_IGN)
    code = os.waitstatus_to_exitcode(status)
    if code:
        write_report(report, "lost", abs(code) + 128 * (code < 0), *end_processes(Tree().list_living, grace))


def supervise(
    command: list[str], cores: str, timeout: float, notice: float, grace: float, flow: int, guard_pipe: int, report: int
) -> None:
    """Start the command, wait for its end or a reason to end it, end the tree and report.

    `flow` and `guard_pipe` are descriptors that become readable when the flow or the guard is gone, -1 without one.
    """
    wakes, wake = os.pipe()
    for descriptor in (wakes, wake):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(wake)
    for name in (*END_SIGNALS, signal.SIGCHLD):
        signal.signal(name, lambda *_: None)  # without a handler the pipe gets no byte
    deadline = time.monotonic() + timeout
    tree = Tree()
    child = tree.group = start_command(command, cores)
    poll = select.poll()
    for descriptor in {0, flow, guard_pipe, wakes} - {-1}:
        poll.register(descriptor, select.POLLIN)
    reason, warned = "", False
    while not reason:
        seconds = min(max(deadline - time.monotonic(), 0), MAX_POLL_SECONDS)
        ready = {descriptor for descriptor, _ in poll.poll(int(seconds * 1000) + 1)}
        signals = set(os.read(wakes, 4096)) if wakes in ready else set()
        asked = bool(signals & set(END_SIGNALS) or ready & {0, flow})
        if flow in ready or (0 in ready and not os.read(0, 1)):  # the flow is gone, which stays so
            for descriptor in {0, flow} - {-1}:
                poll.unregister(descriptor)
        tree.reap_children()
        if guard_pipe in ready or tree.excluded in tree.codes:
            if guard_pipe in ready:
                poll.unregister(guard_pipe)
            tree.excluded = start_second_guard(grace, report)
        if child in tree.codes:
            reason = "stopped" if warned else "exit"
        elif asked and notice and not warned:
            os.kill(child, signal.SIGHUP)  # Prefect takes TERM for itself, and Python writes a traceback for INT
            warned, deadline = True, min(deadline, time.monotonic() + notice)
        elif asked:
            reason = "stopped"
        elif time.monotonic() >= deadline:
            reason = "stopped" if warned else "timeout"
    ended, stuck = end_processes(tree.list_living, grace)
    write_report(report, reason, tree.codes.get(child, 128 + signal.SIGKILL), ended, stuck)
    if tree.excluded:
        os.kill(tree.excluded, signal.SIGKILL)


def main(grace: str, notice: str, timeout: str, cores: str, flow: str, report: str, *command: str) -> None:
    """Become the guard and, below it, the supervisor; do nothing where the flow is gone already."""
    os.set_inheritable(int(report), False)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # a thread of the flow may have blocked some
    flow_pidfd = open_pidfd(int(flow))
    if os.getppid() != int(flow):
        return
    guard_pipe = -1
    if LINUX:
        become_subreaper()
        guard_pipe, hold = os.pipe()
        supervisor = os.fork()
        if supervisor:
            os.close(guard_pipe)
            guard(supervisor, float(grace), int(report))
            return
        os.setsid()
        os.close(hold)
        become_subreaper()
    times = float(timeout), float(notice), float(grace)
    supervise(list(command), cores, *times, flow_pidfd, guard_pipe, int(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
