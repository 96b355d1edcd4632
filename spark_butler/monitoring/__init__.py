"""Numbers of a run for monitoring systems."""

__all__: list[str] = []
