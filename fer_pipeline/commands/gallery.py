"""Look at mined faces in a browser and judge them: `mined gallery` writes a static site, `mined view` serves it.

What is judged there is kept in the browser until it is downloaded, or posted to `mined view`, which merges it into
`data/review.csv`.
"""

from functools import partial
from pathlib import Path

from fer_pipeline.artifacts.mined import read_summary
from fer_pipeline.artifacts.review import read_review
from fer_pipeline.commands.mined import NOT_RECORDED, name_seed
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import REVIEW, Summary
from fer_pipeline.inspection import tables
from fer_pipeline.inspection.revisions import open_revision
