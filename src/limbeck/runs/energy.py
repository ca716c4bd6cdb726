"""What the machine draws while something runs, where it can be metered."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["RAPL_ROOT", "EnergyMeter"]

RAPL_ROOT = Path("/sys/class/powercap")
# A package as a whole, and not the cores or the memory within one, which it contains.
_PACKAGE = re.compile(r"(intel|amd)-rapl:\d+")


@dataclass(frozen=True)
class _Counter:
    """One package's counter, in microjoules, which starts again at ``span``."""

    file: Path
    span: int

    def read(self) -> int:
        return int(self.file.read_text())


class EnergyMeter:
    """Joules that the processor packages drew inside a ``with`` block.

    Read from the running average power limit (RAPL) counters that Linux shows for Intel's and
    AMD's processors. The whole machine is in them, other programs too; graphics cards, memory
    outside the package, and losses of the power supply are not.

    Args:
        root: where the counters are.

    Attributes:
        seconds: between the start and the end of the block.
        joules: drawn meanwhile; None where it cannot be metered.
        reason: why not; empty where it can.

    Source:
        Khan, Hirki, Niemi, Nurminen, Ou, "RAPL in Action", ACM TOMPECS 3(2), 2018,
        https://doi.org/10.1145/3177754.
    """

    def __init__(self, root: Path = RAPL_ROOT) -> None:
        self.seconds = 0.0
        self.joules: float | None = None
        self.reason = ""
        self._counters: list[_Counter] = []
        found = sorted(p for p in root.glob("*-rapl:*") if _PACKAGE.fullmatch(p.name))
        if not found:
            self.reason = f"this machine shows no energy counters ({root}/intel-rapl:*)"
        try:
            for package in found:
                span = int((package / "max_energy_range_uj").read_text())
                counter = _Counter(package / "energy_uj", span)
                counter.read()
                self._counters.append(counter)
        except (OSError, ValueError) as error:
            self._counters = []
            self.reason = f"the energy counters cannot be read ({error}); root may"

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._first = [counter.read() for counter in self._counters]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.monotonic() - self._began
        with suppress(OSError, ValueError):
            drawn = [
                (counter.read() - first) % counter.span
                for counter, first in zip(self._counters, self._first, strict=True)
            ]
            self.joules = sum(drawn) / 1e6 if drawn else None
