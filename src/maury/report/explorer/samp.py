"""Sending a table to TOPCAT and other programs by SAMP, if a hub runs."""

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault

from maury.errors import MauryError

_MESSAGE = "table.load.fits"
_ANSWER_SECONDS = 10
"""How long each program is waited for: a table of the page's size loads in less; chosen."""


class NoHub(MauryError):
    """No SAMP hub runs, or nobody there takes tables: start TOPCAT and try again."""


def hub_runs() -> bool:
    """Say whether a SAMP hub answers on this machine."""
    try:
        samp = _samp()
    except NoHub:
        return False
    proxy = samp.SAMPHubProxy()
    try:
        proxy.connect()
    except (samp.SAMPHubError, OSError):
        return False
    proxy.disconnect()
    return True


def send_table(path: Path, *, name: str) -> list[str]:
    """Ask every program at the hub that takes FITS tables to load one.

    Parameters
    ----------
    path : Path
        FITS file; must stay where it is while they read it.
    name : str
        What they should call it.

    Returns
    -------
    list of str
        Names of the programs that were asked.

    Raises
    ------
    NoHub
        If no hub runs, or no program there takes tables.
    """
    samp = _samp()
    client = samp.SAMPIntegratedClient(
        name="maury", description="Explorer of stellar labels", callable=False
    )
    try:
        # Else astropy asks a public address for this machine's name, which may take a minute.
        with samp.conf.set_temp("use_internet", False):
            client.connect()
    except (samp.SAMPHubError, OSError) as error:
        raise NoHub("no SAMP hub runs; start TOPCAT and try again") from error
    try:
        takers = client.get_subscribed_clients(_MESSAGE)
        if not takers:
            raise NoHub("no program at the SAMP hub takes tables; start TOPCAT and try again")
        message = {
            "samp.mtype": _MESSAGE,
            "samp.params": {"url": path.as_uri(), "name": name, "table-id": path.stem},
        }
        for taker in takers:
            # Not a notification: a hub passes it on in its own time, and drops it if the sender
            # has left by then. A program that is late loads on without us.
            with suppress(Fault):
                client.call_and_wait(taker, message, str(_ANSWER_SECONDS))
        return sorted(str(client.get_metadata(taker).get("samp.name", taker)) for taker in takers)
    finally:
        client.disconnect()


def _samp() -> Any:
    """Return the SAMP of pyvo, or that of astropy, which moved there."""
    try:
        import pyvo.samp as samp
    except ImportError:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import astropy.samp as samp
        except ImportError as error:
            raise NoHub("SAMP needs pyvo: pip install 'maury[samp]'") from error
    return samp
