"""Keys that two records of one person are likely to share, so that a record is compared with few others. Pure.

A key is text with personal data in it: what is stored and looked up is its keyed hash. Records are compared when they share a key.
"""

from __future__ import annotations

import itertools

from services.registry.matching import hangul, names, surnames
from services.registry.matching.compare import MAX_VALUES, Person, addresses, phones

_VOWELS = frozenset("aeiouwyh")
_MOST_SOUNDS = 8


def keys(person: Person) -> frozenset[str]:
    """The keys of a record; some hundreds at the most, a dozen as a rule.

    They are found by: national number; telephone; address; date of birth; name alone; sound of the name with the year (a year apart
    included), with day and month, and with the digits of the date of birth in any order.
    """
    found = set()
    if person.national_id:
        found.add(f"number:{person.national_id}")
    found.update(f"phone:{phone}" for phone in phones(person))
    found.update(
        f"address:{address.letters}:{','.join(address.numbers)}" for address in addresses(person) if address.numbers
    )
    born = person.birth_date
    if born:
        found.add(f"born:{born.isoformat()}")
    for surname, given in itertools.chain.from_iterable(map(_readings, person.names[:MAX_VALUES])):
        found.add(f"name:{surname}:{names.fold(given)}")
        if born:
            initial = f"{surname}:{sound(given)}"
            # Each pair of neighbouring years, so that records a year apart share one.
            found.update(f"year:{initial}:{year}" for year in (born.year, born.year + 1))
            found.add(f"day:{initial}:{born:%m%d}")
            found.add(f"digits:{surname}:{''.join(sorted(born.strftime('%Y%m%d')))}")
    return frozenset(found)


def sound(text: str) -> str:
    """Consonants of small Latin letters as they sound, without those that spellings leave out or double; the first 8.

    A word that begins with a vowel begins with `.`; one without any letter has no sound.
    """
    folded = names.fold(text)
    if not folded:
        return ""
    consonants = "".join(c for c in folded.replace("nk", "n") if c not in _VOWELS)
    return ("." if folded[0] in _VOWELS else "") + consonants[:_MOST_SOUNDS]


def _readings(name: str) -> list[tuple[str, str]]:
    """Surname and romanised given name, in each way that a name can be read."""
    words = names.words(name)
    if not words:
        return []
    if names.is_hangul(name):
        surname, given = surnames.split(words[0])
        return [(surnames.southern(surname), hangul.romanise(given))]
    readings = []
    for word, given_words in ((words[0], words[1:]), (words[-1], words[:-1])):
        for surname in surnames.BY_SPELLING.get(word, (names.fold(word),)):
            readings.append((surnames.southern(surname), "".join(given_words)))
    return readings
