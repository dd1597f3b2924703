"""Ways to kill a process at an exact place; importable from all tests."""

import os
import signal
import sys

FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir"}
"""Python's audit events before which a process can be killed."""


def in_a_child(action):
    """Run `action` in a forked process; its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        action()
    finally:
        os._exit(0)


def was_killed(pid):
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def dying_before_operation(number, folder, action):
    """`action`, killed right before its `number`-th file operation below `folder`."""
    left = number

    def count(event, arguments):
        nonlocal left
        if event in FILE_EVENTS and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def act():
        sys.addaudithook(count)
        action()

    return act
