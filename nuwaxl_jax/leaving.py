"""Being told to stop where nothing is to be saved: SIGTERM and SIGINT end the process at once, with status 42.

For work that keeps itself as it is done and may be killed at any moment, and for the time before other work has begun.
Work that has something to save catches the signals itself (`training.interrupts`).
"""

import os
import signal
import threading
from typing import Any

RESUME_ME = 42  # tells a watcher to start the same command again
GRACE = 5.0  # seconds for ending children and threads


def at_once(line: str) -> None:
    """From now on a signal says `line` on stderr and ends the process; a second one does not wait for its threads."""
    told = threading.Event()

    def leave(signum: int, frame: Any) -> None:
        del signum, frame
        if told.is_set():
            os._exit(RESUME_ME)
        told.set()
        os.write(2, f"{line}\n".encode())  # print may be what was interrupted
        late = threading.Timer(GRACE, os._exit, (RESUME_ME,))
        late.daemon = True
        late.start()
        raise SystemExit(RESUME_ME)

    if threading.current_thread() is threading.main_thread():  # else whoever runs us handles signals
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, leave)
