"""The floor: asyncio, pidfd and posix_spawn, nothing else. Usage: floor.py LOG CHILD COUNT FIRST_PORT"""

import asyncio
import os
import signal
import sys


async def main() -> None:
    log, child, count, port = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    running: dict[int, tuple[int, int]] = {}

    def start(number: int) -> None:
        argv = [child, log, f"c{number}", str(port + number)]
        pid = os.posix_spawn(child, argv, os.environ, setsid=True)
        fd = os.pidfd_open(pid)
        running[number] = (pid, fd)
        loop.add_reader(fd, died, number)

    def died(number: int) -> None:
        pid, fd = running.pop(number)
        loop.remove_reader(fd)
        os.close(fd)
        os.waitpid(pid, 0)
        if not stopping.is_set():
            start(number)

    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    for number in range(count):
        start(number)
    await stopping.wait()
    for pid, _ in running.values():
        os.kill(pid, signal.SIGKILL)


asyncio.run(main())
