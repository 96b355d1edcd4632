"""The commands ``show``, ``catalog`` and ``science``, for process_ccd.  Run in the command's process."""

from __future__ import annotations

__all__ = ["catalog", "science", "show"]

import click
from lsst.daf.butler import Butler
from lsst.resources import ResourcePath

from ..atomic_write import write_at_once
from ..errors import OptionsError, RepositoryError, UserError
from ..products.catalog import FORMATS, read_catalog, write_catalog
from ..repository.checks import check_repository
from ..repository.output_checks import check_name
from ..repository.query import find_data_ids
from ..text import format_count, translate_errors
from .command import LeafCommand, print_result

_MOST_VISITS = 10


@click.command(cls=LeafCommand)
@click.argument("repo")
@click.argument("collection")
@click.option("--visit", type=int, help="The visit; needed if the collection has several.")
@click.option("--detector", type=int, help="The detector; without it, all detectors of the visit are drawn.")
@click.option("--instrument", help="The instrument; needed if the collection has several.")
@click.option(
    "-o", "--output", metavar="FILE", help="PNG file to write; VISIT.png or VISIT-DETECTOR.png by default."
)
def show(
    repo: str,
    collection: str,
    visit: int | None,
    detector: int | None,
    instrument: str | None,
    output: str | None,
    form: str,
) -> None:
    """Draw a visit of process_ccd, or a detector with its sources.

    COLLECTION is an output of process_ccd.

    \b
    Examples:
      spark-butler show s3-repo u/me/first
      spark-butler show s3-repo u/me/first --visit 42 --detector 3 -o detector.png
    """
    try:
        from ..products.pictures import draw_detector, draw_focal_plane
    except ModuleNotFoundError as exc:
        raise UserError("Pictures need matplotlib: `pip install matplotlib`.") from exc
    check_name("COLLECTION", collection)
    check_repository(repo)
    given = {"instrument": instrument, "visit": visit, "detector": detector}
    where = " AND ".join(f"{name} = {value!r}" for name, value in given.items() if value is not None)
    with Butler.from_config(repo, collections=collection, writeable=False) as butler:
        found = find_data_ids(butler, "visit_image", collections=(collection,), where=where).data_ids
        ids = sorted({(str(each["instrument"]), int(each["visit"])) for each in found})
        if len(ids) > 1:
            shown = ", ".join(f"{name} {number}" for name, number in ids[:_MOST_VISITS])
            raise OptionsError(
                f"{collection} has {len(ids)} visits; choose one by --visit (and --instrument): "
                f"{shown}{', ...' if len(ids) > _MOST_VISITS else ''}."
            )
        name, number = ids[0]
        file = output or f"{number}{'' if detector is None else f'-{detector}'}.png"
        try:
            if detector is None:
                draw_focal_plane(butler, file, instrument=name, visit=number)
            else:
                draw_detector(butler, file, instrument=name, visit=number, detector=detector)
        except LookupError as exc:
            raise RepositoryError(f"{collection} lacks what a picture needs: {exc.args[0]}") from exc
        except OSError as exc:
            raise UserError(f"Can't write {file}: {exc.strerror or exc}") from exc
    picture = {"instrument": name, "visit": number, "detector": detector, "file": file}
    print_result(form, picture, f"The picture is in {file}.")


@click.command(cls=LeafCommand)
@click.argument("repo")
@click.argument("collection")
@click.option("--csv", metavar="FILE", help="File to write as CSV; can be a URI.")
@click.option("--parquet", metavar="FILE", help="File to write as Parquet; can be a URI.")
@click.option("--votable", metavar="FILE", help="File to write as VOTable, which TOPCAT opens; can be a URI.")
@click.option("--where", default="", help="Expression that selects images, as in 'pipetask -d'.")
@click.option("--dataset-type", default="source", show_default=True, help="Dataset type of the tables.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
def catalog(
    repo: str, collection: str, where: str, dataset_type: str, overwrite: bool, form: str, **files: str | None
) -> None:
    """Write the sources of all images of a run as one table.

    COLLECTION is an output of process_ccd.

    \b
    Examples:
      spark-butler catalog s3-repo u/me/first --csv sources.csv
      spark-butler catalog s3-repo u/me/first --where "visit = 42" --parquet s.parquet --votable s.vot
    """
    chosen = {name: file for name, file in files.items() if file is not None}
    if not chosen:
        raise OptionsError(
            f"No file was given; give {', '.join(f'--{name} FILE' for name in FORMATS)}, or several."
        )
    check_repository(repo)
    with Butler.from_config(repo, writeable=False) as butler:
        table = read_catalog(butler, collection, where=where, dataset_type=dataset_type)
    for name, file in chosen.items():
        write_catalog(table, file, name, overwrite=overwrite)
    written = {"rows": len(table), "columns": table.colnames, "files": list(chosen.values())}
    text = f"{format_count(len(table), 'source')} are in {' and '.join(chosen.values())}."
    print_result(form, written, text)


@click.command(cls=LeafCommand)
@click.argument("repo")
@click.argument("collection")
@click.option(
    "--where", default="", help="Expression that selects visits and detectors, as in 'pipetask -d'."
)
@click.option(
    "-o", "--output", metavar="FILE", default="science.html", show_default=True, help="File to write."
)
def science(repo: str, collection: str, where: str, output: str, form: str) -> None:
    """Write a page about the science of a run of process_ccd.

    The page has the focal plane of each visit, PSF, astrometry, photometry and flags. COLLECTION is an
    output of process_ccd.

    \b
    Examples:
      spark-butler science s3-repo u/me/first
      spark-butler science s3-repo u/me/first --where "visit > 42" -o page.html
    """
    try:
        from ..products.science_page import make_science_page
    except ModuleNotFoundError as exc:
        raise UserError("Pictures need matplotlib: `pip install matplotlib`.") from exc
    check_name("COLLECTION", collection)
    check_repository(repo)
    with Butler.from_config(repo, writeable=False) as butler:
        page = make_science_page(butler, collection, where=where)
    with translate_errors(UserError, f"Can't write {output}"):
        write_at_once(ResourcePath(output, forceAbsolute=False, forceDirectory=False), page.encode())
    print_result(form, {"file": output}, f"The page is in {output}.")
