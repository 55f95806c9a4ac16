"""Names that settings had in earlier versions, in pages and saved runs: read as what they are called now."""

from __future__ import annotations

from typing import Any

SHARE_UNTIL = {f"stage_{number}": 2 ** (number + 1) for number in range(4)}


def renamed(given: Any) -> Any:
    """Returns settings of any version under the names of this one; what is none is left to be refused.

    Args:
        given: of a whole run, as plain values.
    """
    if not isinstance(given, dict):
        return given
    return {**given, "model": renamed_model(given["model"])} if "model" in given else dict(given)


def renamed_model(given: Any) -> Any:
    """Returns the settings of a network under the names of this version.

    Args:
        given: as plain values.
    """
    if not isinstance(given, dict):
        return given
    until, sharing = given.get("share_until"), given.get("sharing")
    changes = {"share_until": SHARE_UNTIL[until]} if isinstance(until, str) and until in SHARE_UNTIL else {}
    return {**given, **changes, **({"sharing": "series_adapters"} if sharing == "adapters" else {})}
