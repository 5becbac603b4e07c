"""Files, and what works on them: written whole or not at all, read within stated limits.

Files appear at once, behind locks (`files`); what strangers made is opened within `limits`: tables
of FITS, VOTable, CSV and Parquet (`tables`, which gives a `source_table`), TOML and JSON
(`config_files`), tensors (`tensors`), packed streams (`opening`), arrays in cells of text
(`array_csv`), and places behind an address such as s3:// (`addresses`). `units` reads units as
surveys spell them, `migrations` reads old formats. Here, too, is what divides long work among
processes of this machine (`workers`) or of a Dask cluster (`cluster`); the packages above hand them
the chunks of an ingest, the members of an ensemble, the parts of a catalogue.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
