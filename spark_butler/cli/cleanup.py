"""The command ``cleanup``, which removes temporaries of crashed runs.  Runs in the process of the command."""

from __future__ import annotations

__all__ = ["cleanup", "find_folders"]

from typing import TYPE_CHECKING

import click

from ..text import format_count
from .command import LeafCommand, print_result

if TYPE_CHECKING:
    from lsst.daf.butler import Butler
    from lsst.resources import ResourcePath


@click.command(cls=LeafCommand)
@click.argument("repo")
@click.option("--run", help="Remove only temporaries of this output RUN.")
@click.option("--dry-run", is_flag=True, help="Print the temporaries to remove; nothing is removed.")
def cleanup(repo: str, run: str | None, dry_run: bool, form: str) -> None:
    """Remove temporaries of crashed runs from the object store.

    Runs remove their temporaries themselves, also when they fail; only a killed driver leaves some.
    Don't use this command during a run, unless --run names another run.

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
            found = [str(uri) for folder in folders for uri in find_scratch(folder, one_run=one_run)]
            print_result(form, found, "\n".join(found) or "There are no scratch files to remove.")
            return
    count = sum(remove_scratch(folder, one_run=one_run) for folder in folders)
    print_result(form, {"removed": count}, f"{format_count(count, 'scratch file')} removed.")


def find_folders(butler: Butler, repo: str, run: str) -> list[ResourcePath]:
    """Return the scratch folders of a run, one in each datastore; refuse a name that belongs to no run."""
    from lsst.daf.butler import CollectionType

    from ..report import find_attempts
    from ..repository.checks import store_roots
    from ..repository.unknown_names import unknown_run
    from ..temporaries.scratch import list_scratch_runs, scratch_folder

    roots = store_roots(butler)
    # The registry would take the user's name for a pattern.
    names = set(butler.collections.query("*", collection_types=CollectionType.RUN))
    if run not in names:
        names.update(*map(list_scratch_runs, roots), (attempt.run for attempt in find_attempts(roots)))
    if run not in names:
        raise unknown_run(repo, run, names, "a RUN collection, or a run that left files")
    return [scratch_folder(root, run) for root in roots]
