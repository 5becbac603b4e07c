"""Files, and what works on them: never half written, never trusted, never in the way.

Files appear whole or not at all, behind locks (`files`). Files of strangers are opened within
stated limits (`limits`): tables of FITS, VOTable, CSV and Parquet (`tables`), TOML and JSON
(`config_files`), tensors (`tensors`), units as surveys spell them (`units`). Old formats are read
(`migrations`). Long work is divided among processes of this machine (`workers`) or of a Dask
cluster (`cluster`): chunks of an ingest, members of an ensemble, parts of a catalogue. Nothing here
knows a star.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
