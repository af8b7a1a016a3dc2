"""Decompose Hangul syllables, and list the Latin spellings of each part. Pure.

The first spelling of each part is the Revised Romanisation of 2000. The other spellings occur in passports and on business cards:
McCune-Reischauer without its marks, English habits (`oo`, `ee`, `young`) and errors. Each spelling has a cost from 0 (the rule) to
1 (no better than a wrong letter). Syllables are romanised one by one, as the law requires for given names.
"""

from __future__ import annotations

from dataclasses import dataclass

INITIALS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
FINALS = ("", *"ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ")
_FIRST, _LAST = 0xAC00, 0xD7A3

Spellings = tuple[tuple[str, float], ...]
"""Latin spellings of one part of a syllable, each with its cost."""


@dataclass(frozen=True, slots=True)
class Syllable:
    """Parts of a Hangul syllable. `final` is empty if the syllable ends with its vowel."""

    initial: str
    vowel: str
    final: str


def is_syllable(character: str) -> bool:
    """Whether the character is a composed Hangul syllable."""
    return _FIRST <= ord(character) <= _LAST


def decompose(character: str) -> Syllable:
    """Decompose a composed syllable into its parts. Raises ValueError for any other character."""
    if not is_syllable(character):
        raise ValueError("not a Hangul syllable")
    rest, final = divmod(ord(character) - _FIRST, len(FINALS))
    initial, vowel = divmod(rest, len(VOWELS))
    return Syllable(INITIALS[initial], VOWELS[vowel], FINALS[final])


def _table(text: str) -> dict[str, Spellings]:
    """Parse lines of `part rule other:cost ...`. `-` means the empty spelling."""
    table: dict[str, Spellings] = {}
    for line in text.strip().splitlines():
        part, *spellings = line.split()
        pairs = (spelling.partition(":") for spelling in spellings)
        table[part] = tuple((letters.replace("-", ""), float(cost or 0)) for letters, _, cost in pairs)
    return table


_INITIAL_SPELLINGS = _table("""
ㄱ g k:.1 kh:.4 gh:.4 c:.5
ㄲ kk gg:.2 k:.3 g:.4
ㄴ n r:.6 l:.6
ㄷ d t:.1 dh:.4
ㄸ tt dd:.2 t:.3 d:.4
ㄹ r l:.1 n:.4 rh:.3 ry:.5
ㅁ m
ㅂ b p:.1 bh:.4 v:.6
ㅃ pp bb:.2 p:.3 b:.4
ㅅ s sh:.3
ㅆ ss s:.2 sh:.5
ㅇ -
ㅈ j ch:.15 z:.4 g:.5
ㅉ jj tch:.3 j:.3 tz:.4 ch:.4
ㅊ ch j:.5 tch:.3 c:.5 ts:.5
ㅋ k kh:.3 c:.3 q:.4
ㅌ t th:.3 d:.6
ㅍ p ph:.2 f:.3 b:.6
ㅎ h wh:.4 -:.8
""")
_VOWEL_SPELLINGS = _table("""
ㅏ a ah:.1 ar:.4 aa:.4 u:.6
ㅐ ae ai:.2 e:.3 ay:.3 eh:.4 a:.6 ea:.4
ㅑ ya ia:.3 yah:.1
ㅒ yae yai:.3 ye:.4 ya:.5
ㅓ eo u:.1 o:.3 uh:.2 ou:.3 ur:.3 er:.4 eu:.4 e:.5 a:.6
ㅔ e ay:.3 eh:.2 ae:.3 ei:.3
ㅕ yeo you:.1 yu:.15 yo:.3 yeu:.3 yea:.4 ye:.4 yuh:.3 ou:.5 u:.5 eo:.5 yer:.4
ㅖ ye yeh:.1 e:.3 ae:.4 yae:.3 ay:.4 yea:.3 ie:.4 ey:.4
ㅗ o oh:.1 oe:.4 ou:.4 oo:.5 u:.6
ㅘ wa wah:.2 oa:.3 ua:.3 a:.5
ㅙ wae wai:.2 we:.3 oae:.3
ㅚ oe oi:.1 we:.3 wae:.4 oy:.3 oey:.3 ui:.5
ㅛ yo yoh:.1 yeo:.4 you:.4 io:.4
ㅜ u oo:.1 ou:.3 uh:.3 w:.5 o:.6
ㅝ wo weo:.1 uo:.3 wuh:.3 wu:.4 o:.5
ㅞ we weh:.2 ue:.3
ㅟ wi wee:.1 ui:.2 we:.4 uy:.4 wie:.3
ㅠ yu yoo:.1 you:.1 iu:.3 ew:.4 u:.4 oo:.4
ㅡ eu u:.1 ou:.4 e:.5 oo:.5 i:.6 uh:.3
ㅢ ui eui:.1 i:.2 ee:.2 yi:.4 e:.5
ㅣ i ee:.1 y:.3 ie:.3 ih:.3 ey:.3 ea:.4 e:.5
""")
# A vowel without an initial consonant is often written with a leading glide.
_BARE_VOWEL_SPELLINGS = _table("""
ㅜ woo:.1 wu:.2
ㅡ yeu:.4
ㅣ yi:.1 lee:.4 rhee:.4
""")
_FINAL_SPELLINGS = _table("""
ㄱ k g:.1 ck:.2 c:.3 ng:.6
ㄲ k g:.2 kk:.2
ㄳ k g:.2 ks:.3
ㄴ n nn:.2 l:.6
ㄵ n nj:.3
ㄶ n nh:.2
ㄷ t d:.1
ㄹ l r:.2 ll:.2
ㄺ k l:.3 lk:.2 lg:.3
ㄻ m lm:.2
ㄼ l p:.3 lb:.2 lp:.2
ㄽ l ls:.3
ㄾ l lt:.3
ㄿ p l:.4
ㅀ l lh:.3
ㅁ m mm:.2 n:.6
ㅂ p b:.1 m:.6
ㅄ p ps:.3 b:.3
ㅅ t s:.2 d:.3
ㅆ t ss:.2 s:.3
ㅇ ng n:.6 g:.6
ㅈ t j:.2 ch:.3
ㅊ t ch:.2 tch:.3
ㅋ k
ㅌ t th:.3
ㅍ p f:.3
ㅎ t h:.2
""")


def spellings(syllable: Syllable) -> tuple[Spellings, ...]:
    """Spellings of each part of a syllable. A silent initial and a missing final are omitted."""
    parts: list[Spellings] = []
    vowel = _VOWEL_SPELLINGS[syllable.vowel]
    if syllable.initial == "ㅇ":
        vowel += _BARE_VOWEL_SPELLINGS.get(syllable.vowel, ())
    else:
        initial = _INITIAL_SPELLINGS[syllable.initial]
        if syllable.initial == "ㅅ" and syllable.vowel in "ㅣㅟ":
            initial = (("s", 0.0), ("sh", 0.1))
        parts.append(initial)
    parts.append(vowel)
    if syllable.final:
        parts.append(_FINAL_SPELLINGS[syllable.final])
    return tuple(parts)


def romanise(text: str) -> str:
    """Revised Romanisation of the Hangul in a text, syllable by syllable. Other characters are omitted."""
    return "".join(
        part[0][0] for character in text if is_syllable(character) for part in spellings(decompose(character))
    )
