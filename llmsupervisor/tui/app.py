"""The terminal UI: a client of the control socket like every other. Leaving it stops nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
import threading
from importlib import import_module

from rich.color import ColorSystem
from rich.console import RenderableType
from textual.app import App
from textual.binding import Binding
from textual.geometry import Offset
from textual.screen import Screen

from llmsupervisor.tui.dashboard import Dashboard
from llmsupervisor.tui.feeds import Feeds
from llmsupervisor.tui.frame import Frame, Update
from llmsupervisor.tui.page import Page
from llmsupervisor.tui.pages import PAGES, place
from llmsupervisor.tui.paint import Paint

RETRY = 0.02
"""Seconds after which a terminal that has not taken the last frame is looked at again."""
BEHIND = 1
"""Writes that the terminal may be behind before a frame waits."""


class SupervisorApp(App[None]):
    """Drawn in the 16 colours of the user's own terminal."""

    CSS_PATH = "style.tcss"
    TITLE = "llmsupervisor"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS = [
        Binding("ctrl+c", "app.quit", "detach", priority=True),
        Binding("ctrl+z", "app.suspend_process", "to the shell; fg comes back", priority=True),
        Binding("ctrl+l", "redraw", "draw anew"),
        Binding("ctrl+p,colon", "palette", "command palette"),
        *(Binding(page.digit, f"page('{page.name}')", page.name) for page in PAGES),
    ]

    def __init__(self, feeds: Feeds) -> None:
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        self.animation_level = "none"
        self.feeds = feeds
        self.paint = Paint(feeds.environ)
        self._frame = Frame()
        self._waiting = False

    def get_default_screen(self) -> Dashboard:
        return Dashboard(self.feeds, self.paint)

    def on_mount(self) -> None:
        if not self.is_headless:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self.exit)
            threading.Thread(target=self._hung_up, args=(loop,), name="terminal", daemon=True).start()
        self.app_resume_signal.subscribe(self, lambda _: self.action_redraw())

    def _hung_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """A terminal that goes without a SIGHUP (`docker exec -t`, a wrapper with a session of its own) reads as an endless
        end of file, of which Textual's input thread makes a loop that takes a core."""
        if not os.isatty(0):
            return
        terminal = select.poll()
        terminal.register(0, 0)
        terminal.poll()
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self.exit)

    def on_unmount(self) -> None:
        self.feeds.close()

    def action_palette(self) -> None:
        from llmsupervisor.tui.palette import Palette

        if isinstance(self.screen, Page):
            self.push_screen(Palette(self.paint.ascii))

    def action_page(self, name: str, service: str | None = None) -> None:
        """The overview is below all others, and they never stack. `service`: None is the one selected now."""
        page = self.screen
        if not isinstance(page, Page) or (name == page.NAME and service in (None, page.selected)):
            return
        service = service or page.selected
        while len(self.screen_stack) > 1:
            self.pop_screen()
        if name != PAGES[0].name:
            found = place(name)
            kind = getattr(import_module(f"llmsupervisor.tui.{found.module}"), found.kind)
            self.push_screen(kind(self.feeds, self.paint, service))

    # --- what is sent to the terminal ---------------------------------------------------------------------------

    def action_redraw(self) -> None:
        self._frame.forget()
        self._send()

    def _display(self, screen: Screen[object], renderable: RenderableType | None) -> None:
        if not isinstance(renderable, Update) or self.is_headless or self.is_inline or self._batch_count:
            super()._display(screen, renderable)
            return
        self._frame.resize(*screen.size)
        self._frame.draw(renderable, self.console._color_system or ColorSystem.TRUECOLOR)
        self._send()
        self.post_display_hook()

    def _send(self) -> None:
        """Not before the terminal has taken what was sent: a slow one gets fewer frames, not a growing queue of them."""
        if self._waiting or self._driver is None or self._closed or not self._running:
            return
        writer = getattr(self._driver, "_writer_thread", None)
        if writer is not None and writer._queue.qsize() > BEHIND:
            self._waiting = True
            self.set_timer(RETRY, self._send_later)
            return
        changes = self._frame.changes()
        if not changes:
            return
        cursor = self.cursor_position
        if cursor != Offset(0, 0):
            changes += f"\x1b[{cursor.y + 1};{cursor.x + 1}H"
        if self._sync_available:
            changes = f"\x1b[?2026h{changes}\x1b[?2026l"
        self._driver.write(changes)
        self._driver.flush()

    def _send_later(self) -> None:
        self._waiting = False
        self._send()


def run(feeds: Feeds, mouse: bool = False) -> int:
    app = SupervisorApp(feeds)
    app.run(mouse=mouse)
    status = feeds.picture.status
    if app.return_code == 0 and status is not None:
        where = f" on {feeds.host}" if feeds.host else ""
        sys.stdout.write(f"detached: the daemon (pid {status['daemon']['pid']}) and its services run on{where}\n")
    return app.return_code or 0
