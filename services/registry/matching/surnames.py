"""Latin spellings of the common Korean surnames, compiled by hand from common usage. Pure."""

from __future__ import annotations

from collections import defaultdict

_USAGE = """
김 kim gim ghim khim
이 lee yi rhee i li ri rhie ree
박 park pak bak bark
최 choi choe choy chey
정 jung jeong chung cheong chong joung
강 kang gang khang
조 cho jo joe cheo
윤 yoon yun youn
장 jang chang jahng
임 lim im rim yim leem
한 han hahn hann
오 oh o
서 seo suh so sur
신 shin sin shinn
권 kwon gwon kweon kwun
황 hwang whang
안 ahn an
송 song
전 jeon jun chun chon cheon jon
홍 hong
유 yoo yu you ryu yoon
류 ryu ryoo yoo yu lyu you
고 ko go koh goh
문 moon mun
양 yang ryang
손 son sohn shon
배 bae pae bai pai
백 baek paik baik paek back
허 heo hur huh hu
남 nam nahm
심 shim sim
노 noh no roh ro rho
로 ro roh no noh
하 ha hah
곽 kwak gwak kwack
성 sung seong song
차 cha tcha
주 joo ju chu choo
우 woo wu u
구 koo gu ku goo
나 na ra rha nah la
라 ra na la rha
민 min minn
진 jin chin
지 ji chi jee
엄 um eom uhm
채 chae chai che
원 won weon
천 chun cheon chon
방 bang pang
공 kong gong
현 hyun hyeon hyon
함 ham hahm
변 byun byeon pyon pyun byon
염 yeom yum youm
여 yeo yuh yo
추 choo chu
도 do doh to
소 so soh
석 seok suk sok
선 sun seon son
설 seol sul sol
마 ma mah
길 gil kil gill
연 yeon yun youn
위 wi wee
표 pyo phyo
명 myung myeong myong
기 ki gi kee
반 ban bahn pan
왕 wang
금 keum geum kum gum
옥 ok ock oak
육 yook yuk
인 in ihn
맹 maeng maing
제 je jae
모 mo moh
탁 tak tark
국 kook kuk gook
어 eo uh
은 eun un
편 pyun pyeon pyon
용 yong
예 ye yeh
경 kyung kyeong
봉 bong pong
사 sa
부 boo bu
황보 hwangbo whangbo
남궁 namgung namkung namgoong namkoong
제갈 jegal chegal
선우 sunwoo seonu sunwu
독고 dokgo dokko
사공 sagong sakong
"""

SPELLINGS: dict[str, tuple[str, ...]] = {
    surname: tuple(spellings) for surname, *spellings in (line.split() for line in _USAGE.strip().splitlines())
}
"""Spellings of a surname in small letters, most usual first."""

_ALIKE = {"류": "유", "리": "이", "림": "임", "로": "노", "라": "나", "량": "양", "려": "여", "련": "연", "륙": "육"}


def _surnames_by_spelling() -> dict[str, tuple[str, ...]]:
    by_spelling: defaultdict[str, list[str]] = defaultdict(list)
    for surname, spellings in SPELLINGS.items():
        for spelling in spellings:
            by_spelling[spelling].append(surname)
    return {spelling: tuple(names) for spelling, names in by_spelling.items()}


BY_SPELLING: dict[str, tuple[str, ...]] = _surnames_by_spelling()
"""Surnames that a Latin spelling may stand for."""


def southern(surname: str) -> str:
    """Surname in its southern form, without an initial ㄹ: 류 becomes 유, 림 becomes 임. Other surnames stay unchanged."""
    return _ALIKE.get(surname, surname)


def split(hangul: str) -> tuple[str, str]:
    """Split a full name in Hangul into surname and given name. Only known surnames have two syllables."""
    length = 2 if len(hangul) > 2 and hangul[:2] in SPELLINGS else 1
    return hangul[:length], hangul[length:]
