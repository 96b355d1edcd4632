"""Metrics of a run for monitoring systems.  Runs in the driver."""

__all__: list[str] = []
