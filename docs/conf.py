"""Settings of the documentation, for ``make docs``."""

from __future__ import annotations

from typing import Any

project = "spark-butler"
author = "The spark-butler authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/index"
# Notebooks are shown as they are; make test-notebooks executes them.
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
html_title = project
html_show_copyright = False

_CONTENTS = {
    "Begin here": """../README
why
your-own-file
notebooks/first_look
notebooks/process_ccd
your-own-task
vocabulary""",
    "Using it": """notebook
cameras
process_ccd
temporaries
codecs
provenance
command
api""",
    "Operating it": """clusters
../conf/standalone/README
../conf/kubernetes/README
../conf/emr/README
../conf/dataproc/README
operations
watching
reliability
performance
scaling""",
}


def _add_contents(app: Any, name: str, source: list[str]) -> None:
    """Give the first page the contents that are shown beside each page."""
    if name == root_doc:
        for caption, pages in _CONTENTS.items():
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"


def setup(app: Any) -> None:
    """Tell Sphinx of it."""
    app.connect("source-read", _add_contents)
