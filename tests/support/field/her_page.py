"""Her app in a browser: opens it on a telephone, connects it, and checks what must hold on each of its screens."""

from __future__ import annotations

from typing import Any

from tests.browser.driver import Browser
from tests.support.field.scene import Scene
from tests.support.field.shots import shot

HOME = {"latitude": 37.6360, "longitude": 127.2165, "accuracy": 12}
SMALL = {"width": 360, "height": 640}
SENT = "#state[data-sent]:not([data-sent='0'])"
PRESENT = "#instruction[data-state='present'] #present p"
UNCONFIRMED = "#instruction[data-state='unconfirmed']"
LOCK = """void (Object.defineProperty(document, "visibilityState", {value: "hidden", configurable: true}),
    document.dispatchEvent(new Event("visibilitychange")))"""
UNLOCK = 'void (delete document.visibilityState, document.dispatchEvent(new Event("visibilitychange")))'
CALLS = ("#call-112", "#text-112")
_IN_VIEW = """(selectors => selectors.map(selector => {
    const element = document.querySelector(selector), box = element?.getBoundingClientRect();
    const top = box && document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    const inside = box && box.top >= 0 && box.left >= 0 && box.bottom <= innerHeight && box.right <= innerWidth;
    const large = !element?.matches('button, a') || (box.width >= 44 && box.height >= 44);
    return inside && large && (element === top || element.contains(top)) ? "" : selector;
}).filter(Boolean).concat(scrollY === 0 ? [] : ["the page is scrolled"]))"""
_ILLEGIBLE = """[...document.querySelectorAll("body *")].filter(e => e.checkVisibility() && !e.closest(".unseen")).flatMap(e => {
    const box = e.getBoundingClientRect(), own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const size = parseFloat(getComputedStyle(e).fontSize) * (e.ownerSVGElement ? e.ownerSVGElement.clientWidth / 320 : 1);
    const small = own && size < 16.9 ? [`${size} px: ${e.outerHTML.slice(0, 80)}`] : [];
    const isTarget = e.matches("button, a, input, select, summary");
    const narrow = isTarget && (box.width < 44 || box.height < 44) ? [`${box.width}x${box.height}: ${e.outerHTML.slice(0, 80)}`] : [];
    const cut = own && (e.scrollWidth > e.clientWidth + 1) && getComputedStyle(e).display !== "inline" && !e.ownerSVGElement;
    return [...small, ...narrow, ...(cut ? [`cut: ${e.outerHTML.slice(0, 80)}`] : [])];
})"""
_WAITING = """new Promise(done => { const o = indexedDB.open("app"); o.onsuccess = () => {
    const r = o.result.transaction("reports").objectStore("reports").count();
    r.onsuccess = () => { o.result.close(); done(r.result); }; }; })"""
_PAGE = """(() => { const copy = document.documentElement.cloneNode(true);
    copy.querySelector("#state")?.removeAttribute("data-sent");
    copy.querySelector("#present-times")?.remove();
    copy.querySelector("#text-112")?.removeAttribute("href");
    return [copy.outerHTML, document.activeElement.id, document.title, String(getSelection()), history.length].join("\\n"); })()"""


class HerPages:
    """Telephones with her app, and the scene of the person whose device they are."""

    def __init__(self, scene: Scene, browser: Browser) -> None:
        self.scene, self.browser = scene, browser

    async def open(self, page: str, language: str, **more: Any) -> None:
        """Opens the app on a new telephone."""
        await self.browser("phone", page=page, url=self.scene.url, language=language, **more)
        await self.browser("wait", page=page, selector="#enrol:not([hidden])")

    async def connect(self, page: str, device_id: str) -> None:
        """Connects a telephone by a new code."""
        await self.browser("fill", page=page, selector="#code", value=await self.scene.code(device_id))
        await self.browser("click", page=page, selector="#enrol-form button")
        await self.browser("wait", page=page, selector="#main:not([hidden])")

    async def reopen(self, page: str) -> None:
        """Closes the app and opens it once more, on the same telephone."""
        await self.browser("open", page=page, url=self.scene.url)

    async def shot(self, page: str, name: str) -> None:
        """Saves a picture for the documents."""
        await shot(self.browser, page, name)

    async def eval(self, page: str, expression: str) -> Any:
        """Value of a JavaScript expression on a page."""
        return await self.browser("eval", page=page, expression=expression)

    async def text(self, page: str, selector: str) -> str:
        """Texts of the elements, by spaces."""
        return " ".join(await self.browser("text", page=page, selector=selector))

    async def accessible(self, page: str) -> None:
        """A page, also one of a desk, is accessible and no wider than its window."""
        found = [fault for fault in await self.browser("axe", page=page) if fault["impact"] in ("serious", "critical")]
        assert not found, found
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not await self.eval(page, wide)

    async def clean(self, page: str) -> None:
        """A screen of the app is accessible, has no small text or button, and cuts nothing off."""
        await self.accessible(page)
        illegible = await self.eval(page, _ILLEGIBLE)
        assert not illegible, illegible

    async def first_screen(self, page: str, *selectors: str) -> None:
        """112 by telephone and by text message can be touched without scrolling, and so can these elements."""
        out_of_view = await self.eval(page, f"{_IN_VIEW}({[*selectors, *CALLS]!r})")
        assert not out_of_view, out_of_view
        assert await self.eval(page, "document.querySelector('#call-112').getAttribute('href')") == "tel:112"
        href = await self.eval(page, "document.querySelector('#text-112').getAttribute('href')")
        assert href.startswith("sms:112?body=")
        await self.clean(page)

    async def waiting(self, page: str) -> int:
        """Number of reports that the phone keeps."""
        return int(await self.eval(page, _WAITING))

    async def content(self, page: str) -> str:
        """Everything on a page that a person could see or hear, without the times that change by themselves."""
        return str(await self.eval(page, _PAGE))

    async def press_silently(self, page: str) -> None:
        """Calls the police in silence."""
        for _ in range(5):
            await self.browser("click", page=page, selector="#title")
