"""Match keys that two records of one person probably share, so that a record is compared with few others (blocking). Pure.

Two records are compared if they share a key. A key is text with personal data, so only its keyed hash is stored and looked up.
"""

from __future__ import annotations

import itertools

from services.registry.matching import hangul, names
from services.registry.matching.compare import MAX_VALUES, Person, addresses, phones

_VOWELS = frozenset("aeiouwyh")
_MAX_SOUNDS = 8


def keys(person: Person) -> frozenset[str]:
    """Match keys of a record: a few hundred at most, usually a dozen.

    A key is built from each of these:
    - the national number, each telephone number, each address, the date of birth, each name
    - the surname and the sound of the given name, with the year of birth, the next year, or the day and month of birth
    - the surname and the sorted digits of the date of birth
    """
    match_keys = set()
    if person.national_id:
        match_keys.add(f"number:{person.national_id}")
    match_keys.update(f"phone:{phone}" for phone in phones(person))
    match_keys.update(
        f"address:{address.letters}:{','.join(address.numbers)}" for address in addresses(person) if address.numbers
    )
    born = person.birth_date
    if born:
        match_keys.add(f"born:{born.isoformat()}")
    for surname, given in itertools.chain.from_iterable(map(_readings, person.names[:MAX_VALUES])):
        match_keys.add(f"name:{surname}:{names.fold(given)}")
        if born:
            initial = f"{surname}:{sound(given)}"
            # Two keys for neighbouring years, so that records whose years differ by 1 share a key.
            match_keys.update(f"year:{initial}:{year}" for year in (born.year, born.year + 1))
            match_keys.add(f"day:{initial}:{born:%m%d}")
            match_keys.add(f"digits:{surname}:{''.join(sorted(born.strftime('%Y%m%d')))}")
    return frozenset(match_keys)


def sound(text: str) -> str:
    """First 8 consonants of a word in small Latin letters, without consonants that spellings often omit or double.

    The result starts with `.` if the word starts with a vowel. A word without letters gives an empty text.
    """
    folded = names.fold(text)
    if not folded:
        return ""
    consonants = "".join(c for c in folded.replace("nk", "n") if c not in _VOWELS)
    return ("." if folded[0] in _VOWELS else "") + consonants[:_MAX_SOUNDS]


def _readings(name: str) -> list[tuple[str, str]]:
    """Pairs of surname and romanised given name, for each possible reading of a name."""
    words = names.words(name)
    if not words:
        return []
    if names.is_hangul(name):
        surname, given = names.split(words[0])
        return [(names.southern(surname), hangul.romanise(given))]
    readings = []
    for word, given_words in ((words[0], words[1:]), (words[-1], words[:-1])):
        for surname in names.BY_SPELLING.get(word, (names.fold(word),)):
            readings.append((names.southern(surname), "".join(given_words)))
    return readings
