"""No reader asks another machine, or a place that a file names, whatever the file says."""

import socket
import urllib.request
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits

from builders import keras_networks
from builders.bounded import READERS
from maury.errors import InputFileError, MauryError
from maury.survey.readers import open_toml

HREF = 'href="http://127.0.0.1:9/x"'
FIELD = '<FIELD name="id" datatype="char" arraysize="*"/>'
TABLE = f"<VOTABLE><RESOURCE><TABLE>{FIELD}<DATA>%s</DATA></TABLE></RESOURCE></VOTABLE>"
LONG = "p" * 300
STREAMS = {
    "plain": f"<BINARY><STREAM {HREF}/></BINARY>",
    "local": '<BINARY><STREAM href="file:///etc/hostname"/></BINARY>',
    "angle bracket": f"<BINARY><STREAM rights='>' {HREF}/></BINARY>",
    "long prefix": f'<BINARY><{LONG}:STREAM xmlns:{LONG}="x" {HREF}/></BINARY>',
    "prefix of all": f'<v:BINARY xmlns:v="x"><v:STREAM {HREF}/></v:BINARY>',
    "line feed": f"<BINARY2><STREAM\n\tencoding\n=\n'gzip'\n{HREF}\n/></BINARY2>",
    "entities": '<BINARY><STREAM href="&#104;ttp://127.0.0.1:9/x"/></BINARY>',
    "far": f"<!--{'x' * 10**5}--><BINARY><STREAM utype='{'x' * 9000}' {HREF}/></BINARY>",
    "fits": f'<FITS extnum="1"><STREAM {HREF}/></FITS>',
    "fits without": "<FITS extnum='1'><STREAM>aaaa</STREAM></FITS>",
    "parquet": f'<PARQUET type="VOTable-remote-file"><STREAM {HREF}/></PARQUET>',
}


@pytest.fixture(autouse=True)
def _asked(monkeypatch):
    """Forbid sockets and addresses, and see them also where an error of that is caught."""
    asked = []

    def ask(*args, **kwargs):
        asked.append((args, kwargs))
        raise OSError("a file made the package ask another place")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, ask, raising=False)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, ask)
    monkeypatch.setattr(urllib.request, "urlopen", ask)
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", ask)
    yield
    assert not asked


def _gaia(path: Path):
    path.with_name("survey.toml").write_text('[spectra]\nfolder = "."\nreader = "gaia-rvs"\n')
    with open_toml(path.with_name("survey.toml")) as survey:
        return len(survey)


def _rows(path: Path):
    path.with_name("survey.toml").write_text(
        f'[spectra]\nfile = "{path.name}"\nflux = "flux"\n'
        '[wavelength]\nmedium = "air"\nstart = 8420.0\nstep = 0.4\n'
    )
    return READERS["spectra"](path.with_name("survey.toml"))


@pytest.mark.parametrize("data", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize(
    "read",
    [READERS["table"], READERS["catalogue"], READERS["report"], _gaia, _rows],
    ids=["table", "catalogue", "report", "gaia", "spectra"],
)
def test_a_votable_is_read_where_it_lies(tmp_path, data, read):
    (tmp_path / "t.vot").write_text(TABLE % data)
    with pytest.raises(InputFileError, match="another address"):
        read(tmp_path / "t.vot")


def test_addresses_that_are_not_of_data_are_left_alone(tmp_path):
    rows = "<TABLEDATA><TR><TD>a STREAM href</TD></TR></TABLEDATA>"
    text = (TABLE % rows).replace("<TABLE>", f"<TABLE><LINK {HREF}/><DESCRIPTION>x</DESCRIPTION>")
    (tmp_path / "t.vot").write_text(text.replace("<RESOURCE>", f"<RESOURCE><LINK {HREF}/>"))
    assert READERS["table"](tmp_path / "t.vot")[0].tolist() == ["a STREAM href"]


@pytest.mark.parametrize("scheme", ["http:", "https:", "ftp:", "file:"])
@pytest.mark.parametrize("name", ["t.vot", "t.ecsv", "t.csv", "t.fits"])
@pytest.mark.parametrize("reader", ["table", "catalogue", "report"])
def test_a_folder_called_as_an_address(tmp_path, monkeypatch, scheme, name, reader):
    monkeypatch.chdir(tmp_path)
    place = Path(scheme) / "127.0.0.1" / name
    place.parent.mkdir(parents=True)
    place.write_text(TABLE % "<TABLEDATA/>")
    with pytest.raises(MauryError):
        READERS[reader](place)


MIXINS = {
    "time": "astropy.time.core.Time\n#       format: isot\n#       scale: ut1",
    "place": "astropy.coordinates.earth.EarthLocation\n#       ellipsoid: WGS84",
    "sky": "astropy.coordinates.sky_coordinate.SkyCoord\n#       frame: altaz",
}


@pytest.mark.parametrize("made", MIXINS.values(), ids=MIXINS)
@pytest.mark.parametrize("reader", ["table", "catalogue", "report"])
def test_an_ecsv_makes_nothing_that_asks(tmp_path, made, reader):
    (tmp_path / "t.ecsv").write_text(
        "# %ECSV 1.0\n# ---\n# datatype:\n# - {name: t, datatype: string}\n# meta: !!omap\n"
        f"# - __serialized_columns__:\n#     t:\n#       __class__: {made}\n"
        "#       value: !astropy.table.SerializedColumn {name: t}\n# schema: astropy-2.0\nt\n"
        "2020-01-01T00:00:00\n"
    )
    found = None
    with suppress(MauryError):
        found = READERS[reader](tmp_path / "t.ecsv")
    # A report leaves out a column that is no plain one.
    assert found is None or reader == "report"


def test_names_in_other_formats_are_names(tmp_path):
    address = "http://127.0.0.1:9/x"
    table = fits.BinTableHDU.from_columns([fits.Column("id", "30A", array=[address])], name=address)
    table.header["GRPLC1"] = table.header["CONTREF"] = address
    table.writeto(tmp_path / "t.fits")
    (tmp_path / "t.csv").write_text(f"id\n{address}\n")
    for name in ("t.fits", "t.csv"):
        assert READERS["table"](tmp_path / name)[0].tolist() == [address]
    np.savez(tmp_path / "s.npz", flux=np.ones((1, 8), "f4"))
    for file in (address, f"file://{tmp_path}/s.npz"):
        (tmp_path / "survey.toml").write_text(f'[spectra]\nfile = "{file}"\norientation = "rows"\n')
        with pytest.raises(MauryError):
            READERS["spectra"](tmp_path / "survey.toml")
    keras_networks.write(tmp_path / "n.h5")
    with h5py.File(tmp_path / "n.h5", "r+") as file:
        del file["model_weights"]
        file["model_weights"] = h5py.ExternalLink(address, "/")
    with pytest.raises(InputFileError):
        READERS["keras"](tmp_path / "n.h5")
