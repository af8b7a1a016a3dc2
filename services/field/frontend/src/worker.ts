// The service worker: the app opens without a network, and a push message wakes the phone.

import { setting } from "./kept";
import { type Lasting, keepFiles, openOnTouch, worker } from "./offline";
import { type Notices, call, receipt } from "./server";

keepFiles("app", 1, ["/", "/manifest.webmanifest", "/static/app.js", "/static/style.css", "/static/ko.json", "/static/en.json", "/static/icon.svg"]);
openOnTouch("/");

// The message says nothing, and neither does the line on the locked screen. The receipt says that the phone has the notice.
worker.addEventListener("push", (event: Lasting) => {
  event.waitUntil(
    (async () => {
      const line = (await setting<string>("push_line")) ?? "·";
      await worker.registration.showNotification(line, { tag: "news", silent: true, icon: "/static/icon.svg" });
      const { notices } = await call<Notices>("GET", "/api/notices");
      const [newest] = notices;
      if (newest) await receipt(newest.id, "delivered");
    })().catch(() => undefined),
  );
});
