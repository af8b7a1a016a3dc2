// The service worker of the unit's page: it opens without a network, and a push message wakes the phone with sound. It caches the page's
// own files alone, which are the same for everybody; no answer of /api is ever cached.

import { setting } from "../kept";

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

const CACHE = "unit-1";
const FILES = ["/unit/", "/unit/manifest.webmanifest", "/static/unit.js", "/static/unit.css", "/static/unit-ko.json", "/static/unit-en.json", "/static/icon.svg"];

self.addEventListener("install", (event: Lasting) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(FILES)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event: Lasting) => {
  const old = caches.keys().then((names) => Promise.all(names.filter((name) => name.startsWith("unit-") && name !== CACHE).map((name) => caches.delete(name))));
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

// The message says nothing; the line on the locked screen says that somebody is asked, and not for what.
self.addEventListener("push", (event: Lasting) => {
  event.waitUntil(
    (async () => {
      const line = (await setting<string>("push_line")) ?? "·";
      const options = { tag: "offer", renotify: true, requireInteraction: true, icon: "/static/icon.svg", vibrate: [300, 150, 300] };
      await self.registration.showNotification(line, options);
    })().catch(() => undefined),
  );
});

self.addEventListener("notificationclick", (event: Lasting & { notification: Notification }) => {
  event.notification.close();
  const open = self.clients.matchAll({ type: "window" }).then((pages) => (pages[0] ? pages[0].focus() : self.clients.openWindow("/unit/")));
  event.waitUntil(open);
});
