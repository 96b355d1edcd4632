"""What an attempt at an output run has to tell later ones, kept in the run's documentation string."""

from __future__ import annotations

__all__ = ["note_temporaries", "read_temporaries"]

from collections.abc import Collection, Iterable

from lsst.daf.butler import Butler, MissingCollectionError

_HEADING = "Not retained in this run, or not always: "


def note_temporaries(butler: Butler, run: str, names: Collection[str]) -> None:
    """Note dataset types that quanta of a run make and that are not kept.

    Parameters
    ----------
    butler
        Writeable butler of the repository.
    run
        The output run.
    names
        Names of the dataset types, added to those noted before.
    """
    noted = read_temporaries(butler, [run])
    if noted.issuperset(names):
        return
    lines = (butler.registry.getCollectionDocumentation(run) or "").splitlines()
    lines = [line for line in lines if not line.startswith(_HEADING)]
    lines.append(f"{_HEADING}{', '.join(sorted(noted.union(names)))}")
    butler.registry.setCollectionDocumentation(run, "\n".join(lines))


def read_temporaries(butler: Butler, runs: Iterable[str]) -> frozenset[str]:
    """Read which dataset types were not kept by some attempt at a run.

    Parameters
    ----------
    butler
        Butler of the repository.
    runs
        Output runs.  Those that don't exist are left out.

    Returns
    -------
    names
        Names of the dataset types.
    """
    names: set[str] = set()
    for run in runs:
        try:
            text = butler.registry.getCollectionDocumentation(run) or ""
        except MissingCollectionError:
            continue
        for line in text.splitlines():
            if line.startswith(_HEADING):
                names.update(name.strip() for name in line.removeprefix(_HEADING).split(","))
    return frozenset(names)
