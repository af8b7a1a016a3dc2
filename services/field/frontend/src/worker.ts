// The service worker: the app opens without a network, and a push message wakes the phone. It caches the app's own files alone, which
// are the same for everybody; no answer of /api is ever cached.

import { setting } from "./kept";
import { type Notices, call, receipt } from "./server";

declare const self: ServiceWorkerGlobalScope & typeof globalThis;
interface ServiceWorkerGlobalScope {
  registration: ServiceWorkerRegistration;
  clients: { matchAll(options: object): Promise<{ url: string; focus(): Promise<unknown> }[]>; openWindow(url: string): Promise<unknown>; claim(): Promise<void> };
  skipWaiting(): Promise<void>;
  addEventListener(type: string, listener: (event: never) => void): void;
}
interface Lasting {
  waitUntil(work: Promise<unknown>): void;
}

const CACHE = "app-1";
const FILES = ["/", "/manifest.webmanifest", "/static/app.js", "/static/style.css", "/static/ko.json", "/static/en.json", "/static/icon.svg"];

self.addEventListener("install", (event: Lasting) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(FILES)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event: Lasting) => {
  const old = caches.keys().then((names) => Promise.all(names.filter((name) => name.startsWith("app-") && name !== CACHE).map((name) => caches.delete(name))));
  event.waitUntil(old.then(() => self.clients.claim()));
});

self.addEventListener("fetch", (event: Lasting & { request: Request; respondWith(answer: Promise<Response>): void }) => {
  const path = new URL(event.request.url).pathname;
  if (event.request.method !== "GET" || !FILES.includes(path)) return;
  event.respondWith(
    fetch(event.request)
      .then(async (answer) => {
        if (answer.ok) await (await caches.open(CACHE)).put(path, answer.clone());
        return answer;
      })
      .catch(async () => (await caches.match(path)) ?? Response.error()),
  );
});

// The message says nothing, and neither does the line on the locked screen. The receipt says that the phone has the notice.
self.addEventListener("push", (event: Lasting) => {
  event.waitUntil(
    (async () => {
      const line = (await setting<string>("push_line")) ?? "·";
      await self.registration.showNotification(line, { tag: "news", silent: true, icon: "/static/icon.svg" });
      const { notices } = await call<Notices>("GET", "/api/notices");
      const [newest] = notices;
      if (newest) await receipt(newest.id, "delivered");
    })().catch(() => undefined),
  );
});

self.addEventListener("notificationclick", (event: Lasting & { notification: Notification }) => {
  event.notification.close();
  const open = self.clients.matchAll({ type: "window" }).then((pages) => (pages[0] ? pages[0].focus() : self.clients.openWindow("/")));
  event.waitUntil(open);
});
