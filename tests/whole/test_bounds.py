"""Numbers that a file sets are compared with limits before anything of that size is made.

All files are read by one process whose memory and CPU time the kernel limits: asking for more than
it may have is a fault, also where the package would turn that into a clear error.
"""

import base64
import io
import json
import re
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from pyarrow import parquet

from builders.bounded import ADDRESS_MIB, CPU_SECONDS, Outcome, read_bounded
from builders.untrained_model import untrained
from maury.survey.store import SurveyWriter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for limits")
GROWN_MIB = 700
"""Resident memory that a refusal may take beside what was there: `Limits.unfolded_bytes` and what
libraries take for themselves."""
Case = Callable[[Path], tuple[str, Path]]
CASES: dict[str, tuple[Case, str]] = {}
"""By name: what writes a file and says by whom it is read, and what the refusal says."""


def case(name: str, said: str) -> Callable[[Case], Case]:
    def keep(make: Case) -> Case:
        CASES[name] = (make, said)
        return make

    return keep


# FITS

CARDS = {
    "hierarch": ("TFIELDS", "HIERARCH TFIELDS = 999999999"),
    "hierarch without blanks": ("TFIELDS", "HIERARCH TFIELDS=999999999"),
    "small letters": ("TFIELDS", "tfields =            999999999"),
    "hierarch rows": ("NAXIS2", "HIERARCH NAXIS2 = 99999999999"),
    "hierarch heap": ("PCOUNT", "HIERARCH PCOUNT = 99999999999"),
    "columns": ("TFIELDS", "TFIELDS =            999999999"),
    "rows": ("NAXIS2", "NAXIS2  =          99999999999"),
    "heap": ("PCOUNT", "PCOUNT  =          99999999999"),
    "groups": ("GCOUNT", "GCOUNT  =          99999999999"),
}


def with_card(path: Path, key: str, card: str) -> None:
    raw = path.read_bytes()
    place = raw.rfind(f"{key:<8}=".encode())
    path.write_bytes(raw[:place] + card.ljust(80).encode() + raw[place + 80 :])


def _fits_table(folder: Path, key: str, card: str) -> tuple[str, Path]:
    columns = [fits.Column("id", "2A", array=["a", "b"]), fits.Column("x", "E", array=[1, 2])]
    fits.BinTableHDU.from_columns(columns).writeto(folder / "t.fits")
    with_card(folder / "t.fits", key, card)
    return "table", folder / "t.fits"


for _name, (_key, _card) in CARDS.items():
    CASES[f"fits: {_name}"] = (
        lambda folder, key=_key, card=_card: _fits_table(folder, key, card),
        "the header of HDU 1|columns",
    )
CASES["fits: format"] = (
    lambda folder: _fits_table(folder, "TFORM2", "TFORM2  = '999999999E'"),
    "cannot be read",
)


def spectra(folder: Path, name: str, more: str = "") -> tuple[str, Path]:
    (folder / "survey.toml").write_text(
        f'[spectra]\nfile = "{name}"\norientation = "rows"\n{more}'
        '[wavelength]\nmedium = "air"\nstart = 8420.0\nstep = 0.4\n'
    )
    return "spectra", folder / "survey.toml"


def _tiles(folder: Path, **cards: int) -> tuple[str, Path]:
    image = fits.CompImageHDU(np.ones((3, 8), "f4"), compression_type="GZIP_1")
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(folder / "s.fits")
    for key, value in cards.items():
        with_card(folder / "s.fits", key, f"{key:<8}= {value:>20}")
    return spectra(folder, "s.fits")


CASES["fits: rows of tiles"] = (lambda f: _tiles(f, ZNAXIS2=10**8), "tiles")
CASES["fits: pixels of tiles"] = (lambda f: _tiles(f, ZNAXIS1=10**9, ZTILE1=10**9), "would fill")
CASES["fits: long and wide tiles"] = (
    lambda f: _tiles(f, ZNAXIS1=10**6, ZNAXIS2=10**6, ZTILE1=10**6),
    "tiles",
)


# VOTable


def votable(field: str, data: str, *, table: str = "", before: str = "") -> str:
    return (
        f'<VOTABLE version="1.3">{before}<RESOURCE><TABLE{table}>{field}<DATA>{data}</DATA></TABLE>'
        "</RESOURCE></VOTABLE>"
    )


def field(datatype: str = "char", size: str = "*", more: str = "") -> str:
    return f'<FIELD name="id" datatype="{datatype}" arraysize="{size}" {more}/>'


def rows(count: int, row: str = "<TR><TD>1</TD></TR>") -> str:
    return f"<TABLEDATA>{row * count}</TABLEDATA>"


def stream(content: bytes, kind: str = "BINARY") -> str:
    text = base64.b64encode(content).decode()
    return f'<{kind}><STREAM encoding="base64">{text}</STREAM></{kind}>'


TEXTS = {
    "rows of texts": (votable(field(size="1000000"), rows(5000)), "unfolded_bytes"),
    "rows of wide characters": (votable(field("unicodeChar", "4000"), rows(40_000)), "unfolded"),
    "rows of bits": (votable(field("bit", "9000000"), rows(500)), "unfolded_bytes"),
    "empty rows": (
        votable("".join(field("double", "1") for _ in range(9000)), rows(20_000, "<TR/>")),
        "unfolded_bytes",
    ),
    "announced rows": (votable(field(), rows(1), table=' nrows="60000000"'), "unfolded_bytes"),
    "rows of no bytes": (votable(field(size="0"), stream(b"\0")), "no bytes"),
    "null rows of no bytes": (votable(field(size="0"), stream(bytes(2**20), "BINARY2")), "no byte"),
    "a length in the data": (
        votable(field(), stream(struct.pack(">i", 2**31 - 1) + b"a")),
        "no rows",
    ),
    "elements": (votable(field(), rows(1), before="<INFO/>" * 200_000), "elements"),
    "depth": ("<VOTABLE>" + "<RESOURCE>" * 10_000, "depth"),
    "an attribute": (votable(field(more=f'utype="{"a" * 10**7}"'), rows(1)), "head_bytes"),
    "a comment": (votable(field(), rows(1), before=f"<!--{'a' * 10**7}-->"), "head_bytes"),
    "no end": ('<VOTABLE><RESOURCE name="' + "a" * 10**7, "head_bytes"),
    "digits": (votable(field("double", "1", 'width="99999999"'), rows(1)), "digits"),
    "a unit": (votable(field("double", "1", 'unit="(10**99999)**99999 m"'), rows(1)), "unit"),
}


def _text(name: str, text: str) -> Case:
    def make(folder: Path) -> tuple[str, Path]:
        (folder / name).write_text(text)
        return "table", folder / name

    return make


for _name, (_content, _said) in TEXTS.items():
    CASES[f"votable: {_name}"] = (_text("t.vot", _content), _said)


# ECSV and CSV


def ecsv(more: str = "", data: str = "1\n", meta: str = "") -> str:
    return (
        f"# %ECSV 1.0\n# ---\n# datatype:\n# - {{name: id, datatype: string{more}}}\n{meta}"
        f"# schema: astropy-2.0\nid\n{data}"
    )


TEXTS = {
    "one long text": (ecsv(data="x" * 4000 + "\n" + "a\n" * 300_000), "unfolded_bytes"),
    "a shape": (ecsv(", subtype: 'float64[100000,100000]'", "[1]\n"), "unfolded_bytes"),
    "a unit": (ecsv(", unit: '10**999999999 m'"), "unit"),
    "a unit as object": (
        ecsv(meta="# meta: {a: !astropy.units.Unit {unit: 10**999999999 m}}\n"),
        "unit",
    ),
    "an array as object": (
        ecsv(meta="# meta: {a: !numpy.ndarray {buffer: !!binary aa, shape: [1000000000]}}\n"),
        "object",
    ),
}
for _name, (_content, _said) in TEXTS.items():
    CASES[f"ecsv: {_name}"] = (_text("t.ecsv", _content), _said)
CASES["csv: one long text"] = (
    _text("t.csv", "id\n" + "x" * 4000 + "\n" + "a\n" * 300_000),
    "unfolded_bytes",
)


# Parquet and NumPy


@case("parquet: one long text", "unfolded_bytes")
def _parquet_text(folder: Path) -> tuple[str, Path]:
    parquet.write_table(pa.table({"id": ["x" * 4000, *["a"] * 300_000]}), folder / "t.parquet")
    return "table", folder / "t.parquet"


def _npz(folder: Path, shape: tuple[int, ...], descr: str = "<f4") -> tuple[str, Path]:
    head = io.BytesIO()
    about = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, about)
    with zipfile.ZipFile(folder / "s.npz", "w") as archive:
        archive.writestr("flux.npy", head.getvalue() + bytes(100))
    return spectra(folder, "s.npz")


CASES["npz: a shape"] = (lambda folder: _npz(folder, (10**9, 10)), "promises")
CASES["npz: texts"] = (lambda folder: _npz(folder, (1000, 8), "<U100000000"), "promises")
CASES["npz: bytes"] = (lambda folder: _npz(folder, (10, 8), "|V1000000000"), "promises")


@case("npz: a grid", "grid_pixels")
def _npz_grid(folder: Path) -> tuple[str, Path]:
    np.savez_compressed(folder / "s.npz", flux=np.ones((20, 4 * 10**6), "i1"))
    return spectra(folder, "s.npz")


# Grids of theory

FERRE = "&SYNTH\n N_P = {}\n LLIMITS = 4000 1\n STEPS = 1000 2\n WAVE = 8419 {}\n NPIX = {}\n/\n"
for _name, _content in {
    "nodes": FERRE.format("30000 30000", 0.5, 8) + "1 1\n",
    "pixels": FERRE.format("2 2", 1e-12, 10**9) + "1 1 1 1 1 1 1 1\n" * 4,
    "axes": FERRE.format(" ".join(["2"] * 1000), 0.5, 8) + "1 1 1 1 1 1 1 1\n" * 4,
}.items():
    CASES[f"ferre: {_name}"] = (
        lambda folder, text=_content: ("grid", _text("g.dat", text)(folder)[1]),
        "",
    )


# Models


def _model(folder: Path, change: Callable[[dict], object]) -> tuple[str, Path]:
    path = untrained(folder, ["teff"]).path
    assert path is not None
    (path / "SHA256SUMS").unlink()
    document = json.loads((path / "model.json").read_text())
    change(document)
    (path / "model.json").write_text(json.dumps(document))
    return "model", path


WIDE = {"name": "maury", "stem": 8192, "width": 8192, "depth": 32}
CHANGES: dict[str, tuple[Callable[[dict], object], str]] = {
    "layers within the limits": (lambda d: d.update(network=WIDE), "do not fit"),
    "depth": (lambda d: d.update(network={"name": "maury", "depth": 10**9}), "layers"),
    "width": (lambda d: d.update(network={"name": "maury", "width": 10**9}), "units"),
    "rank": (lambda d: d.update(network={"name": "maury", "rank": 10**9}), "rank"),
    "a student": (lambda d: d.update(network={"name": "student", "stem": 10**9}), "units"),
    "passes": (lambda d: d.update(network={"name": "astronn", "mc_passes": 10**9}), "passes"),
    "filters": (lambda d: d.update(network={"name": "astronn", "filters": [1, 10**9]}), "filters"),
    "kernel": (lambda d: d.update(network={"name": "starnet", "kernel": 10**9}), "kernel"),
    "convolutions": (
        lambda d: d.update(network={"name": "guiglion2020", "filters": [1] * 10**5}),
        "layers",
    ),
    "pixels": (lambda d: d.update(wave_aa=[8000 + 1e-3 * k for k in range(200_000)]), "grid_pix"),
    "labels": (lambda d: d.update(labels=d["labels"] * 300), "labels"),
    "members": (lambda d: d.update(members=d["members"] * 2000), "members"),
    "steps": (
        lambda d: d["preparation"].update(steps=[{"step": "noise"}] * 200),
        "steps",
    ),
    "colours": (
        lambda d: d["preparation"].update(
            observables=[{"observable": "colours", "pairs": [["J", "H"]] * 20_000}]
        ),
        "observables",
    ),
    "a grid": (
        lambda d: d["preparation"].update(
            steps=[{"step": "resample", "grid": {"start_aa": 1, "step_aa": 1, "n_pixel": 10**9}}]
        ),
        "grid_pixels",
    ),
    "lags": (lambda d: d["preparation"].update(noise_correlation=[0.0] * 10**5), "lags"),
    "a tensor": (lambda d: d["tensors"].update({next(iter(d["tensors"])): [2**31] * 8}), "bytes"),
}
for _name, (_change, _said) in CHANGES.items():
    CASES[f"model: {_name}"] = (
        lambda folder, change=_change: _model(folder, change),
        _said,
    )


# Stores


def _store(folder: Path, n_star: int = 3, ids: list[str] | None = None) -> Path:
    wave, flux = 8420.0 + 0.4 * np.arange(8), np.ones((n_star, 8), "f4")
    names = ids or [f"s{k}" for k in range(n_star)]
    with SurveyWriter(
        folder / "s.zarr", n_star=n_star, wave_aa=wave, medium="air", simulated=True
    ) as writer:
        writer.write(0, flux, flux, id=names, star_id=names)
    (folder / "s.zarr" / "manifest" / "zarr.json").unlink()
    (folder / "s.zarr" / "manifest").rmdir()
    return folder / "s.zarr"


def _changed_store(folder: Path, name: str, **entries: object) -> tuple[str, Path]:
    file = _store(folder) / name / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    return "survey", folder / "s.zarr"


def _chunks(*shape: int) -> dict[str, object]:
    return {"name": "regular", "configuration": {"chunk_shape": list(shape)}}


@case("store: a text of three million characters", "text_characters")
def _long_id(folder: Path) -> tuple[str, Path]:
    # What the writer refuses was written by somebody else.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAURY_LIMITS", "text_characters=1e7")
        return "survey", _store(folder, 3, ["a", "b", "x" * 3_000_000])


@case("store: one text of four thousand characters", "unfolded_bytes")
def _padded_id(folder: Path) -> tuple[str, Path]:
    return "survey", _store(folder, 40_000, [*(f"s{k}" for k in range(39_999)), "x" * 4000])


@case("store: rows", "shape")
def _store_rows(folder: Path) -> tuple[str, Path]:
    _store(folder)
    for name, shape in {"id": [10**15], "star_id": [10**15], "flux": [10**15, 8]}.items():
        file = folder / "s.zarr" / name / "zarr.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"shape": shape}))
    return "survey", folder / "s.zarr"


@case("store: an index", "star")
def _store_index(folder: Path) -> tuple[str, Path]:
    store = _store(folder)
    (store / "star").mkdir()
    about = json.loads((store / "wave" / "zarr.json").read_text())
    about |= {"shape": [10**10], "dimension_names": ["star"], "chunk_grid": _chunks(1000)}
    (store / "star" / "zarr.json").write_text(json.dumps(about))
    return "survey", store


@case("store: sparse pixels", "grid_pixels|shape")
def _store_pixels(folder: Path) -> tuple[str, Path]:
    store = _store(folder)
    for name in ("flux", "ivar"):
        file = store / name / "zarr.json"
        about = json.loads(file.read_text())
        about |= {"shape": [3, 5_000_000], "chunk_grid": _chunks(3, 1_000_000)}
        file.write_text(json.dumps(about))
    return "survey", store


CASES["store: a type"] = (
    lambda folder: _changed_store(
        folder,
        "wave",
        data_type={"name": "fixed_length_utf32", "configuration": {"length_bytes": 4 * 10**12}},
    ),
    "",
)
CASES["store: chunks"] = (
    lambda folder: _changed_store(folder, "flux", chunk_grid=_chunks(10**9, 10**9)),
    "chunk",
)


@case("store: texts in a chunk", "promises")
def _store_texts(folder: Path) -> tuple[str, Path]:
    import numcodecs

    store = _store(folder)
    file = store / "id" / "zarr.json"
    about = json.loads(file.read_text())
    about["codecs"] = [c for c in about["codecs"] if c["name"] != "crc32c"]
    file.write_text(json.dumps(about))
    content = struct.pack("<I", 2**31 - 1) + bytes(100)
    (store / "id" / "c" / "0").write_bytes(numcodecs.zstd.compress(content, 1))
    return "survey", store


GOLDEN = Path(__file__).parents[1] / "golden" / "0.1.0" / "cannon.model"


Numbers = dict[str, object]


def _method(folder: Path, settings: Numbers, about: Numbers) -> tuple[str, Path]:
    """Return the golden model of The Cannon with other numbers in its document."""
    path = folder / "m.model"
    shutil.copytree(GOLDEN, path)
    (path / "SHA256SUMS").unlink()
    content = json.loads((path / "model.json").read_text())
    content["network"] |= settings
    content["attachments"]["method"]["metadata"] |= about
    (path / "model.json").write_text(json.dumps(content))
    return "method", path


METHOD_NUMBERS: dict[str, tuple[Numbers, Numbers, str]] = {
    "runs": ({"runs": 10**15}, {}, "runs"),
    "labels": ({"labels": ["teff"] * 10**6}, {}, "labels"),
    "name": ({"name": "athos", "widths": [10**15]}, {}, "widths"),
    "lags": ({}, {"noise_correlation": [0.0] * 10**6}, "lags"),
    "correlation": ({}, {"noise_correlation": [1e300]}, "correlation"),
    "low resolving power": ({}, {"resolving_power": 1e-300}, "resolving power of 1e-300"),
    "high resolving power": ({}, {"resolving_power": 10**300}, "damaged|64 bits|resolving power"),
}
for _name, (_settings, _about, _said) in METHOD_NUMBERS.items():
    CASES[f"method: {_name}"] = (
        lambda folder, settings=_settings, about=_about: _method(folder, settings, about),
        _said,
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    made = {}
    for number, (name, (make, _)) in enumerate(CASES.items()):
        folder = tmp_path_factory.mktemp(f"case{number}")
        made[name] = make(folder)
    return dict(zip(made, read_bounded(made.values()), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_size_is_refused_before_it_is_made(outcomes, name):
    outcome, said = outcomes[name], CASES[name][1]
    assert outcome.kind.endswith("Error"), outcome
    assert outcome.kind not in ("MemoryError", "RecursionError"), outcome
    assert not outcome.starved, outcome
    assert re.search(said, outcome.said), outcome
    assert outcome.grown < GROWN_MIB, outcome
    assert outcome.cpu < CPU_SECONDS / 2, outcome


@pytest.mark.slow
def test_the_measure_sees_what_it_should(tmp_path):
    wide = "id\n" + "x" * 4000 + "\n" + "a\n" * 300_000
    (tmp_path / "t.csv").write_text(wide)
    (found,) = read_bounded([("table", tmp_path / "t.csv")], MAURY_LIMITS="unfolded_bytes=1e12")
    assert found.starved
    assert ADDRESS_MIB < 4 * 4000 * 300_000 / 2**20
    (tmp_path / "t.csv").write_text("id\na\n")
    (found,) = read_bounded([("table", tmp_path / "t.csv")])
    assert (found.kind, found.starved) == ("read", False)
