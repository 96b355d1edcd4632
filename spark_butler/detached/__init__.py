"""Detached jobs: commands that run one after another and continue when the terminal closes.

`job.DetachedJob` keeps everything in a folder: ``job.json`` has the steps, ``state.json`` their states, and
``NAME.log`` the output of each step.  ``python -m spark_butler.detached FOLDER`` runs the steps.
"""

__all__: list[str] = []
