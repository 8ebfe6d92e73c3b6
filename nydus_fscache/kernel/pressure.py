"""Is memory short?  Linux tells how much of the time somebody waits for it (PSI, since 4.20).

Source: Documentation/accounting/psi.rst.
"""

from __future__ import annotations

from pathlib import Path

PRESSURE = Path("/proc/pressure/memory")
SHORT_PERCENT = 5.0  # of the last ten seconds, in which some process waited for memory


def memory_is_short(pressure: Path = PRESSURE) -> bool:
    """False where the kernel does not tell."""
    try:
        some = pressure.read_text().split()  # some avg10=0.00 avg60=...
        return float(some[1].removeprefix("avg10=")) >= SHORT_PERCENT
    except (OSError, ValueError, IndexError):
        return False
