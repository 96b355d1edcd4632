"""Pictures, catalogs and the science page of process_ccd.  Runs in the process of the command."""

__all__: list[str] = []
