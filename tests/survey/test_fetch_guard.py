"""Servers that give too much, lead elsewhere, or lie about checksums."""

import hashlib
import ipaddress
import socket
from dataclasses import dataclass

import pytest

from builders.web_server import Site, serving, status
from maury.errors import FetchError
from maury.survey import archives
from maury.survey.fetch import Manners, Web, fetch
from maury.survey.fetch import guard as guard_module
from maury.survey.fetch.download_record import Manifest
from maury.survey.fetch.guard import Guard, is_public
from maury.survey.fetch.queries import _PatientSession

DATA = bytes(range(256)) * 1000


@dataclass(frozen=True)
class Entry:
    name: str
    url: str
    bytes: int | None = None
    sha256: str | None = None
    checksums: str | None = None


@pytest.fixture
def site():
    with serving(Site(files={"/a.fits": DATA})) as site:
        yield site


@pytest.fixture
def web():
    manners = Manners(connect_s=60.0, stall_s=60.0, attempts=2)
    with Web(manners, sleep=lambda _: None) as web:
        yield web


def endless(handler):
    """A body without a length that goes on as long as somebody reads."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/octet-stream")
    handler.end_headers()
    handler.close_connection = True
    while True:
        handler.wfile.write(DATA)


@pytest.mark.parametrize("published", [1000, None])
def test_a_body_without_end_is_stopped_at_the_first_byte_too_many(
    site, web, tmp_path, published, monkeypatch
):
    monkeypatch.setenv("MAURY_LIMITS", "download_bytes=100000")
    site.heads = site.lengths = False
    site.plans["/a.fits"] = [endless]
    written = []
    with pytest.raises(FetchError, match="more than the 1000") as error:
        fetch(
            [Entry("a.fits", site.url + "/a.fits", published)],
            tmp_path,
            web=web,
            progress=lambda name, done, total: written.append(done),
        )
    assert max(written, default=0) <= (published or 100_000)
    assert not list(tmp_path.glob("*a.fits*"))
    assert published or "MAURY_LIMITS='download_bytes=" in str(error.value)


def test_an_announced_size_beyond_the_limit_is_refused(site, web, tmp_path, monkeypatch):
    monkeypatch.setenv("MAURY_LIMITS", "download_bytes=1000")
    with pytest.raises(FetchError, match="has 256000 bytes, more than the 1000"):
        fetch([Entry("a.fits", site.url + "/a.fits")], tmp_path, web=web)
    assert fetch([Entry("a.fits", site.url + "/a.fits", len(DATA))], tmp_path, web=web)


@pytest.mark.parametrize(
    "headers", [{"Retry_After": "9" * 400}, {"Retry_After": "9" * 5000}, {"Retry_After": "-5"}]
)
def test_absurd_waits_are_one_error(site, web, tmp_path, headers):
    site.plans["/a.fits"] = [status(503, **headers)] * 2
    with pytest.raises(FetchError):
        fetch([Entry("a.fits", site.url + "/a.fits")], tmp_path, web=web)


def test_an_absurd_length_is_none(site, web, tmp_path):
    def answer(handler):
        handler.answer(200, DATA, {"Content-Length": "9" * 5000})
        handler.cut()

    site.plans["/a.fits"] = [answer]
    site.heads = False
    (path,) = fetch([Entry("a.fits", site.url + "/a.fits", len(DATA))], tmp_path, web=web)
    assert path.read_bytes() == DATA


@pytest.fixture
def inside():
    """A server of the private network, with what must not be got from it."""
    try:
        with serving(Site(files={"/a.fits": b"secret"}), "127.0.0.2") as site:
            yield site
    except OSError:
        pytest.skip("this system has one loopback address only")


@pytest.fixture
def internet(monkeypatch):
    """127.0.0.1 stands for the internet, and names for addresses."""
    monkeypatch.setattr(
        guard_module, "is_public", lambda text: str(ipaddress.ip_address(text)) == "127.0.0.1"
    )
    resolve = socket.getaddrinfo
    names = {"archive.test": "127.0.0.1", "rebound.test": "127.0.0.2"}
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *args, **options: resolve(names.get(host, host), *args, **options),
    )
    return names


def port(site) -> str:
    return site.url.rpartition(":")[2]


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost", "x.localhost", "rebound.test", "[::1]"])
def test_a_server_of_the_internet_leads_nowhere_private(
    site, inside, internet, web, tmp_path, host
):
    site.heads = False
    site.plans["/a.fits"] = [status(302, Location=f"http://{host}:{port(inside)}/a.fits")]
    with pytest.raises(FetchError, match="private address"):
        fetch([Entry("a.fits", f"http://archive.test:{port(site)}/a.fits")], tmp_path, web=web)
    assert inside.requests == []
    assert not list(tmp_path.glob("*a.fits*"))


def test_a_name_that_is_resolved_anew_is_looked_at_again(inside, internet, web, tmp_path):
    entry = Entry("a.fits", f"http://archive.test:{port(inside)}/a.fits")
    # As after a first request, whose answer came from the internet.
    web.guard.connected(guard_module.place_of(entry.url), "127.0.0.1")
    internet["archive.test"] = "127.0.0.2"
    for _ in range(3):
        with pytest.raises(FetchError, match=r"archive\.test is 127\.0\.0\.2, a private address"):
            fetch([entry], tmp_path, web=web)
    assert inside.requests == []


def test_what_the_user_names_may_be_private_and_lead_within(site, inside, web, tmp_path):
    site.plans["/a.fits"] = [status(302, Location=inside.url + "/a.fits")]
    site.heads = False
    (path,) = fetch([Entry("a.fits", site.url + "/a.fits")], tmp_path, web=web)
    assert path.read_bytes() == b"secret"


def test_a_service_cannot_name_a_private_result(site, inside, internet, web):
    service = f"http://archive.test:{port(site)}/tap"
    with (
        pytest.raises(FetchError, match="private address"),
        web.ask(inside.url + "/a.fits", told_by=service),
    ):
        pass
    session = _PatientSession(web, service)
    site.files["/tap"] = b"description"
    assert session.request("GET", service).content == b"description"
    site.plans["/tap"] = [status(303, Location=f"http://rebound.test:{port(inside)}/a.fits")]
    with pytest.raises(FetchError, match="private address"):
        session.request("GET", service)
    session.close()
    assert inside.requests == []


def test_answers_of_a_service_have_a_length(site, web, monkeypatch):
    monkeypatch.setenv("MAURY_LIMITS", "head_bytes=1000")
    session = _PatientSession(web, site.url)
    with pytest.raises(FetchError, match="more than 1000 bytes"):
        session.request("GET", site.url + "/a.fits")
    session.close()


def test_https_never_becomes_http():
    guard = Guard()
    guard.enter("https://a.example/x", "https://a.example/x")
    with pytest.raises(FetchError, match="not be encrypted"):
        guard.enter("http://a.example/x", "https://a.example/x")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("172.16.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
    ],
)
def test_addresses_of_the_internet(address, public):
    assert is_public(address) is public


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256"])
@pytest.mark.parametrize("form", ["{}  a.fits\n", "{} *./a.fits\n", "# x\n{}\ta.fits\n"])
def test_checksums_that_an_archive_lists_are_compared(site, web, tmp_path, kind, form):
    entry = Entry("a.fits", site.url + "/a.fits", checksums=site.url + "/SUMS")
    site.files["/SUMS"] = form.format(hashlib.new(kind, DATA).hexdigest()).encode()
    (path,) = fetch([entry], tmp_path, web=web)
    assert path.read_bytes() == DATA
    assert Manifest.read(tmp_path).of(entry).published


@pytest.mark.parametrize(
    ("listed", "match"),
    [
        (hashlib.md5(b"x", usedforsecurity=False).hexdigest() + "  a.fits", "the MD5 of what"),
        (hashlib.sha256(DATA).hexdigest() + "  b.fits", "lists no checksum of a.fits"),
        ("<html>", "lists no checksum"),
        ("x" * 5000, "is larger than the 1000 bytes"),
    ],
)
def test_another_checksum_than_listed_is_discarded(site, web, tmp_path, listed, match, monkeypatch):
    monkeypatch.setenv("MAURY_LIMITS", "head_bytes=1000")
    site.files["/SUMS"] = listed.encode()
    entry = Entry("a.fits", site.url + "/a.fits", checksums=site.url + "/SUMS")
    with pytest.raises(FetchError, match=match):
        fetch([entry], tmp_path, web=web)
    assert not list(tmp_path.glob("*a.fits*"))
    # A file of the user's own is compared, too, and stays.
    (tmp_path / "a.fits").write_bytes(DATA)
    with pytest.raises(FetchError, match=match):
        fetch([entry], tmp_path, web=web)
    assert (tmp_path / "a.fits").read_bytes() == DATA


def test_recipes_ask_by_https():
    for name in archives.names():
        recipe = archives.load(name)
        asked = [address for one in recipe.file for address in (one.url, one.checksums)]
        asked += [recipe.query.service] if recipe.query else []
        assert all(one is None or one.startswith("https://") for one in asked), name
