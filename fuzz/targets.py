"""What is fuzzed: each target makes small seeds, and feeds bytes to one door of the package."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

N_STAR, N_PIXEL = 3, 6
WAVE = 8420.0 + 0.4 * np.arange(N_PIXEL)
FLUX = (1 - 0.1 * np.arange(N_STAR * N_PIXEL).reshape(N_STAR, N_PIXEL) / 20).astype("f4")
IDS = np.array(["a1", "b2", "c3"])
GRID = '[wavelength]\nmedium = "air"\nstart = 8420.0\nstep = 0.4\n'


@dataclass(frozen=True)
class Target:
    """One door.

    Attributes
    ----------
    make : callable
        ``make(folder)`` prepares a folder and returns the function that takes bytes.
    seeds : callable
        ``seeds(folder)`` returns inputs that are right or nearly so.
    words : sequence of bytes
        What a mutation may put in.
    apart : bool
        Whether the package reads such files in a process of its own, which may die.
    """

    make: Callable[[Path], Callable[[bytes], None]]
    seeds: Callable[[Path], list[bytes]]
    words: Sequence[bytes] = ()
    apart: bool = False


def _consume(survey: Any) -> None:
    with survey:
        survey.batch(0, min(len(survey), 2))


def _spectra(name: str, text: str) -> Callable[[Path], Callable[[bytes], None]]:
    """Spectra in a file `name`, which the TOML `text` describes."""

    def make(folder: Path) -> Callable[[bytes], None]:
        from maury.survey.readers import open_toml

        config = folder / "survey.toml"
        config.write_text(text)
        file = folder / name
        file.parent.mkdir(exist_ok=True)

        def run(data: bytes) -> None:
            file.write_bytes(data)
            _consume(open_toml(config))

        return run

    return make


def _table(suffix: str) -> Callable[[Path], Callable[[bytes], None]]:
    def make(folder: Path) -> Callable[[bytes], None]:
        from contextlib import ExitStack

        from maury.errors import MauryError
        from maury.io.tables import open_table

        file = folder / f"table{suffix}"

        def run(data: bytes) -> None:
            file.write_bytes(data)
            with ExitStack() as stack:
                table = open_table(file, stack)
                for name in table.names[:4]:
                    for read in (table.floats, table.texts):
                        try:
                            read(name)
                        except MauryError:
                            continue

        return run

    return make


def _written(folder: Path, name: str, write: Callable[[Path], Any]) -> bytes:
    file = folder / name
    file.unlink(missing_ok=True)
    write(file)
    return file.read_bytes()


def _astropy_table() -> Any:
    from astropy.table import Table

    table = Table({"id": IDS, "flux": FLUX, "teff": [5000.0, np.nan, 4000.0], "n": [1, 2, 3]})
    table["teff"].unit = "K"
    return table


def _fits_images(folder: Path) -> list[bytes]:
    from astropy.io import fits

    plain = fits.PrimaryHDU(FLUX)
    plain.header.update({"CRVAL1": 8420.0, "CDELT1": 0.4, "CTYPE1": "AWAV", "SIMULATE": True})
    noisy = fits.HDUList([fits.PrimaryHDU(FLUX), fits.ImageHDU(FLUX, name="ERR")])
    tiled = fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(FLUX, compression_type="GZIP_1")])
    seeds = [_written(folder, "seed.fits", made.writeto) for made in (plain, noisy, tiled)]
    return [*seeds, _written(folder, "seed.fits.gz", plain.writeto)]


def _fits_tables(folder: Path) -> list[bytes]:
    from astropy.io import fits

    columns = [
        fits.Column("id", "2A", array=IDS),
        fits.Column("flux", "PE()", array=np.array([*FLUX, None], dtype=object)[:-1]),
        fits.Column("n", "J", array=[1, 2, 3], null=2),
    ]
    variable = fits.BinTableHDU.from_columns(columns)
    return [
        _written(folder, "seed.fits", lambda p: _astropy_table().write(p, format="fits")),
        _written(folder, "seed.fits", variable.writeto),
    ]


def _votables(folder: Path) -> list[bytes]:
    def write(kind: str) -> bytes:
        return _written(
            folder,
            "seed.vot",
            lambda p: _astropy_table().write(p, format="votable", tabledata_format=kind),
        )

    return [write(kind) for kind in ("tabledata", "binary", "binary2")]


def _write_parquet(table: Any, how: str, path: Path) -> None:
    from pyarrow import parquet

    parquet.write_table(table, path, compression=how)


def _parquets(folder: Path) -> list[bytes]:
    import pyarrow as pa

    columns = {"id": IDS, "flux": list(FLUX), "teff": [5000.0, None, 4000.0]}
    table = pa.table(columns)
    fixed = pa.table(
        {**columns, "flux": pa.array([r.tolist() for r in FLUX], pa.list_(pa.float32(), N_PIXEL))}
    )
    return [
        _written(folder, "seed.parquet", partial(_write_parquet, made, how))
        for made in (table, fixed)
        for how in ("none", "snappy")
    ]


def _npz(folder: Path) -> list[bytes]:
    del folder
    plain, packed = io.BytesIO(), io.BytesIO()
    np.savez(plain, flux=FLUX, id=IDS)
    np.savez_compressed(packed, flux=FLUX, id=IDS)
    return [plain.getvalue(), packed.getvalue()]


def _npy(folder: Path) -> list[bytes]:
    del folder
    out = io.BytesIO()
    np.save(out, FLUX)
    return [out.getvalue()]


def _published(reader: str, name: str) -> Callable[[Path], Callable[[bytes], None]]:
    return _spectra(f"in/{name}", f'[spectra]\nfolder = "in"\nreader = "{reader}"\n')


def _by_tests(module: str, write: Callable[[Any, Path], Any]) -> Callable[[Path], list[bytes]]:
    """Seeds that the tests of a reader write, as simulated files of that format."""

    def seeds(folder: Path) -> list[bytes]:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
        place = folder / "written"
        place.mkdir()
        write(importlib.import_module(module), place)
        return [
            min((p for p in place.rglob("*") if p.is_file()), key=lambda p: p.name).read_bytes()
        ]

    return seeds


_A, _B = "survey.test_readers_archives_1", "survey.test_readers_archives_2"
PUBLISHED: dict[str, tuple[str, Callable[[Path], list[bytes]]]] = {
    "rave-dr6": (
        "RAVE_20030411_0001m00_001.fits",
        _by_tests(_A, lambda m, p: m.write_rave(p, "20030411_0001m00_001", 1)),
    ),
    "apstar": (
        "apStar-dr17-2M00000000.fits",
        _by_tests(_A, lambda m, p: m.write_apstar(p, "2M00000000", 1)),
    ),
    "mwmstar-boss": (
        "mwmStar-0.6.0-7.fits",
        _by_tests(
            _A,
            lambda m, p: m.write_mwmstar(p, 7, boss=[(*m.spectrum(m.BOSS, 3, level=12.0), 30.0)]),
        ),
    ),
    "galah-ccd3": (
        "1401280023010013.fits",
        _by_tests(_A, lambda m, p: m.write_galah(p, 140128002301001, 3, 1, release=4)),
    ),
    "lamost-lrs": (
        "spec-55862-B6212_sp01-001.fits",
        _by_tests(_A, lambda m, p: m.write_lrs(p, 101001, 1, layout="table")),
    ),
    "gaia-rvs": ("RVS_RAW.csv", _by_tests(_B, lambda m, p: m.write_csv_raw(p))),
}


CONFIG = """simulated = false
[spectra]
file = "s.npz"
ivar = "ivar"
id = "id"
[wavelength]
medium = "vacuum"
start = 8420.0
step = 0.4
unit = "nm"
[[table]]
file = "t.csv"
id = "id"
[columns]
teff = "Teff"
logg = { name = "logg", table = "t.csv", missing = [-9999, -1] }
[[label]]
name = "ca_fe"
symbol = "[Ca/Fe]"
unit = "dex"
description = "Calcium"
range = [-0.4, 0.6]
"""

SETTINGS = """[network]
preset = "guiglion2020"
kernel = 10
filters = [8, 4, 2]
[training]
batch_size = 16
[preparation]
[split]
rule = "star"
[ensemble]
members = 2
labels = ["teff", "logg"]
"""


def _document(read: Callable[[Path], Any]) -> Callable[[Path], Callable[[bytes], None]]:
    def make(folder: Path) -> Callable[[bytes], None]:
        file = folder / "document.toml"

        def run(data: bytes) -> None:
            file.write_bytes(data)
            read(file)

        return run

    return make


def _ingest_config(file: Path) -> None:
    from maury.survey.readers.config import load_config

    load_config(file)


def _ingest_whole(file: Path) -> None:
    from maury.survey.readers import open_toml

    here = file.with_name("s.npz")
    if not here.exists():
        np.savez(here, flux=FLUX, ivar=FLUX, id=IDS)
        file.with_name("t.csv").write_text("id,Teff,logg\na1,5000,4\nb2,4000,2\nc3,,\n")
    _consume(open_toml(file))


def _settings(file: Path) -> None:
    from maury.training.settings import EnsembleConfig

    EnsembleConfig.read(file)


def _labels(file: Path) -> None:
    from maury.labels.definitions import load

    load(file)


def _recipe(file: Path) -> None:
    from maury.training.comparison import COMPETITORS, _chosen

    _chosen(sorted(COMPETITORS)[:2], file)


def _model(folder: Path) -> Any:
    from maury.labels.definitions import select
    from maury.model.directory import Affine, Member, Model, Scaling
    from maury.model.split import SplitRecord, split_stars
    from maury.spectra.preparation import Preparation

    stars = [f"star {k}" for k in range(9)]
    rng = np.random.default_rng(1)
    weights = {"a.weight": np.ones((2, 3), "f4"), "a.bias": np.zeros(2, "f4")}
    model = Model(
        labels=select(["teff", "logg"]),
        network={"name": "guiglion2020", "kernel": 3},
        preparation=Preparation(),
        scaling=Scaling(
            Affine.measure(rng.normal(size=(20, 9))), Affine.measure(rng.normal(size=(20, 2)))
        ),
        wave_aa=WAVE,
        medium="air",
        tensors={name: array.shape for name, array in weights.items()},
        members=(Member.numbered(0, seed=5, validation_loss=0.1),),
        split=SplitRecord.of(split_stars(stars, fractions=(0.8, 0.1, 0.1), seed=0), stars),
        simulated=True,
        seed=7,
    ).with_arrays("notes", {"scale": np.ones(3)}, metadata={"unit": "dex"})
    return model.save(folder / "model", weights=[weights], overwrite=True)


def _make_model(folder: Path) -> Callable[[bytes], None]:
    from maury.model.directory import Model

    path = _model(folder).path
    file = path / "model.json"
    for sums in path.glob("*SUMS*"):
        sums.unlink()

    def run(data: bytes) -> None:
        file.write_bytes(data)
        Model.open(path)

    return run


def _model_seeds(folder: Path) -> list[bytes]:
    return [(_model(folder).path / "model.json").read_bytes()]


def _make_tensors(folder: Path) -> Callable[[bytes], None]:
    from maury.io.tensors import read_tensor_file

    file = folder / "t.safetensors"
    shapes = {"a.weight": (2, 3), "a.bias": (2,)}

    def run(data: bytes) -> None:
        file.write_bytes(data[1:])
        digest = hashlib.sha256(data[1:]).hexdigest()
        read_tensor_file(file, sha256=digest, shapes=shapes if data[:1] < b"\x80" else None)

    return run


def _tensor_seeds(folder: Path) -> list[bytes]:
    from safetensors.numpy import save

    del folder
    data = save({"a.weight": np.ones((2, 3), "f4"), "a.bias": np.zeros(2, "f4")})
    return [b"\0" + data, b"\xff" + data]


def _survey(folder: Path) -> Path:
    from maury.survey.store import SurveyWriter

    path = folder / "s.zarr"
    shutil.rmtree(path, ignore_errors=True)
    with SurveyWriter(
        path,
        n_star=N_STAR,
        wave_aa=WAVE,
        medium="air",
        columns=["teff", "snr"],
        simulated=True,
        overwrite=True,
    ) as writer:
        writer.write(
            0, FLUX, np.ones_like(FLUX), id=IDS, star_id=IDS, teff=np.ones(3), snr=np.ones(3)
        )
    return path


STORE_FILES = (
    "zarr.json",
    "flux/zarr.json",
    "flux/c/0/0",
    "id/zarr.json",
    "id/c/0",
    "wave/zarr.json",
    "wave/c/0",
)


def _make_store(folder: Path) -> Callable[[bytes], None]:
    from maury.survey.store import Survey

    path = _survey(folder)
    kept = {name: (path / name).read_bytes() for name in STORE_FILES}
    for manifest in path.glob("manifest"):
        shutil.rmtree(manifest)

    def run(data: bytes) -> None:
        if not data:
            return
        name = STORE_FILES[data[0] % len(STORE_FILES)]
        (path / name).write_bytes(data[1:])
        try:
            survey = Survey.open(path)
            if survey.n_star < 10_000:
                survey.column("id")
                survey.batch(0, 2)
                repr([survey, survey.label_definitions])
        finally:
            (path / name).write_bytes(kept[name])

    return run


def _store_seeds(folder: Path) -> list[bytes]:
    path = _survey(folder)
    return [bytes([k]) + (path / name).read_bytes() for k, name in enumerate(STORE_FILES)]


def _make_keras(folder: Path) -> Callable[[bytes], None]:
    from maury.model.keras import read_here

    file = folder / "network.h5"

    def run(data: bytes) -> None:
        file.write_bytes(data)
        read_here(file)

    return run


def keras_graph() -> dict[str, Any]:
    """Return layers as those of the released networks."""

    def layer(kind: str, name: str, parents: Sequence[str] = (), **config: Any) -> dict[str, Any]:
        nodes = [[[parent, 0, 0, {}] for parent in parents]] if parents else []
        return {"class_name": kind, "name": name, "config": config, "inbound_nodes": nodes}

    layers = [layer("InputLayer", "a", batch_input_shape=[None, 912, 1])]
    last = "a"
    for k, n in enumerate((8, 4, 2)):
        layers += [
            layer("Conv1D", f"c{k}", [last], filters=n, kernel_size=[10]),
            layer("LeakyReLU", f"l{k}", [f"c{k}"], alpha=0.3),
        ]
        last = f"l{k}"
    layers += [
        layer("InputLayer", "b", batch_input_shape=[None, 9, 1]),
        layer("Flatten", "fa", [last]),
        layer("Flatten", "fb", ["b"]),
        layer("Dense", "d0", ["fa"], units=32),
        layer("Dense", "d1", ["fb"], units=27),
        layer("LeakyReLU", "la", ["d0"], alpha=0.3),
        layer("LeakyReLU", "lb", ["d1"], alpha=0.3),
        layer("Concatenate", "join", ["la", "lb"], axis=-1),
        layer("Dense", "d2", ["join"], units=16),
        layer("LeakyReLU", "ld", ["d2"], alpha=0.3),
        layer("Dense", "d3", ["ld"], units=9),
    ]
    inputs = [["a", 0, 0], ["b", 0, 0]]
    return {"layers": layers, "input_layers": inputs, "output_layers": [["d3", 0, 0]]}


KERNELS = {
    "c0": (10, 1, 8),
    "c1": (10, 8, 4),
    "c2": (10, 4, 2),
    "d1": (9, 27),
    "d2": (59, 16),
    "d3": (16, 9),
}


def _keras_seeds(folder: Path) -> list[bytes]:
    import h5py

    def write(path: Path, chunked: bool = False) -> None:
        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = json.dumps({"config": keras_graph()})
            for name, shape in KERNELS.items():
                group = file.create_group(f"model_weights/{name}/{name}")
                options = {"compression": "gzip"} if chunked else {}
                group.create_dataset("kernel:0", data=np.zeros(shape, "f4"), **options)
                group["bias:0"] = np.zeros(shape[-1], "f4")

    return [
        _written(folder, "seed.h5", write),
        _written(folder, "seed.h5", lambda path: write(path, chunked=True)),
    ]


FERRE = b"""&SYNTH
 MULTI = 0
 N_OF_DIM = 2
 N_P = 2 2
 LABEL(1) = 'teff'
 LABEL(2) = 'logg'
 LLIMITS = 4000 1
 STEPS = 1000 2
 NPIX = 8
 WAVE = 8419.0 0.5
 LOGW = 0
 VACUUM = 0
 RESOLUTION = 10000
/
1 1 1 .9 1 1 1 1
1 1 1 .8 1 1 1 1
1 1 1 .7 1 1 1 1
1 1 1 .6 1 1 1 1
"""


def _make_ferre(folder: Path) -> Callable[[bytes], None]:
    from maury.methods.fitting.grid_files import read_ferre_grid

    file = folder / "f.dat"

    def run(data: bytes) -> None:
        file.write_bytes(data)
        read_ferre_grid(file, wave_aa=WAVE, resolving_power=7500.0)

    return run


INDEX = b"""file,teff,logg
a.txt,4000,1
b.txt,4000,2
c.txt,5000,1
d.txt,5000,2
"""


def _make_synspec(folder: Path) -> Callable[[bytes], None]:
    from maury.methods.fitting.grid_files import read_synspec_grid

    fine = np.column_stack([8418.0 + 0.3 * np.arange(20), np.ones(20)])
    for name in "abcd":
        np.savetxt(folder / f"{name}.txt", fine)
    index, spectrum = folder / "index.csv", folder / "a.txt"
    right = spectrum.read_bytes()

    def run(data: bytes) -> None:
        first = data[:1] < b"\x80"
        index.write_bytes(data[1:] if first else INDEX)
        spectrum.write_bytes(right if first else data[1:])
        read_synspec_grid(folder, wave_aa=WAVE)

    return run


class Wire:
    """A socket that holds one request and takes the answer."""

    def __init__(self, data: bytes) -> None:
        self._in = io.BytesIO(data)
        self.out = bytearray()

    def makefile(self, mode: str = "rb", *_: Any, **__: Any) -> Any:
        return io.BytesIO() if "r" in mode else io.BufferedWriter(_Sink(self.out))

    def recv_into(self, buffer: Any) -> int:
        return self._in.readinto(buffer)

    def sendall(self, data: bytes) -> None:
        self.out += data

    def settimeout(self, seconds: float | None) -> None:
        del seconds

    def setsockopt(self, *_: Any) -> None: ...

    def shutdown(self, how: int) -> None: ...

    def close(self) -> None: ...


class _Sink(io.RawIOBase):
    def __init__(self, out: bytearray) -> None:
        self._out = out

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._out += bytes(data)
        return len(data)


KEY = "key-of-the-fuzzed-explorer-1234567890"


def _make_http(folder: Path) -> Callable[[bytes], None]:
    from astropy.table import Table

    from maury.prediction.catalogue import Catalogue
    from maury.report.explorer import samp
    from maury.report.explorer import server as module

    rng = np.random.default_rng(2)
    table = Table({"id": np.array([f"s{k}" for k in range(12)]), "teff": rng.normal(5000, 9, 12)})
    table["teff_error"] = np.ones(12)
    table["flags"] = np.zeros(12, np.int32)
    explorer = module.Explorer(Catalogue(table, {"simulated": True}), name="stars.fits")
    explorer.close()
    explorer.folder.mkdir(exist_ok=True)
    # What was packed for the first view went with the folder.
    explorer.content._packed.clear()
    explorer.key = KEY
    # Whether a hub runs is asked of a file of the user.
    samp.hub_runs = lambda: False
    server = explorer._server
    port = server.server_address[1]
    cookie = f"Cookie: maury-{port}={KEY}".encode()

    def others() -> list[str]:
        # Packed columns are kept, one file each.
        return sorted(n for n in os.listdir(explorer.folder) if not n.startswith("column-"))

    def run(data: bytes) -> None:
        before = others()
        knows = KEY.encode() in data
        wire = Wire(data.replace(b"\x01K", cookie))
        module._Handler(wire, ("127.0.0.1", 1), server)
        answer = bytes(wire.out)
        assert b"Traceback" not in answer, "a traceback was sent"
        # A request that knows the key is told it again as a cookie.
        assert knows or b"\x01K" in data or KEY.encode() not in answer, "the key was given away"
        assert not answer or answer.startswith(b"HTTP/1.") or b"error" in answer[:40], answer[:60]
        assert b" 500 " not in answer[:16], "the server failed"
        assert others() == before, "files were left"

    return run


def _http_seeds(folder: Path) -> list[bytes]:
    del folder
    head = b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\x01K\r\n"
    paths = [
        "/",
        "/static/main.js",
        "/api/about",
        "/api/column/teff",
        "/api/column/flags",
        "/api/find?id=s3",
        "/api/star/3",
        "/api/spectrum/1",
        "/api/sensitivity/1",
        "/api/samp",
        "/?key=guess",
        "/static/../server.py",
    ]
    gets = [b"GET " + path.encode() + head + b"\r\n" for path in paths]
    posts = [
        b"POST /api/download?format=" + kind + head + b"Content-Length: 2\r\n\r\n\x05\x02"
        for kind in (b"fits", b"parquet", b"votable")
    ]
    return [*gets, *posts, b"HEAD /api/about" + head + b"Connection: close\r\n\r\n"]


def _make_catalogue(suffix: str) -> Callable[[Path], Callable[[bytes], None]]:
    def make(folder: Path) -> Callable[[bytes], None]:
        from maury.prediction.catalogue import Catalogue

        file = folder / f"catalogue{suffix}"

        def run(data: bytes) -> None:
            file.write_bytes(data)
            catalogue = Catalogue.read(file)
            repr([str(catalogue), len(catalogue), catalogue.simulated])

        return run

    return make


def _catalogue_seeds(suffix: str) -> Callable[[Path], list[bytes]]:
    def seeds(folder: Path) -> list[bytes]:
        from maury.labels.definitions import select
        from maury.prediction.catalogue import CatalogueSpec, assemble, write_part

        labels = select(["teff"])
        spec = CatalogueSpec.for_labels(labels, survey_columns=[], metadata={"simulated": True})
        kinds = {"str": IDS, "bool": np.ones(3, bool), "int32": np.zeros(3, np.int32)}
        rows = {c.name: kinds.get(c.kind, np.ones(3)) for c in spec.columns}
        write_part(folder / "part.parquet", spec, rows)
        out = folder / f"seed{suffix}"
        assemble([folder / "part.parquet"], out, spec=spec, overwrite=True)
        return [out.read_bytes()]

    return seeds


CSV = [
    b"id,teff,logg\n001,5000,4.5\n002,NA,2\n003,4000,\n",
    b'"id","a b"\n"x,y",1e3\n"z""",-9999\n',
    b"\xef\xbb\xbfid,\xce\xb1\n1,2\n",
]
ECSV = [
    b"# %ECSV 1.0\n# ---\n# datatype:\n# - {name: id, datatype: string}\n"
    b"# - {name: teff, unit: K, datatype: float64}\n# schema: astropy-2.0\n"
    b'id teff\na1 5000.0\n"b 2" ""\n',
    b"# %ECSV 1.0\n# ---\n# datatype:\n# - {name: id, datatype: string, subtype: 'float64[2]'}\n"
    b"# meta: !!omap\n# - {a: 1}\n# schema: astropy-2.0\nid\n[1.0,2.0]\n",
]
ASCII = [b"# wave flux\n8420.0 1.0\n8420.4 0.9\n8420.8 0.95\n", b"w,f\n8420,1\n8421,2\n"]

FITS_WORDS = [
    *(
        b"NAXIS NAXIS1 NAXIS2 BITPIX PCOUNT GCOUNT TFIELDS TFORM1 TDIM1 TNULL1 TSCAL1 TZERO1 THEAP "
        b"EXTEND XTENSION BINTABLE IMAGE END SIMPLE GROUPS ZIMAGE ZNAXIS1 ZTILE1 ZCMPTYPE RICE_1 "
        b"HCOMPRESS_1 PLIO_1 GZIP_2 BSCALE BZERO BLANK CRVAL1 CDELT1 CTYPE1 CUNIT1 COEFF0 COEFF1 "
        b"DC-FLAG WAVE0 DWAVE CONTINUE HIERARCH"
    ).split(),
    b"= ",
    b"'",
    b"1E99",
    b"-1",
    b"999999999999",
    b"1PJ(9)",
    b"QD",
    b"NaN",
    b" / ",
]
TOML_WORDS = [
    b"[[table]]",
    b"[columns]",
    b"[spectra]",
    b"[wavelength]",
    b"resample = { start = 1, step = ",
    b"nan",
    b"inf",
    b"-inf",
    b"1e400",
    b"true",
    b'"../../x"',
    b'"/etc/passwd"',
    b"[[[[",
    b"'''",
    b'"""',
    b"folder = ",
    b"pattern = ",
    b"format = ",
    b"hdu = ",
    b"orientation = ",
    b"999999999999",
    b"\\u0000",
    b"1979-05-27",
    b"0x7f",
    b"a.b.c",
    b"log = true",
    b"values = ",
    b"n = ",
]
JSON_WORDS = [
    b"null",
    b"NaN",
    b"1e999",
    b"-1",
    b"99999999999999999999",
    b"[[",
    b"]]",
    b'{"',
    b'"',
    b"true",
    b"../",
    b'"file"',
    b'"tensors"',
    b'"shape"',
    b'"data_offsets"',
    b'"dtype"',
    b"F64",
    b"\\ud800",
]
HTTP_WORDS = [
    b"\r\n",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"HTTP/0.9",
    b"HTTP/9.9",
    b"Content-Length: ",
    b"Host: ",
    b"Transfer-Encoding: chunked",
    b"Origin: null",
    b"Sec-Fetch-Site: cross-site",
    b"Expect: 100-continue",
    b"%2e%2e/",
    b"/api/star/",
    b"/static/",
    b"POST ",
    b"GET ",
    b"PUT ",
    b"?key=",
    b"Cookie: ",
    b"http://[",
    b"\x01K",
    b"//",
    b"%00",
    b"Range: bytes=0-",
    b"Connection: keep-alive",
]
XML_WORDS = [
    b"<!DOCTYPE",
    b"<!ENTITY",
    b"<![CDATA[",
    b"]]>",
    b"<FIELD",
    b"<STREAM href='",
    b"arraysize='",
    b"datatype='",
    b"nrows='",
    b"<TABLEDATA>",
    b"<TR>",
    b"<TD>",
    b"BINARY2",
    b"encoding='base64'",
    b"&#x41;",
    b"*",
    b"99999999",
    b"<PARAM",
    b"<VALUES null='",
    b"double",
    b"char",
    b"bit",
]
NPY_WORDS = [b"\x93NUMPY", b"|O", b"<f8", b"'shape': (", b"'descr'", b"True", b"999999999", b",)"]


def _image_config(name: str) -> str:
    return f'[spectra]\nfile = "{name}"\norientation = "rows"\n' + GRID


def _column_config(name: str) -> str:
    return f'[spectra]\nfile = "{name}"\nid = "id"\n' + GRID + '[columns]\nteff = "teff"\n'


TARGETS: dict[str, Target] = {
    "fits_image": Target(_spectra("s.fits", _image_config("s.fits")), _fits_images, FITS_WORDS),
    "fits_table": Target(_spectra("s.fits", _column_config("s.fits")), _fits_tables, FITS_WORDS),
    "fits_columns": Target(_table(".fits"), _fits_tables, FITS_WORDS),
    "votable": Target(_table(".vot"), _votables, XML_WORDS),
    "csv": Target(_table(".csv"), lambda _: CSV, [b'"', b",", b"\r", b"NA", b"\0", b"1e400"]),
    "tsv": Target(_table(".tsv"), lambda _: [c.replace(b",", b"\t") for c in CSV], [b"\t", b'"']),
    "ecsv": Target(
        _table(".ecsv"), lambda _: ECSV, [b"!!python/object:", b"!numpy.ndarray", b"&a ", b"*a"]
    ),
    "parquet": Target(_spectra("s.parquet", _column_config("s.parquet")), _parquets),
    "npz": Target(
        _spectra("s.npz", _column_config("s.npz").split("[columns]")[0]), _npz, NPY_WORDS
    ),
    "npy": Target(_spectra("s.npy", _image_config("s.npy")), _npy, NPY_WORDS),
    "ascii": Target(
        _spectra("f/a.txt", '[spectra]\nfolder = "f"\n[wavelength]\nmedium = "air"\n'),
        lambda _: ASCII,
        [b"nan", b"inf", b"1e999", b"#", b",", b"\0"],
    ),
    "folder": Target(
        _spectra("f/a.fits", '[spectra]\nfolder = "f"\n' + GRID),
        lambda folder: [*_fits_images(folder)[:1], *_fits_tables(folder)],
        FITS_WORDS,
    ),
    "toml_ingest": Target(_document(_ingest_config), lambda _: [CONFIG.encode()], TOML_WORDS),
    "toml_whole": Target(_document(_ingest_whole), lambda _: [CONFIG.encode()], TOML_WORDS),
    "toml_settings": Target(_document(_settings), lambda _: [SETTINGS.encode()], TOML_WORDS),
    "toml_labels": Target(
        _document(_labels), lambda _: [CONFIG[CONFIG.index("[[label") :].encode()], TOML_WORDS
    ),
    "toml_recipe": Target(
        _document(_recipe),
        lambda _: [b"[maury.training.ensemble]\nmembers = 2\n[cannon.method]\n"],
        TOML_WORDS,
    ),
    "model_json": Target(_make_model, _model_seeds, JSON_WORDS),
    "tensors": Target(_make_tensors, _tensor_seeds, JSON_WORDS),
    "store": Target(_make_store, _store_seeds, JSON_WORDS),
    "keras": Target(_make_keras, _keras_seeds, JSON_WORDS, apart=True),
    "ferre": Target(_make_ferre, lambda _: [FERRE], [b"NPCA = 1", b"1e99", b"nan", b"-1", b"inf"]),
    "synspec": Target(
        _make_synspec,
        lambda _: [b"\0" + INDEX, b"\xff8418 1\n8425 1\n"],
        [b"../", b"/etc/passwd", b"nan", b"1e400", b"file"],
    ),
    "http": Target(_make_http, _http_seeds, HTTP_WORDS),
    "catalogue_fits": Target(_make_catalogue(".fits"), _catalogue_seeds(".fits"), FITS_WORDS),
    "catalogue_votable": Target(_make_catalogue(".vot"), _catalogue_seeds(".vot"), XML_WORDS),
    "catalogue_parquet": Target(
        _make_catalogue(".parquet"), _catalogue_seeds(".parquet"), JSON_WORDS
    ),
    "catalogue_ecsv": Target(_make_catalogue(".ecsv"), _catalogue_seeds(".ecsv"), JSON_WORDS),
}


TARGETS |= {
    f"reader_{reader.replace('-', '_')}": Target(_published(reader, name), seeds, FITS_WORDS)
    for reader, (name, seeds) in PUBLISHED.items()
}


def seeds_of(name: str, folder: Path) -> list[bytes]:
    """Return the seeds of a target, made in a folder of their own."""
    place = folder / "seeds"
    place.mkdir(exist_ok=True)
    return TARGETS[name].seeds(place)


def clean(folder: Path) -> None:
    """Remove a folder of a target."""
    shutil.rmtree(folder, ignore_errors=True)
