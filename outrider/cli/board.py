"""What the services do, in the terminal: a line of progress for each while they start, and their logs."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from outrider.cli.child import LOG_TAIL_LINES, Observer, Phase, ServiceDiedError
from outrider.cli.record import is_warning
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.printable import uncontrolled
from outrider.output import OutputError

_STYLES: Final[Mapping[str, str]] = {"coordinator": "cyan", "draft": "green", "verify": "magenta"}
"""By kind of service: its name, without the number where there are several."""

_PHASE_STYLES: Final[Mapping[Phase, str]] = {Phase.READY: "bold green"}

_FRAMES_PER_SECOND: Final = 8
"""How often the spinners move while services start."""


class Board(Observer):
    """Shows phases, and logs if `show_logs` is set; otherwise warnings alone, and keeps last lines for `show_tails`."""

    def __init__(
        self,
        console: Console,
        *,
        show_logs: bool,
        names: Sequence[str] = tuple(_STYLES),
        on_failure: Callable[[], object] = lambda: None,
    ) -> None:
        """`names` are those of all services to come. `on_failure` is called once if the console cannot be written."""
        self.failure: OutputError | None = None
        """Why the console cannot be written. Who tells the board of something has nothing to do with it."""
        self._on_failure = on_failure
        self._console = console
        self._show_logs = show_logs
        self._name_width = max(map(len, names))
        self._started = time.monotonic()
        self._phases: dict[str, Phase] = {}
        self._tails: dict[str, deque[str]] = {}
        self._live = Live(
            console=console,
            get_renderable=self._progress,
            refresh_per_second=_FRAMES_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def begin(self) -> None:
        """Shows progress from now on; where the console is no terminal, as a line for each phase."""
        self._started = time.monotonic()
        if self._console.is_terminal:
            self._live.start()

    def settle(self) -> None:
        """Ends the progress display; calling it twice is harmless."""
        self._live.stop()

    def show_tails(self) -> None:
        """The last lines of each log."""
        for name, tail in self._tails.items():
            for line in tail:
                self._print(self._prefixed(name, line), soft_wrap=True)

    @contextlib.contextmanager
    def watching(self) -> Iterator[Board]:
        """Shows progress until the block ends. Where that fails it shows the last lines of each log; a service that
        died has shown its own."""
        self.begin()
        try:
            yield self
        except ServiceDiedError:
            raise
        except OutriderError:
            self.show_tails()
            raise
        finally:
            self.settle()

    def phase(self, name: str, phase: Phase) -> None:
        if self._phases.get(name) is phase:
            return
        self._phases[name] = phase
        if not self._live.is_started and (self._show_logs or phase in (Phase.STARTING, Phase.LOADING, Phase.READY)):
            elapsed = f" after {time.monotonic() - self._started:.1f} s" if phase is Phase.READY else ""
            self._print(self._prefixed(name, phase.value + elapsed, _PHASE_STYLES.get(phase, "bold")))

    def log(self, name: str, line: str) -> None:
        self._tails.setdefault(name, deque(maxlen=LOG_TAIL_LINES)).append(line)
        if self._show_logs or is_warning(line):
            self._print(self._prefixed(name, line), soft_wrap=True)

    def notice(self, text: str) -> None:
        self._print(Text(uncontrolled(text), "yellow"), soft_wrap=True)

    def _print(self, text: Text, *, soft_wrap: bool = False) -> None:
        try:
            self._console.print(text, soft_wrap=soft_wrap)
        except OutputError as error:
            self.failure = error
            self._on_failure()

    def _progress(self) -> RenderableType:
        """One row for each service: spinner, name, phase, and the last line of its log while it starts."""
        table = Table.grid(padding=(0, 1))
        table.add_column()
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for name, phase in self._phases.items():
            tail = self._tails.get(name)
            busy = phase in (Phase.STARTING, Phase.LOADING)
            table.add_row(
                Spinner("dots") if busy else Text("✓", "green") if phase is Phase.READY else Text(" "),
                Text(name, _style(name)),
                Text(phase.value, _PHASE_STYLES.get(phase, "")),
                Text.from_ansi(tail[-1]) if busy and tail else Text(""),
            )
        table.add_row("", Text(f"{time.monotonic() - self._started:.0f} s", "dim"), "", "")
        return table

    def _prefixed(self, name: str, line: str, style: str = "") -> Text:
        prefix = (f"{name:<{self._name_width}} │ ", _style(name))
        return Text.assemble(prefix, (line, style) if style else Text.from_ansi(line))


def _style(name: str) -> str:
    return _STYLES.get(name.partition("-")[0], "")
