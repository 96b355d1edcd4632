"""Commands that run detached from the terminal that has submitted them, one after another.

`job.DetachedJob` keeps everything in a folder: ``job.json`` holds the steps, ``state.json`` what became of
them, and ``NAME.log`` what each has printed.  ``python -m spark_butler.detached FOLDER`` runs the steps.
"""

__all__: list[str] = []
