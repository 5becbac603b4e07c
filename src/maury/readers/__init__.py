"""Files of the world to survey stores.

`ingest_released` reads the layout in which the RAVE CNN authors released their data;
`ingest_toml` reads nearly anything else, as a short TOML file describes it; `open_toml` opens the
same without making a store.
"""

from maury.readers.direct import FileSurvey
from maury.readers.general import ingest_toml, open_toml
from maury.readers.released import ingest_released
from maury.readers.stars import star_ids

__all__ = ["FileSurvey", "ingest_released", "ingest_toml", "open_toml", "star_ids"]
