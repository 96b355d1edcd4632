"""The command that removes what crashed runs have left."""

from __future__ import annotations

__all__ = ["cleanup"]

from typing import TYPE_CHECKING

import click

from .cli_command import LeafCommand, say_json

if TYPE_CHECKING:
    from lsst.daf.butler import Butler


@click.command(cls=LeafCommand)
@click.argument("repo")
@click.option("--run", help="Only what this output RUN has left.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed.")
def cleanup(repo: str, run: str | None, dry_run: bool, form: str) -> None:
    """Remove temporaries that crashed runs have left in the object store.

    Runs that end, well or not, clean up after themselves; only what is killed leaves something.
    With --run, parts of its bundle (see run --bundle) that nothing refers to are removed, too.
    Not to be used while a run is going on, unless --run names another.

    \b
    Examples:
      spark-butler cleanup s3-repo --dry-run
      spark-butler cleanup s3-repo --run u/me/first/20260101T000000Z
    """
    from lsst.daf.butler import Butler

    from .bundle import find_unused_parts, remove_unused_parts
    from .repository import check_repository, store_roots
    from .scratch import find_scratch, remove_scratch, scratch_root

    check_repository(repo)
    with Butler.from_config(repo, writeable=False) as butler:
        folders = [scratch_root(root) for root in store_roots(butler)]
        if run is not None:
            folders = [folder.join(f"{run}/", forceDirectory=True) for folder in folders]
        if dry_run or run is not None:
            found = [uri for folder in folders for uri in find_scratch(folder)]
            if run is not None:
                found += find_unused_parts(butler, run)
                if not found:
                    _check_run(butler, repo, run)
        if dry_run:
            _say_found(list(map(str, found)), form)
            return
        n_parts = 0 if run is None else remove_unused_parts(butler, run)
    count = sum(remove_scratch(folder) for folder in folders)
    if form == "json":
        say_json({"removed": count, "parts": n_parts})
        return
    click.echo(f"{count} scratch files removed.")
    if n_parts:
        click.echo(f"{n_parts} unused parts of a bundle removed.")


def _check_run(butler: Butler, repo: str, run: str) -> None:
    """Refuse a run of which there is nothing; one that was removed may have left something."""
    from lsst.daf.butler import MissingCollectionError

    from .errors import RepositoryError

    try:
        butler.collections.get_info(run)
    except MissingCollectionError:
        raise RepositoryError(
            f"The repository {repo!r} has no run {run!r}, nor anything that one of this name has left; "
            "see `spark-butler status`."
        ) from None


def _say_found(uris: list[str], form: str) -> None:
    """List what would be removed."""
    if form == "json":
        say_json(uris)
        return
    for uri in uris:
        click.echo(uri)
