// The service worker of the unit's page: it opens without a network, and a push message wakes the phone with sound.

import { setting } from "../kept";
import { type Lasting, keepFiles, openOnTouch, worker } from "../offline";

keepFiles("unit", 1, ["/unit/", "/unit/manifest.webmanifest", "/static/unit.js", "/static/unit.css", "/static/unit-ko.json", "/static/unit-en.json", "/static/icon.svg"]);
openOnTouch("/unit/");

// The message says nothing; the line on the locked screen says that somebody is asked, and not for what.
worker.addEventListener("push", (event: Lasting) => {
  event.waitUntil(
    (async () => {
      const line = (await setting<string>("push_line")) ?? "·";
      const options = { tag: "offer", renotify: true, requireInteraction: true, icon: "/static/icon.svg", vibrate: [300, 150, 300] };
      await worker.registration.showNotification(line, options);
    })().catch(() => undefined),
  );
});
