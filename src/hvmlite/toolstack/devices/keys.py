"""Device options as lists of key=value, which most of xl.cfg's have."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from hvmlite.errors import UserError


def parse_keys(text: str, known: AbstractSet[str], *, what: str) -> dict[str, str]:
    """The values by key in "key=value,key=value"; raises UserError for a key not in `known`.

    Spaces around keys and values do not count, nor does a comma at the end; no value holds a comma.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        key, sign, value = (each.strip() for each in part.partition("="))
        if not part.strip():
            continue
        if not sign:
            raise UserError(f"{what} {text!r}: {key!r} is not of the form key=value")
        if key not in known:
            raise UserError(f"{what} {text!r}: no key {key!r}; known: {', '.join(sorted(known))}")
        if key in found:
            raise UserError(f"{what} {text!r}: {key}= is there twice")
        if not value.isprintable():
            raise UserError(f"{what} {text!r}: the value of {key}= is no text")
        found[key] = value
    return found
