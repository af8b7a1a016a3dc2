"""Legal bases in the words of a report: the article in Korean or English, with the code under which the ledger has it."""

from __future__ import annotations

from services.cli.report.words import Words
from services.common.privacy.grounds import LEGAL_BASES

_ARTICLES = {basis.code: basis.article for basis in LEGAL_BASES}
_KOREAN = {
    "STALKING_9_1_2": "스토킹처벌법 제9조제1항제2호 (100미터 이내 접근금지)",
    "STALKING_9_1_3": "스토킹처벌법 제9조제1항제3호 (전기통신 이용 접근금지)",
    "STALKING_9_1_3_2": "스토킹처벌법 제9조제1항제3호의2 (위치추적 전자장치 부착)",
    "STALKING_4": "스토킹처벌법 제4조 (긴급응급조치)",
    "STALKING_17_6": "스토킹처벌법 제17조의6 (피해자보호명령)",
    "STALKING_17_7": "스토킹처벌법 제17조의7 (임시보호명령)",
    "DV_29_1": "가정폭력처벌법 제29조제1항 (임시조치)",
    "DV_PROTECTION": "가정폭력처벌법 (피해자보호명령)",
    "TAG_9_2_1_3": "전자장치부착법 제9조의2제1항제3호 (특정인 접근금지)",
    "TAG_16_2": "전자장치부착법 제16조제2항 (수신자료의 이용)",
    "TAG_16_3_2": "전자장치부착법 제16조의3제2항",
    "TAG_31_8_2": "전자장치부착법 제31조의8제2항 (수신자료의 이용)",
    "TAG_DECREE_23_10": "전자장치부착법 시행령 제23조의10부터 제23조의19까지 (경찰 통보)",
}


def basis_text(code: str, words: Words) -> str:
    """A legal basis in words, with its code; the code alone if the list of articles doesn't have it."""
    article = words.text(_KOREAN.get(code, ""), _ARTICLES.get(code, ""))
    return f"{article} [{code}]" if article else code
