"""The command that removes what crashed runs have left."""

from __future__ import annotations

__all__ = ["cleanup", "find_folders"]

from typing import TYPE_CHECKING

import click

from .command import LeafCommand, say_json

if TYPE_CHECKING:
    from lsst.daf.butler import Butler
    from lsst.resources import ResourcePath


@click.command(cls=LeafCommand)
@click.argument("repo")
@click.option("--run", help="Only what this output RUN has left.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed.")
def cleanup(repo: str, run: str | None, dry_run: bool, form: str) -> None:
    """Remove temporaries that crashed runs have left in the object store.

    Runs that end, well or not, clean up after themselves; only what is killed leaves something.
    Not to be used while a run is going on, unless --run names another.

    \b
    Examples:
      spark-butler cleanup s3-repo --dry-run
      spark-butler cleanup s3-repo --run u/me/first/20260101T000000Z
    """
    from lsst.daf.butler import Butler

    from ..repository.checks import check_repository, store_roots
    from ..temporaries.scratch import find_scratch, remove_scratch, scratch_root

    check_repository(repo)
    one_run = run is not None
    with Butler.from_config(repo, writeable=False) as butler:
        roots = store_roots(butler)
        folders = find_folders(butler, repo, run) if run is not None else list(map(scratch_root, roots))
        if dry_run:
            found = [uri for folder in folders for uri in find_scratch(folder, one_run=one_run)]
            _say_found(list(map(str, found)), form)
            return
    count = sum(remove_scratch(folder, one_run=one_run) for folder in folders)
    if form == "json":
        say_json({"removed": count})
        return
    click.echo(f"{count} scratch files removed.")


def find_folders(butler: Butler, repo: str, run: str) -> list[ResourcePath]:
    """Find the scratch folders of a run, one in each datastore.

    Parameters
    ----------
    butler
        Butler of the repository.
    repo
        Its address.
    run
        The name that a user gave.

    Raises
    ------
    spark_butler.errors.RepositoryError
        Raised if that is neither the name of a RUN collection nor that of a
        run which has left something, or if it can't be that of a folder.
    """
    from lsst.daf.butler import CollectionType

    from ..report import find_attempts
    from ..repository.checks import store_roots
    from ..run_folders import unknown_run
    from ..temporaries.scratch import list_scratch_runs, scratch_folder

    roots = store_roots(butler)
    # The registry would take what the user gave for a pattern.
    names = set(butler.collections.query("*", collection_types=CollectionType.RUN))
    if run not in names:
        names.update(*map(list_scratch_runs, roots), (attempt.run for attempt in find_attempts(roots)))
    if run not in names:
        raise unknown_run(repo, run, names, "a RUN collection, or a run that has left files")
    return [scratch_folder(root, run) for root in roots]


def _say_found(uris: list[str], form: str) -> None:
    """List what would be removed."""
    if form == "json":
        say_json(uris)
        return
    for uri in uris:
        click.echo(uri)
