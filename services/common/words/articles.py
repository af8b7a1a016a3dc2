"""The name of each article of law that allows a disclosure or a notice, and the word for each purpose of one.

The law is cited as the statute numbers it, with its own words for what it allows, so that an officer and a judge find the same
passage. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.common.words import Word

ARTICLE_WORDS: Mapping[str, Word] = {
    "STALKING_9_1_2": (
        "스토킹처벌법 제9조제1항제2호 (100미터 이내 접근금지)",
        "Stalking Punishment Act 9(1) item 2: no approach within 100 m",
    ),
    "STALKING_9_1_3": (
        "스토킹처벌법 제9조제1항제3호 (전기통신 이용 접근금지)",
        "Stalking Punishment Act 9(1) item 3: no contact by telecommunication",
    ),
    "STALKING_9_1_3_2": (
        "스토킹처벌법 제9조제1항제3호의2 (위치추적 전자장치 부착)",
        "Stalking Punishment Act 9(1) item 3-2: electronic tag",
    ),
    "STALKING_4": (
        "스토킹처벌법 제4조 (긴급응급조치)",
        "Stalking Punishment Act 4: police emergency measure",
    ),
    "STALKING_17_6": (
        "스토킹처벌법 제17조의6 (피해자보호명령)",
        "Stalking Punishment Act 17-6: victim protection order",
    ),
    "STALKING_17_7": (
        "스토킹처벌법 제17조의7 (임시보호명령)",
        "Stalking Punishment Act 17-7: interim protection order",
    ),
    "DV_29_1": (
        "가정폭력처벌법 제29조제1항 (임시조치)",
        "Domestic Violence Act 29 items 1 to 3: temporary measure",
    ),
    "DV_PROTECTION": ("가정폭력처벌법 (피해자보호명령)", "Domestic Violence Act: victim protection order"),
    "TAG_9_2_1_3": (
        "전자장치부착법 제9조의2제1항제3호 (특정인 접근금지)",
        "Tag Act 9-2(1)3: no approach to a named person",
    ),
    "TAG_16_2": (
        "전자장치부착법 제16조제2항 (수신자료의 이용)",
        "Tag Act 16(2): closed list of uses of a wearer's data",
    ),
    "TAG_16_3_2": (
        "전자장치부착법 제16조의3제2항 (영상정보 열람 요청)",
        "Tag Act 16-3(2): request to a local government for CCTV",
    ),
    "TAG_31_8_2": (
        "전자장치부착법 제31조의8제2항 (수신자료의 이용)",
        "Tag Act 31-8(2): use of the data of a wearer under item 3-2",
    ),
    "TAG_DECREE_23_10": (
        "전자장치부착법 시행령 제23조의10부터 제23조의19까지 (경찰 통보)",
        "Tag Act Decree 23-10 to 23-19: police told of a breach or its risk",
    ),
    "TAG_15_2": (
        "전자장치부착법 제15조의2 (피해자 통지)",
        "Tag Act 15-2: notice to the person whom a condition 9-2(1)3 names",
    ),
    "TAG_16_2_5": (
        "전자장치부착법 제16조제2항제5호 (통지 시 위치 제공)",
        "Tag Act 16(2) item 5: location together with a notice under 15-2",
    ),
    "TAG_DECREE_13_3": (
        "전자장치부착법 시행령 제13조의3",
        "Tag Act Decree 13-3: how a location is given together with a notice under 15-2",
    ),
    "TAG_31_6_4": (
        "전자장치부착법 제31조의6제4항 단서 (피해자 통지)",
        "Tag Act 31-6(4), proviso: notice to the persons whom a no-approach order protects",
    ),
    "TAG_31_8_2_5": (
        "전자장치부착법 제31조의8제2항제5호 (통지 시 위치 제공)",
        "Tag Act 31-8(2) item 5: location together with a notice under 31-6(4)",
    ),
    "TAG_DECREE_23_17": (
        "전자장치부착법 시행령 제23조의17제1항",
        "Tag Act Decree 23-17(1): how a location is given together with a notice under 31-6(4)",
    ),
}
"""Name in Korean and English by the article's code in the list of legal bases."""

PURPOSE_WORDS: Mapping[str, Word] = {
    "ENFORCEMENT": ("집행", "Enforcement"),
    "MATCH_REVIEW": ("동일인 검토", "Match review"),
    "VICTIM_CONTACT": ("피해자 연락", "Contact with the protected person"),
    "COURT": ("법원", "Court"),
    "AUDIT": ("점검", "Audit"),
    "SUBJECT_REQUEST": ("정보주체의 열람 요구", "Request of the person concerned"),
    "RETENTION": ("보존기간 경과", "Retention period over"),
}
"""Word in Korean and English by the purpose of a disclosure."""
