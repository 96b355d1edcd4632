"""Settings of the documentation for ``make docs``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spark_butler import __version__

project = "spark-butler"
version = release = __version__
author = "The spark-butler authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/index"
# Notebooks are shown with their stored outputs; make test-notebooks executes them.
nb_execution_mode = "off"
myst_heading_anchors = 4
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True}
napoleon_google_docstring = False
# The docstrings name what is returned, not its type.
napoleon_use_rtype = False
html_theme = "furo"
html_title = f"{project} {__version__}"
html_show_copyright = False

CONTENTS = {
    "Get started": [
        "../README",
        "why",
        "your-own-file",
        "your-own-task",
        "notebooks/first_look",
        "notebooks/process_ccd",
    ],
    "How-to": [
        "command-line",
        "notebook",
        "temporaries",
        "cameras",
        "calibrations",
        "watching",
        "metrics",
        "provenance",
        "submit",
        "bps",
        "without-registry",
        "input-repository",
        "clusters",
        "../conf/standalone/README",
        "../conf/kubernetes/README",
        "../conf/emr/README",
        "../conf/dataproc/README",
        "../conf/airflow/README",
        "rubin-pipelines",
        "stores",
        "security",
        "operations",
    ],
    "Reference": [
        "vocabulary",
        "pipetask-options",
        "process_ccd",
        "codecs",
        "reliability",
        "performance",
        "scaling",
        "performance-benchmark",
        "temporaries-benchmark",
        "scaling-benchmark",
        "chaos-benchmark",
        "accuracy-benchmark",
        "command",
        "api",
    ],
    "Development": ["architecture", "adr/index", "../CONTRIBUTING"],
}
"""Pages shown beside each page, by caption."""


def _toctree(pages: list[str], options: str = "") -> str:
    return "\n```{toctree}\n:hidden:\n" + options + "\n" + "\n".join(pages) + "\n```\n"


def _add_contents(app: Any, name: str, source: list[str]) -> None:
    """Add the tables of contents, which would show as code on other sites."""
    if name == root_doc:
        for caption, pages in CONTENTS.items():
            source[0] += _toctree(pages, f":caption: {caption}\n")
    elif name == "docs/adr/index":
        records = sorted(path.stem for path in (Path(__file__).parent / "adr").glob("[0-9]*.md"))
        source[0] += _toctree(records)


def setup(app: Any) -> None:
    """Register the hook."""
    app.connect("source-read", _add_contents)
