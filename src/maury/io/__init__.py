"""Files, and what works on them: never half written, never trusted, never in the way.

Files appear whole or not at all, behind locks (`files`); documents, tables, tensors and compressed
streams of strangers are opened within stated limits (`limits`, `config_files`, `opening`, `tables`,
`tensors`); old formats are carried on (`migrations`). Processes of this machine (`workers`) and of
a Dask cluster (`cluster`) do the work of the packages above. Nothing here knows a star.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
