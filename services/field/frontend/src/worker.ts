// The service worker: the app opens without a network, and a push message wakes the phone.

import { keepConfirmation } from "./confirmed";
import { setting } from "./kept";
import { type Lasting, keepFiles, openOnTouch, worker } from "./offline";
import { NEWS_TAG } from "./push";
import { type Notices, call, receipt } from "./server";

keepFiles(
  "app",
  1,
  ["/", "/manifest.webmanifest", "/static/app.js", "/static/style.css", "/static/ko.json", "/static/en.json", "/static/icon.svg"],
  ["/today.html", "/static/calendar.js", "/static/calendar.css"], // she leaves at once, whatever the network does
);
openOnTouch("/");

// The message says nothing, and neither does the line on the locked screen, which takes the place of an earlier one. The receipt says that
// the phone has the notice.
worker.addEventListener("push", (event: Lasting) => {
  event.waitUntil(
    (async () => {
      const line = (await setting<string>("push_line")) ?? "·";
      await worker.registration.showNotification(line, { tag: NEWS_TAG, silent: true, icon: "/static/icon.svg" });
      const { present, earlier, now_ms } = await call<Notices>("GET", "/api/notices");
      await keepConfirmation(now_ms, present?.is_over === false);
      const newest = present ?? earlier[0];
      if (newest) await receipt(newest.id, "delivered");
    })().catch(() => undefined),
  );
});
