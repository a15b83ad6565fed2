"""Progress display of the driver: one line per finished job, and a live table of the others in a terminal."""

from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

MAX_ROWS = 20  # of the live table: there may be hundreds of stages


class ProgressDisplay:
    """The running and waiting stages. If the output is not a terminal, each change of state is printed as a line."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._active: dict[str, tuple[str, str]] = {}  # (status, detail) by stage
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> "ProgressDisplay":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(self, stage: str, status: str, detail: str) -> None:
        """Record that ``stage`` is running or waiting."""
        if self._active.get(stage) != (status, detail):
            self._active[stage] = (status, detail)
            if not self._console.is_terminal:
                self._print(stage, status, detail)

    def finish(self, stage: str, status: str, detail: str) -> None:
        """Print that an attempt at ``stage`` has ended: done, failed, or retry."""
        self._active.pop(stage, None)
        self._print(stage, status, detail)

    def _print(self, stage: str, status: str, detail: str) -> None:
        style = {"done": "green", "failed": "red", "retry": "yellow"}.get(status, "default")
        self._console.print(f"[{style}]{status:<8}[/] {escape(stage)}" + (f"  {escape(detail)}" if detail else ""))

    def refresh(self) -> None:
        """Redraw the live table, running stages first."""
        if not self._console.is_terminal:
            return
        table = Table.grid(padding=(0, 2))
        rows = sorted(self._active.items(), key=lambda item: (item[1][0] != "running", item[0]))
        for stage, (status, detail) in rows[:MAX_ROWS]:
            table.add_row(status, escape(stage), escape(detail))
        if len(rows) > MAX_ROWS:
            table.add_row("", f"and {len(rows) - MAX_ROWS} more", "")
        self._live.update(table, refresh=True)
