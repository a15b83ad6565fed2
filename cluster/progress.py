"""What is seen while specs run: a line for each that ends, and in a terminal what all others do."""

from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

SHOWN = 20  # stages in the terminal at most: there may be hundreds


class ProgressDisplay:
    """The stages that run or wait; lines are printed for what changes where the output is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._now: dict[str, tuple[str, str]] = {}
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> "ProgressDisplay":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, stage: str, kind: str, where: str) -> None:
        """``stage`` runs or waits."""
        if self._now.get(stage) != (kind, where):
            self._now[stage] = (kind, where)
            if not self._console.is_terminal:
                self._print(stage, kind, where)

    def end(self, stage: str, how: str, what: str) -> None:
        """``stage`` has ended, or is begun again."""
        self._now.pop(stage, None)
        self._print(stage, how, what)

    def _print(self, stage: str, how: str, what: str) -> None:
        style = {"done": "green", "failed": "red", "again": "yellow"}.get(how, "default")
        self._console.print(f"[{style}]{how:<8}[/] {escape(stage)}" + (f"  {escape(what)}" if what else ""))

    def draw(self) -> None:
        """Bring the terminal up to date: what runs first."""
        if not self._console.is_terminal:
            return
        table = Table.grid(padding=(0, 2))
        ordered = sorted(self._now.items(), key=lambda entry: (entry[1][0] != "running", entry[0]))
        for stage, (kind, where) in ordered[:SHOWN]:
            table.add_row(kind, escape(stage), escape(where))
        if len(ordered) > SHOWN:
            table.add_row("", f"and {len(ordered) - SHOWN} more", "")
        self._live.update(table, refresh=True)
