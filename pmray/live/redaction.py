"""Take out of texts what points to a person: e-mail addresses, card numbers, bank accounts, national ids, phones.

Patterns, with check digits where there are any. What has no pattern, such as a name or a street, stays: whoever may
not keep personal data must not keep inputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any


def _luhn(found: str) -> bool:
    """Check digit of payment cards (ISO/IEC 7812-1)."""
    digits = [int(sign) for sign in reversed(found) if sign.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return 13 <= len(digits) <= 19 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _iban(found: str) -> bool:
    """Check digits of bank accounts (ISO 13616): the number, its head moved to its end, is 1 modulo 97."""
    plain = re.sub(r"\s", "", found).upper()
    return 15 <= len(plain) <= 34 and int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1


def _ssn(found: str) -> bool:
    """Areas, groups and numbers that the Social Security Administration gives."""
    area, group, number = (int(part) for part in re.split(r"[- ]", found))
    return 0 < area < 900 and area != 666 and group > 0 and number > 0


def _dni(found: str) -> bool:
    """Check letter of Spanish DNI and NIE."""
    plain = found.upper().replace("-", "")
    number = int(plain[:-1].replace("X", "0").replace("Y", "1").replace("Z", "2"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23] == plain[-1]


def _phone(found: str) -> bool:
    """As many digits as a phone number has (ITU-T E.164: at most 15), and no date."""
    digits = re.sub(r"\D", "", found)
    date = re.fullmatch(r"\d{4}[-./ ]\d{1,2}[-./ ]\d{1,2}|\d{1,2}[-./ ]\d{1,2}[-./ ]\d{4}", found.strip())
    return 8 <= len(digits) <= 15 and not date


RULES: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("EMAIL", re.compile(r"[\w.+%'-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"), lambda _: True),
    ("IBAN", re.compile(r"\b[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]{4}){2,7}(?: ?[A-Za-z0-9]{1,3})?\b"), _iban),
    ("CARD", re.compile(r"(?<![\d-])\d(?:[ -]?\d){12,18}(?![\d-])"), _luhn),
    ("NATIONAL_ID", re.compile(r"(?<![\d-])\d{3}[- ]\d{2}[- ]\d{4}(?![\d-])"), _ssn),
    (
        "NATIONAL_ID",  # United Kingdom: National Insurance number
        re.compile(r"\b(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?: ?\d{2}){3} ?[A-D]\b", re.I),
        lambda _: True,
    ),
    ("NATIONAL_ID", re.compile(r"\b(?:\d{8}|[XYZ]\d{7})-?[A-Z]\b", re.I), _dni),
    ("PHONE", re.compile(r"(?<![\w.])(?<!\d-)(?:\+|00)?\(?\d(?:[ ./()-]{0,2}\d){7,14}(?!\w|-\d)"), _phone),
)
"""Kind, pattern, and what a find must pass besides; earlier rules go first."""


def redact(text: str) -> str:
    """Put ``[EMAIL]``, ``[IBAN]``, ``[CARD]``, ``[NATIONAL_ID]`` and ``[PHONE]`` in place of such.

    >>> redact("write to ann@example.org or call +44 20 7946 0958, card 4111 1111 1111 1111")
    'write to [EMAIL] or call [PHONE], card [CARD]'
    """
    for kind, pattern, holds in RULES:
        text = pattern.sub(partial(_shown, kind, holds), text)
    return text


def _shown(kind: str, holds: Callable[[str], bool], found: re.Match[str]) -> str:
    return f"[{kind}]" if holds(found[0]) else found[0]


def redact_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row that was sent, its texts redacted; words are joined for it, as a number may be spread over several.

    Images are left out: what they show cannot be redacted here.
    """
    kept: dict[str, Any] = {}
    for role, value in row.items():
        if role == "image":
            continue
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            kept[role] = redact(" ".join(value)).split(" ")
        else:
            kept[role] = redact(value) if isinstance(value, str) else value
    return kept
