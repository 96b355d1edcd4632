"""Numbers and data IDs, as people read them."""

from __future__ import annotations

__all__ = ["format_bytes", "format_data_id", "format_seconds"]

from collections.abc import Mapping


def format_seconds(seconds: float) -> str:
    """Write a duration.

    Parameters
    ----------
    seconds
        The duration in seconds.
    """
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def format_bytes(n_bytes: float) -> str:
    """Write a number of bytes.

    Parameters
    ----------
    n_bytes
        The number.
    """
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.3g} {unit}"


def format_data_id(data_id: Mapping[str, object]) -> str:
    """Write a data ID.

    Parameters
    ----------
    data_id
        Values by name of the dimension.
    """
    return ", ".join(f"{name} {value}" for name, value in data_id.items())
