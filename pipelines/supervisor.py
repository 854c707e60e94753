"""Runs one command and ends its whole process tree: the program beside every stage. Standard library only.

In: `python -I -S supervisor.py GRACE TIMEOUT CORES FLOW REPORT command…` (seconds, seconds or inf, cores as 0,1 or -,
the flow's process, a descriptor), the tree's cookie in the environment, on stdin a pipe whose other end is the flow's.
Out: one line on the descriptor REPORT, `reason code ended left`, once no process of the tree is left: why it ended, the
command's exit code (128 + n for signal n), how many processes had to be ended, how many could not be.

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

COOKIE = "PIPELINES_TREE"
LINUX = sys.platform == "linux"
PR_SET_CHILD_SUBREAPER = 36
SECONDS_TO_DIE = 60.0  # after SIGKILL: a process that waits for a broken disk or driver does not die
MOST_SECONDS = 1e6  # what poll() takes at most, about
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
Process = tuple[int, int]  # number and start in ticks, as numbers are used again; a negative number is a process group


def look_up(number: int) -> tuple[Process, int] | None:
    """A process and its parent's number; None if it has ended."""
    try:
        with open(f"/proc/{number}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the name in brackets may hold anything
    except OSError:
        return None
    if fields[0] in b"ZX" and int(fields[17]) <= 1:  # a dead first thread may have left others
        return None
    return (number, int(fields[19])), int(fields[1])


def all_processes() -> dict[int, tuple[Process, int]]:
    """What `look_up` tells of every living process."""
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()] if LINUX else []
    return {number: found for number in numbers if (found := look_up(number))}


def cookie_of(number: int) -> str:
    """The cookie that a process was started with; empty without one, or where it may not be read."""
    try:
        with open(f"/proc/{number}/environ", "rb") as file:
            environment = b"\0" + file.read()
    except OSError:
        return ""
    return environment.partition(f"\0{COOKIE}=".encode())[2].partition(b"\0")[0].decode(errors="replace")


def below(roots: Collection[int], table: dict[int, tuple[Process, int]]) -> set[int]:
    """The numbers of the descendants of `roots`."""
    family, more = set(roots), set(roots)
    while more:
        more = {number for number, (_, parent) in table.items() if parent in more} - family
        family |= more
    return family - set(roots)


def carriers(wanted: Callable[[str], bool]) -> set[Process]:
    """The processes whose cookie is `wanted` and all below them, without this one."""
    table = all_processes()
    found = {number for number in table if (cookie := cookie_of(number)) and wanted(cookie)} - {os.getpid()}
    return {table[number][0] for number in (found | below(found, table)) - {os.getpid()}}


def handle_of(number: int) -> int:
    """A descriptor that stays with a process and is readable when that has ended; -1 before Linux 5.3."""
    try:
        return os.pidfd_open(number)
    except (AttributeError, OSError):
        return -1


def send(process: Process, what: int) -> None:
    """Signals a process, unless it has ended or may not be signalled."""
    number = process[0]
    handle = handle_of(number) if number > 0 else -1
    try:
        found = look_up(number)  # after the handle was opened: from here on the number cannot change hands
        if handle >= 0 and found and found[0] == process:
            signal.pidfd_send_signal(handle, what)
        elif handle < 0 and (number < 0 or (found and found[0] == process)):
            os.kill(number, what)
    except OSError:
        pass
    finally:
        if handle >= 0:
            os.close(handle)


def end(living: Callable[[], set[Process]], grace: float) -> tuple[int, int]:
    """TERM to all that are `living`, KILL after `grace` seconds until none is left; how many ended and did not end."""
    began, pause = time.monotonic(), 0.01
    seen: set[Process] = set()
    rounds = 0
    while left := living():
        passed = time.monotonic() - began
        if passed > grace + SECONDS_TO_DIE:
            break
        for process in left:
            if passed >= grace:
                send(process, signal.SIGKILL)
            elif rounds < 2 and process not in seen:  # later ones are what the ending ones clean up with
                send(process, signal.SIGTERM)
        seen |= left
        rounds += 1
        time.sleep(min(pause, max(grace - passed, 0.01)))
        pause = min(pause * 1.5, 0.2)
    return len(seen - left), len(left)


def reap() -> tuple[dict[int, int], bool]:
    """The exit codes of children that ended, by number, and whether any child is left."""
    codes = {}
    while True:
        try:
            number, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return codes, False
        if not number:
            return codes, True
        code = os.waitstatus_to_exitcode(status)
        codes[number] = code if code >= 0 else 128 - code


def group_lives(group: int) -> bool:
    """Whether a process of the group can be signalled."""
    try:
        os.kill(-group, 0)
    except OSError:
        return False
    return True


class Tree:
    """The processes below this one: `codes` holds the exit codes of its children, `spared` is no part of it."""

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}
        self.spared = 0
        self.group = 0  # where a tree cannot be told

    def living(self) -> set[Process]:
        """What lives of the tree; a subreaper without children has nothing below it."""
        codes, any_left = reap()
        self.codes |= codes
        if not LINUX:
            return {(-self.group, 0)} if group_lives(self.group) else set()
        if not any_left:
            return set()
        table = all_processes()
        return {table[number][0] for number in below({os.getpid()}, table) - {self.spared}}


def start(command: list[str], cores: str) -> int:
    """Starts the command in a session of its own, with nothing to read; the number of its process."""
    number = os.fork()
    if number:
        return number
    for name in (*ENDING, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(name, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    wanted = f"{command[0]} cannot be started"
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if cores != "-" and LINUX:
            wanted = f"the cores {cores} cannot be used"
            os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
            wanted = f"{command[0]} cannot be started"
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{wanted}: {error.strerror}\n".encode())
        raise SystemExit(127 if isinstance(error, FileNotFoundError) else 126) from None
    raise AssertionError  # exec does not return


def become_subreaper() -> None:
    """Makes this process the parent of orphans below it, instead of the machine's first process."""
    if LINUX:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def say(report: int, reason: str, code: int, ended: int, stuck: int) -> None:
    """Tells the flow how the tree ended, if the flow still listens."""
    try:
        os.write(report, f"{reason} {code} {ended} {stuck}\n".encode())
    except OSError:
        pass


def second_guard(grace: float, report: int) -> tuple[int, int]:
    """Starts a guard below the supervisor; its number, and the pipe whose closing tells it of a death."""
    alive, hold = os.pipe()
    number = os.fork()
    if number:
        os.close(alive)
        return number, hold
    os.setsid()
    os.close(hold)
    signal.set_wakeup_fd(-1)
    for name in ENDING:
        signal.signal(name, signal.SIG_IGN)
    os.read(alive, 1)
    cookie = os.environ[COOKIE]
    say(report, "lost", 128 + signal.SIGKILL, *end(lambda: carriers(lambda one: one == cookie), grace))
    raise SystemExit


def guard(supervisor: int, grace: float, report: int) -> None:
    """Waits for the supervisor; where that did not end by itself, ends what it has left."""
    for name in ENDING:
        signal.signal(name, lambda number, _: os.kill(supervisor, number))
    ended = 0
    while ended != supervisor:
        ended, status = os.waitpid(-1, 0)
    for name in ENDING:
        signal.signal(name, signal.SIG_IGN)
    code = os.waitstatus_to_exitcode(status)
    if code:
        say(report, "lost", abs(code) + 128 * (code < 0), *end(Tree().living, grace))


def supervise(
    command: list[str], cores: str, timeout: float, grace: float, *, flow: int, guarded: int, report: int
) -> None:
    """Starts the command, waits for its end or a reason for it, ends the tree and reports.

    `flow` and `guarded` are descriptors that become readable when the flow or the guard is gone, -1 where it has none.
    """
    wakes, wake = os.pipe()
    for descriptor in (wakes, wake):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(wake)
    for name in (*ENDING, signal.SIGCHLD):
        signal.signal(name, lambda *_: None)  # without a handler the pipe gets no byte
    deadline = time.monotonic() + timeout
    tree, hold = Tree(), -1
    child = tree.group = start(command, cores)
    watch = select.poll()
    for descriptor in {0, flow, guarded, wakes} - {-1}:
        watch.register(descriptor, select.POLLIN)
    while True:
        left = min(max(deadline - time.monotonic(), 0), MOST_SECONDS)
        ready = {descriptor for descriptor, _ in watch.poll(int(left * 1000) + 1)}
        signals = set(os.read(wakes, 4096)) if wakes in ready else set()
        tree.codes |= reap()[0]
        if guarded in ready or tree.spared in tree.codes:
            if guarded in ready:
                watch.unregister(guarded)
            if hold >= 0:
                os.close(hold)
            tree.spared, hold = second_guard(grace, report)
        if child in tree.codes:
            reason = "exit"
        elif ready & {0, flow} or signals & set(ENDING):
            reason = "stopped"
        elif time.monotonic() >= deadline:
            reason = "timeout"
        else:
            continue
        break
    ended, stuck = end(tree.living, grace)
    say(report, reason, tree.codes.get(child, 128 + signal.SIGKILL), ended, stuck)
    if tree.spared:
        os.kill(tree.spared, signal.SIGKILL)


def main(grace: str, timeout: str, cores: str, flow: str, report: str, *command: str) -> None:
    """Becomes the guard and, below it, the supervisor; nothing happens where the flow is gone already."""
    told = int(report)
    os.set_inheritable(told, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # a thread of the flow may have blocked some
    flow_handle = handle_of(int(flow))
    if os.getppid() != int(flow):
        return
    guarded = -1
    if LINUX:
        become_subreaper()
        guarded, hold = os.pipe()
        supervisor = os.fork()
        if supervisor:
            os.close(guarded)
            guard(supervisor, float(grace), told)
            return
        os.setsid()
        os.close(hold)
        become_subreaper()
    supervise(list(command), cores, float(timeout), float(grace), flow=flow_handle, guarded=guarded, report=told)


if __name__ == "__main__":
    main(*sys.argv[1:])
