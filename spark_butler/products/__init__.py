"""Products of process_ccd for people: pictures and catalogs.  Runs in the process of the command."""

__all__: list[str] = []
